"""The draft's protocol on a model and on noise: five short texts in, its alignments' figures side by side out.

The draft reported 496 alignments with a maximum of 0.8559. Its protocol: over the tokens of one short text, correlate
each of 2,048 features' activation with the energy gradient; do so for five texts and five layers; of every text and
layer keep the 20 largest |r| above 0.1. Here the same selection is applied to the draft's gradient on a real model, to
the gradient that `efas` uses, and to noise that stands for the gradient or for everything.

Correlations are taken over included tokens (`ingest.inclusion`), as everywhere in this package: neither the first nor
the last token of a text. A feature that does not vary over them has no correlation and is not tested.

Two tests say which alignments are more than selection:

  t test        p of r by Student's t with n − 2 degrees of freedom, Benjamini and Hochberg's q < 0.05 over all features
                tested in the five texts and layers. It takes tokens as independent and normal.
  permutation   the largest |r| of the same text and layer after its gradients were dealt to its tokens anew: an
                alignment survives above 95 % of these maxima (Westfall and Young 1993). It knows that many features
                were tried, and how few tokens a sparse feature has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from energy_lens.errors import UsageError, require, require_at_most, require_seed
from energy_lens.ingest.energies.registry import make_energies
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.residuals import norm_medians
from energy_lens.ingest.reading import LayerReading, Reader
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import check_saes
from energy_lens.ingest.statistics.significance import benjamini_hochberg, two_sided_t_p
from energy_lens.warehouse.plan import Context

Floats = NDArray[np.float64]

#: The draft's texts, word by word: they are part of its protocol.
TEXTS = (
    r"The regex pattern \d+\.\d+ matches decimal numbers. Use regex.match() to find patterns in text strings.",
    "def process_data(x): return [item.strip() for item in x.split(',') if item]",
    "The quick brown fox jumps over the lazy dog. This sentence contains every letter of the alphabet.",
    "The derivative of x^2 is 2x. Integration of 2x dx equals x^2 + C where C is the constant.",
    r"To parse JSON data, use json.loads() function. The regex \{.*\} matches JSON objects in text.",
)

#: The draft's selection: of each text and layer the strongest TOP alignments, if above THRESHOLD.
TOP, THRESHOLD = 20, 0.1

#: Features of the draft's SAEs, all of which its simulated activations filled.
DRAFT_FEATURES = 2_048

#: Deals of the gradients to the tokens, by text and layer.
PERMUTATIONS = 1_000

#: Draws of the noise, at most: each takes about a second.
MOST_REPETITIONS = 10_000

LEVEL = 0.05


@dataclass(frozen=True)
class AlignmentFigures:
    """The figures of one table of alignments, or their mean or spread over several; NaN where there is none."""

    tested: float  #: features that vary, summed over texts and layers
    alignments: float
    mean_r: float  #: of |r| over alignments
    p95_r: float  #: its 95th percentile
    max_r: float
    survive_t: float  #: alignments that pass the t test
    survive_permutation: float


@dataclass(frozen=True)
class Arm:
    """One arm of the replay."""

    name: str
    repetitions: int | None  #: of noise; 1 where nothing is drawn, None for published figures
    figures: AlignmentFigures  #: means over the repetitions
    spread: AlignmentFigures | None  #: their standard deviation, from two repetitions on


#: The draft's table, whose numbers were simulated; its one run on a real GPT-2 found none of 5 alignments significant.
PUBLISHED = AlignmentFigures(math.nan, 496, 0.3775, 0.7388, 0.8559, math.nan, math.nan)


SIGNAL = "model: decoder gradient of nll"
MATCHED_NOISE = "model's activations, white noise as gradient"
NOISE = f"noise alone: {DRAFT_FEATURES:,} dense features"


@dataclass(frozen=True)
class TextAtLayer:
    """One text at one layer, its included tokens."""

    a: Floats  #: activations [token, feature]
    g: Floats  #: gradients [token, 1], or [token, feature] where each feature has its own


def check_drawing(seed: int, repetitions: int) -> None:
    """Raises UsageError for a seed or a number of repetitions that is out of range."""
    require_seed(seed)
    require(repetitions >= 1, f"--repetitions is {repetitions}; at least 1 is needed.")
    require_at_most("--repetitions", repetitions, MOST_REPETITIONS)


def replay(model: LanguageModel, saes: Sequence[SparseAutoencoder], seed: int = 0, repetitions: int = 20) -> list[Arm]:
    """The arms of the replay, the published one first; equal seeds give equal figures.

    saes: one a layer. repetitions: how often the noise of the last two arms is drawn.
    Raises UsageError for SAEs that do not fit the model, and for what `check_drawing` refuses.
    """
    check_drawing(seed, repetitions)
    check_saes(model, saes)
    texts = _read_texts(model, saes)
    readings = [(reading, sae) for text in texts for reading, sae in zip(text, saes, strict=True)]
    activations = [_dense(reading, sae) for reading, sae in readings]

    def real(gradient: Callable[[LayerReading, SparseAutoencoder], Floats]) -> list[TextAtLayer]:
        return [TextAtLayer(a, gradient(*place)) for a, place in zip(activations, readings, strict=True)]

    def noise_as_gradient(generator: np.random.Generator) -> list[TextAtLayer]:
        # One gradient a text whatever the layer, as the discrete gradient of nll is.
        g = [generator.standard_normal(len(text[0].reasons)) for text in texts]
        included = [one[reading.included, None] for one, text in zip(g, texts, strict=True) for reading in text]
        return [TextAtLayer(a, one) for a, one in zip(activations, included, strict=True)]

    def noise_alone(generator: np.random.Generator) -> list[TextAtLayer]:
        return [
            TextAtLayer(generator.standard_normal((len(a), DRAFT_FEATURES)), generator.standard_normal((len(a), 1)))
            for a in activations
        ]

    arms: list[tuple[str, int, Callable[[np.random.Generator], list[TextAtLayer]]]] = [
        ("model: discrete gradient of nll", 1, lambda _: real(_discrete)),
        (SIGNAL, 1, lambda _: real(_decoder("nll"))),
        ("model: decoder gradient of hopfield (positive control)", 1, lambda _: real(_decoder("hopfield"))),
        (MATCHED_NOISE, repetitions, noise_as_gradient),
        (NOISE, repetitions, noise_alone),
    ]
    streams = np.random.default_rng(seed).spawn(len(arms))
    published = Arm("published by the draft, from simulated numbers", None, PUBLISHED, None)
    return [published, *(_arm(*arm, generator) for arm, generator in zip(arms, streams, strict=True))]


def conclusion(arms: Sequence[Arm]) -> list[str]:
    """What the arms say, in two sentences."""
    by_name = {arm.name: arm.figures for arm in arms}
    noise, signal, matched, draft = by_name[NOISE], by_name[SIGNAL], by_name[MATCHED_NOISE], PUBLISHED
    return [
        f"Noise alone gives {noise.alignments:.0f} alignments with a 95th percentile of {noise.p95_r:.2f} and a "
        f"maximum of {noise.max_r:.2f}, where the draft published {draft.alignments:.0f}, {draft.p95_r:.2f} and "
        f"{draft.max_r:.2f}: that is what the strongest of thousands of correlations over some twenty tokens look like "
        "with nothing true.",
        f"Of the model's {signal.alignments:.0f} alignments with its own decoder gradient of nll "
        f"{signal.survive_permutation:.0f} survive the permutation test, and {matched.survive_permutation:.1f} on "
        "average where that gradient is white noise; what holds beyond five short texts, elw ingest and q_value say.",
    ]


# ------------------------------------------------------------------------------------------------ the model's side


def _read_texts(model: LanguageModel, saes: Sequence[SparseAutoencoder]) -> list[list[LayerReading]]:
    """Readings of each text, by SAE; a text is one context."""
    ids = [model.as_context(np.array(model.tokenize(text), dtype=np.int32)) for text in TEXTS]
    if missing := [sae.layer for sae in saes if sae.norm_median is None]:
        medians = norm_medians(model, ids, {sae.layer: sae.site for sae in saes if sae.layer in missing})
        saes = [replace(sae, norm_median=medians.get(sae.layer, sae.norm_median)) for sae in saes]
    reader = Reader(model, {sae.layer: sae for sae in saes}, make_energies(("nll", "hopfield")), len(TEXTS))
    contexts = [(Context(i, i, 0, 0, len(tokens)), tokens) for i, tokens in enumerate(ids)]
    return [[reading.layers[sae.layer] for sae in saes] for reading in reader.read(contexts)]


def _dense(reading: LayerReading, sae: SparseAutoencoder) -> Floats:
    """Activations of included tokens [token, feature]."""
    a = np.zeros((len(reading.reasons), sae.d_sae))
    values, indices = (part.numpy() for part in reading.activations)
    token, slot = np.nonzero(values)  # an empty slot may name a feature that another slot holds
    a[token, indices[token, slot]] = values[token, slot]
    dense: Floats = a[reading.included]
    return dense


def _discrete(reading: LayerReading, _sae: SparseAutoencoder) -> Floats:
    """[token, 1] minus the derivative of nll along the text."""
    return reading.discrete["nll"][reading.included, None]


def _decoder(energy: str) -> Callable[[LayerReading, SparseAutoencoder], Floats]:
    """[token, feature] −⟨∂E/∂x, d_j⟩ of an energy E."""

    def gradient(reading: LayerReading, sae: SparseAutoencoder) -> Floats:
        vectors = reading.decoder_gradients(energy).double().numpy()[reading.included]
        g: Floats = -(vectors @ sae.W_dec.double().numpy().T)
        return g

    return gradient


# ------------------------------------------------------------------------------------------------ the protocol


def _arm(
    name: str,
    repetitions: int,
    draw: Callable[[np.random.Generator], list[TextAtLayer]],
    generator: np.random.Generator,
) -> Arm:
    drawn = np.array(
        [astuple(alignment_figures(draw(generator), generator)) for _ in range(repetitions)], dtype=np.float64
    )
    spread = AlignmentFigures(*drawn.std(0, ddof=1).tolist()) if repetitions > 1 else None
    return Arm(name, repetitions, AlignmentFigures(*drawn.mean(0).tolist()), spread)


def alignment_figures(cells: Sequence[TextAtLayer], generator: np.random.Generator) -> AlignmentFigures:
    """The draft's figures of its texts and layers, and what survives; `generator` deals the gradients.

    Raises UsageError when no feature varies over any text.
    """
    by_cell: list[tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_]]] = []
    for cell in cells:
        n = len(cell.a)
        a, g = unit_columns(cell.a), unit_columns(cell.g)
        r = np.abs((a * g).sum(0))
        tested = ~np.isnan(r)
        if n < 3 or not tested.any():
            continue
        a, g, r = a[:, tested], (g if g.shape[1] == 1 else g[:, tested]), r[tested]
        p = two_sided_t_p(r * np.sqrt((n - 2) / np.maximum(1 - r**2, np.finfo(float).eps)), n - 2)
        by_cell.append((r, p, strongest(r), r > _chance_maximum(a, g, generator)))
    if not by_cell:
        raise UsageError("No feature of these SAEs varies over the draft's texts: name others with --sae or --layers.")
    r, p, chosen, above_chance = map(np.concatenate, zip(*by_cell, strict=True))
    alignments = r[chosen]
    return AlignmentFigures(
        tested=len(r),
        alignments=len(alignments),
        mean_r=float(alignments.mean()) if len(alignments) else math.nan,
        p95_r=float(np.quantile(alignments, 0.95)) if len(alignments) else math.nan,
        max_r=float(alignments.max()) if len(alignments) else math.nan,
        survive_t=int((benjamini_hochberg(p)[chosen] < LEVEL).sum()),
        survive_permutation=int(above_chance[chosen].sum()),
    )


def strongest(r: Floats) -> NDArray[np.bool_]:
    """The draft's alignments among |r| [feature] of one text and layer: the TOP largest, if above THRESHOLD."""
    chosen = np.zeros(len(r), dtype=bool)
    chosen[np.argsort(-r, kind="stable")[:TOP]] = True
    return chosen & (r > THRESHOLD)


def unit_columns(x: Floats) -> Floats:
    """Columns of x [token, n] centred and of length 1, so that products are correlations; NaN for constant ones."""
    centred = np.where(np.ptp(x, axis=0) > 0, x - x.mean(0), np.nan)
    unit: Floats = centred / np.linalg.norm(centred, axis=0)
    return unit


def _chance_maximum(a: Floats, g: Floats, generator: np.random.Generator) -> float:
    """The |r| that 95 % of the largest |r| do not exceed when gradients are dealt to tokens anew.

    a [token, feature], g [token, 1 or feature]: unit columns. A token's gradients stay together.
    """
    deals = generator.permuted(np.tile(np.arange(len(a)), (PERMUTATIONS, 1)), axis=1)
    if g.shape[1] == 1:
        maxima = np.abs(a.T @ g[deals, 0].T).max(0)
    else:
        maxima = np.array([np.abs((a * g[deal]).sum(0)).max() for deal in deals])
    # A deal may leave a sparse feature's r as it was but for rounding: that is no survival.
    return float(np.quantile(maxima, 1 - LEVEL, method="higher")) + 1e-9
