"""What a run has in, the formulas behind its numbers out, each in a sentence and with its source.

docs/definitions.md says all of it at length; this is what a reader of one report needs beside him.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from energy_lens.reports.queries import Answer


@dataclass(frozen=True)
class Source:
    """Where a method comes from."""

    text: str
    url: str | None = None


@dataclass(frozen=True)
class Method:
    """One quantity: its formula as text that needs no typesetting, and what it means."""

    name: str
    formula: str
    words: str  #: with `code` and **strong**, as the report's prose
    sources: tuple[Source, ...] = ()


def _arxiv(authors: str, number: str) -> Source:
    return Source(authors, f"https://arxiv.org/abs/{number}")


def _doi(authors: str, number: str) -> Source:
    return Source(authors, f"https://doi.org/{number}")


#: The package's own energies, by name.
_ENERGIES = {
    "nll": Method(
        "Energy `nll`",
        "Eₜ = −log p(xₜ₊₁ | x₁ … xₜ)",
        "The model's own loss, in nats; its gradient is of the sum over the context, so of every later prediction too.",
    ),
    "logit_lens": Method(
        "Energy `logit_lens`",
        "Eₜ = −log softmax(W_U · norm(xₜ))[next token]",
        "The loss of the residual read by the model's own last steps, in nats; at middle layers it is often worse "
        "than a uniform guess.",
        (
            Source(
                "nostalgebraist 2020, interpreting GPT: the logit lens",
                "https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens",
            ),
        ),
    ),
    "tuned_lens": Method(
        "Energy `tuned_lens`",
        "Eₜ = −log softmax(W_U · norm(A xₜ + b))[next token]",
        "The same after an affine map of the layer that was fitted on training documents, in nats.",
        (_arxiv("Belrose et al. 2023", "2303.08112"),),
    ),
    "attention": Method(
        "Energy `attention`",
        "Eₜ = −Σ_h log Σ_{s≤t} exp(qₜ · kₛ / √d_h)",
        "The Energy Transformer's attention energy of the next block, times its β; a pretrained model does not "
        "descend it.",
        (_arxiv("Hoover et al. 2023", "2302.07253"),),
    ),
    "native": Method(
        "Energy `native`",
        "Eₜ = −Σ_h (1/β_h) log(1 + Σ_{s<t} exp(β_h qₜ · kₛ)) − ½ ‖relu(W gₜ)‖²,  g = norm(x)",
        "What the next step of an energy transformer descends, in the model's own units; the gradient is that of a "
        "token's own energy, its keys held fixed.",
        (_arxiv("Hoover et al. 2023", "2302.07253"), _arxiv("Dehmamy, Hoover et al. 2025", "2512.16762")),
    ),
    "hopfield": Method(
        "Energy `hopfield`",
        "Eₜ = −½ Σⱼ aₜⱼ²",
        "The Energy Transformer's Hopfield energy with the SAE as memories. Its gradient is made of active "
        "features, so it is the positive control and no finding.",
        (_arxiv("Hoover et al. 2023", "2302.07253"),),
    ),
}

_ALWAYS = (
    Method(
        "Decoder gradient",
        "gₜⱼ = −⟨∂E/∂xₜ, dⱼ⟩",
        "What one more unit of feature j at token t would take off the energy, to first order; d is its decoder row.",
    ),
    Method(
        "Score",
        "score = corr(a, g) over included tokens",
        "Pearson's correlation of activation and decoder gradient, zeros counted; `score_active` is the same over "
        "tokens at which the feature is active.",
    ),
    Method(
        "This direction?",
        "t_specific = Nⱼⱼ / √(mean of Nⱼₖ² over k),  Nⱼₖ = ⟨mⱼ, dₖ⟩ / √(dₖᵀ (Σ∇̃∇̃ᵀ) dₖ),  mⱼ = −Σ a·∇̃",
        "How far the gradient, summed where the feature fires, points along its decoder row, beside up to 64 rows "
        "of other features; Student's t with as many degrees of freedom.",
    ),
    Method(
        "Out of the ordinary, in these documents?",
        "z = Σ_c S_c / √(Σ_c S_c²),  S_c = Σₜ∈c a·g̃",
        "g̃ is g less its context's mean and less what contexts of other documents have at the same position. "
        "`z_null` takes g̃ of another context, and is the negative control.",
    ),
    Method(
        "In other documents?",
        "z_documents = Σ_d S_d / √(Σ_d S_d²)",
        "A t test that the documents' sums have mean 0.",
        (_doi("Ibragimov and Müller 2010", "10.1198/jbes.2009.08046"),),
    ),
    Method(
        "q",
        "q₍ᵢ₎ = min over k ≥ i of p₍ₖ₎ · n / k",
        "False discovery rate within energy, gradient and layer: below 0.05, about one in twenty of those counted "
        "is there by chance.",
        (_doi("Benjamini and Hochberg 1995", "10.1111/j.2517-6161.1995.tb02031.x"),),
    ),
    Method(
        "Attribution",
        "Σₜ aₜⱼ · gₜⱼ",
        "How much E would rise were the feature ablated, to first order (attribution patching); half the "
        "curvature is added in a run with probes.",
        (Source("Nanda 2023, attribution patching"), _arxiv("Syed et al. 2023", "2310.10348")),
    ),
    Method(
        "Noise of few tokens",
        "density of r ∝ (1 − r²)^((n − 4) / 2),  variance 1 / (n − 1)",
        "The correlation of n independent normal pairs: `noise` beside a largest |r| is the median of the largest "
        "of as many such draws, on as many tokens each.",
        (_doi("Fisher 1915", "10.1093/biomet/10.4.507"),),
    ),
    Method(
        "Intervals of scores",
        "tanh(artanh score ± t · se / (1 − score²))",
        "Across documents, by the influence of each on the correlation; none below 10 documents.",
        (_doi("Devlin, Gnanadesikan and Kettenring 1975", "10.1093/biomet/62.3.531"),),
    ),
)

_INFORMATION = Method(
    "Mutual information",
    "H(a) + H(g) − H(a, g) + (m_a + m_g − m_ag − 1) / (2 N ln 2)",
    "Bits, from five bins of a and eight of g, with Miller's correction; the excess is what lies above the same "
    "with g of another document.",
    (Source("Miller 1955, note on the bias of information estimates"),),
)

_INTERVENTION = Method(
    "Intervention",
    "xₜ ← xₜ + (a′ − a) · dⱼ",
    "Measured over all later tokens of the context, beside the same edit along control directions of the same "
    "norm; an interval is across documents, and one that holds 0 tells no effect from none.",
)

_DOSE = Method(
    "Dose response",
    "mean over patches of |ΔE| or KL ∝ doseᵖ",
    "p by least squares of logarithms over the doses whose mean stands ten times above what rounding does, for each "
    "feature; their mean has an interval over documents and features.",
)

_ATTRACTOR = Method(
    "Attractor",
    "z ← normalize(Wᵀ softmax(β W z))",
    "A fixed point of the Hopfield network whose memories W are the SAE's decoder rows of length 1.",
    (_arxiv("Ramsauer et al. 2020", "2008.02217"),),
)


def methods(answers: Mapping[str, Answer]) -> list[Method]:
    """The formulas behind what this report shows, the energies first; an energy from outside has none here."""
    found = [_ENERGIES[energy] for energy in answers["run"].rows[0]["energies"] if energy in _ENERGIES]
    found += _ALWAYS
    conditional = (
        ("mutual_information", _INFORMATION), ("intervention_effects", _INTERVENTION),
        ("dose_exponents", _DOSE),
        ("attractor_settings", _ATTRACTOR),
    )  # fmt: skip
    return found + [method for query, method in conditional if answers[query].rows]
