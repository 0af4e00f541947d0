"""Places inside blocks: tensors, passes that go on from them and gradients are those of the model's own code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from energy_lens.errors import UsageError
from energy_lens.ingest.energies.forward import run_forward
from energy_lens.ingest.energies.nll import NegativeLogLikelihood
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.model.sites import (
    POINTS,
    READ_ONLY,
    Site,
    check_sites,
    harvest,
    hidden_from,
    needs_below,
    width,
)
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.hook_names import site_of
from energy_lens.tests.conftest import TINY_WIDTH, Tiny, _tokenizer

LAYER = 1

SHAPE = {
    "vocab_size": 512, "hidden_size": TINY_WIDTH, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip

OTHERS = {
    "gemma2": ("Gemma2", {"head_dim": 16}),
    "gemma3": ("Gemma3", {"head_dim": 16, "sliding_window": 16}),
    "cohere": ("Cohere", {}),
    "granite": ("Granite", {"residual_multiplier": 0.5}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Tiny]) -> Callable[[str], LanguageModel]:
    import transformers

    built: dict[str, LanguageModel] = {}

    def make(name: str) -> LanguageModel:
        if name in built:
            return built[name]
        if name in OTHERS:
            family, settings = OTHERS[name]
            suffix = "TextConfig" if family == "Gemma3" else "Config"
            folder: Path = tmp_path_factory.mktemp(name)
            torch.manual_seed(1)
            config = getattr(transformers, f"{family}{suffix}")(**SHAPE, **settings)
            module = getattr(transformers, f"{family}ForCausalLM")(config)
            with torch.no_grad():  # gains that do something
                for parameter in module.parameters():
                    if parameter.dim() == 1:
                        parameter += 0.3 * torch.randn_like(parameter)
            module.save_pretrained(folder)
            _tokenizer().save_pretrained(folder)
            built[name] = load_model(str(folder))
        else:
            built[name] = tiny(name).load()
        return built[name]

    return make


@dataclass(frozen=True)
class Named:
    """Where a family has it, by its own names of modules: a module, and whether it is its input."""

    module: str
    is_input: bool = False


LLAMA = {
    "resid_pre": Named("", True), "z": Named("self_attn.o_proj", True), "attn_raw": Named("self_attn.o_proj"),
    "attn_out": Named("self_attn"), "resid_mid": Named("post_attention_layernorm", True), "mlp_in": Named("mlp", True),
    "mlp_raw": Named("mlp"), "mlp_out": Named("mlp"), "resid_post": Named(""),
}  # fmt: skip
GEMMA = LLAMA | {
    "attn_out": Named("post_attention_layernorm"), "resid_mid": Named("pre_feedforward_layernorm", True),
    "mlp_out": Named("post_feedforward_layernorm"),
}  # fmt: skip
NAMES = {
    "llama": LLAMA, "qwen3": LLAMA, "gemma2": GEMMA, "gemma3": GEMMA,
    "gpt2": LLAMA | {
        "z": Named("attn.c_proj", True), "attn_raw": Named("attn.c_proj"), "attn_out": Named("attn"),
        "resid_mid": Named("ln_2", True),
    },
    "gpt_neox": {point: name for point, name in LLAMA.items() if point != "resid_mid"} | {
        "z": Named("attention.dense", True), "attn_raw": Named("attention.dense"), "attn_out": Named("attention"),
    },
    "cohere": {point: name for point, name in LLAMA.items() if point != "resid_mid"},
}  # fmt: skip

EVERY = [(family, point) for family, names in NAMES.items() for point in names]
WRITABLE = [(family, point) for family, point in EVERY if point not in READ_ONLY]


def tokens() -> Tensor:
    return 1 + (torch.arange(48).view(2, 24) * 37) % 500  # not 0: Gemma has no embedding for padding


@contextlib.contextmanager
def hooked(model: LanguageModel, layer: int, named: Named, passed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """By a family's own names, independent of `sites`."""
    block = model.blocks[layer]
    module = block.get_submodule(named.module) if named.module else block

    def before(_module: nn.Module, arguments: Any, keywords: Any) -> Any:
        if arguments:
            return (passed(arguments[0]), *arguments[1:]), keywords
        return arguments, keywords | {"hidden_states": passed(keywords["hidden_states"])}

    def after(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        return (passed(output[0]), *output[1:]) if isinstance(output, tuple) else passed(output)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if named.is_input
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def by_name(model: LanguageModel, layer: int, named: Named) -> Tensor:
    found: list[Tensor] = []
    with hooked(model, layer, named, lambda x: found.append(x) or x):  # type: ignore[func-returns-value]
        model.hidden(tokens())
    return found[0]


@pytest.mark.parametrize(("family", "point"), EVERY)
def test_the_tensor_is_that_of_the_module(made: Callable[[str], LanguageModel], family: str, point: str) -> None:
    model = made(family)
    expected = by_name(model, LAYER, NAMES[family][point])
    site = Site(LAYER, point)
    assert torch.equal(harvest(model, tokens(), {0: site})[0], expected)
    assert width(model, site) == expected.shape[-1]
    assert site_of(site.hook_name) == site


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_parts_add_up(made: Callable[[str], LanguageModel], family: str) -> None:
    model = made(family)
    found = harvest(model, tokens(), {point: Site(LAYER, point) for point in POINTS})
    mid = found["resid_pre"] + found["attn_out"]
    torch.testing.assert_close(found["resid_mid"], mid)
    torch.testing.assert_close(found["resid_post"], mid + found["mlp_out"])


@pytest.mark.parametrize(("family", "norm"), [("llama", "post_attention_layernorm"), ("gpt2", "ln_2"),
                                              ("gpt_neox", "post_attention_layernorm")])  # fmt: skip
def test_normed_input_before_its_gain(made: Callable[[str], LanguageModel], family: str, norm: str) -> None:
    """As TransformerLens has it: what is left of the norm's output when gain and bias are undone."""
    model = made(family)
    module = model.blocks[LAYER].get_submodule(norm)
    found = harvest(model, tokens(), {"in": Site(LAYER, "mlp_in"), "normed": Site(LAYER, "ln2_normalized")})
    gain, bias = module.weight, getattr(module, "bias", None)
    expected = (found["in"] - (0 if bias is None else bias)) / gain
    torch.testing.assert_close(found["normed"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, LAYER])
@pytest.mark.parametrize(("family", "point"), [pair for pair in WRITABLE if pair[1] != "mlp_in"])
@torch.no_grad()
def test_a_pass_that_goes_on_equals_a_hooked_one(
    made: Callable[[str], LanguageModel], family: str, point: str, layer: int
) -> None:
    model, site = made(family), Site(layer, point)
    wanted = {"x": site, "below": site.before_block}
    found = harvest(model, tokens(), wanted)
    below = found["below"] if needs_below(site) else None
    torch.testing.assert_close(hidden_from(model, tokens(), site, found["x"], below), model.hidden(tokens()),
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    torch.manual_seed(3)
    moved = found["x"] + 0.5 * torch.randn_like(found["x"])
    if point == "resid_mid":  # the stream goes by its reader: changed by what attention adds
        with hooked(model, layer, NAMES[family]["attn_out"], lambda added: added + moved - found["x"]):
            expected = model.hidden(tokens())
    else:
        with hooked(model, layer, NAMES[family][point], lambda _: moved):
            expected = model.hidden(tokens())
    assert not torch.allclose(expected, model.hidden(tokens()), atol=1e-3)
    torch.testing.assert_close(hidden_from(model, tokens(), site, moved, below), expected, rtol=1e-4, atol=1e-4)


def sae_at(model: LanguageModel, layer: int, point: str, point_out: str | None = None) -> SparseAutoencoder:
    torch.manual_seed(layer)
    d_in = width(model, Site(layer, point))
    d_out = width(model, Site(layer, point_out or point))
    return SparseAutoencoder(
        layer=layer, k=4, W_enc=torch.randn(d_in, 16), b_enc=torch.zeros(16), W_dec=torch.randn(16, d_out),
        b_dec=torch.zeros(d_out), norm_median=1e9, point=point, point_out=point_out,
    )  # fmt: skip


@pytest.mark.parametrize(("family", "point"), [pair for pair in WRITABLE if pair[1] != "mlp_in"])
def test_gradients_equal_central_differences(
    made: Callable[[str], LanguageModel], family: str, point: str, tiny: Callable[[str], Tiny]
) -> None:
    """Of the sum of losses by that very tensor, where a lower layer's SAE is in the same graph, and where none is."""
    model = made(family)
    lengths = torch.tensor([24, 20])

    def included(_layer: int, norms: Tensor) -> Tensor:
        return torch.ones_like(norms, dtype=torch.bool)

    def nll(below: bool) -> Tensor:
        saes = {LAYER: sae_at(model, LAYER, point)} | ({0: sae_at(model, 0, "attn_out")} if below else {})
        forward = run_forward(model, saes, tokens(), lengths, included)
        return NegativeLogLikelihood().read(forward).gradients[LAYER]

    gradient = nll(below=False)
    torch.testing.assert_close(nll(below=True), gradient, rtol=1e-3, atol=1e-5)
    site = Site(LAYER, point)
    found = harvest(model, tokens(), {"x": site, "below": site.before_block})
    has_next = torch.arange(24)[None] < lengths[:, None] - 1
    targets = tokens().roll(-1, 1)

    @torch.no_grad()
    def energy(x: Tensor) -> float:
        hidden = hidden_from(model, tokens(), site, x, found["below"] if needs_below(site) else None)
        logits = model.logits(hidden).double()
        losses = torch.nn.functional.cross_entropy(logits[has_next], targets[has_next], reduction="sum")
        return float(losses)

    torch.manual_seed(5)
    direction = torch.randn_like(found["x"])
    step = 2e-3 * float(found["x"].norm() / direction.norm())
    slope = (energy(found["x"] + step * direction) - energy(found["x"] - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-2, abs=2e-2 * float(gradient.norm()))


@pytest.mark.parametrize(("family", "point"), [("gpt_neox", "resid_mid"), ("cohere", "resid_mid"),
                                               ("granite", "attn_out"), ("granite", "mlp_out")])  # fmt: skip
def test_a_place_that_is_not_there_is_refused(made: Callable[[str], LanguageModel], family: str, point: str) -> None:
    with pytest.raises(UsageError, match=point):
        check_sites(made(family), [Site(LAYER, point)])


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("blocks.3.hook_resid_pre", Site(3, "resid_pre")), ("blocks.3.hook_resid_mid", Site(3, "resid_mid")),
        ("blocks.0.hook_attn_out", Site(0, "attn_out")), ("blocks.3.attn.hook_z", Site(3, "z")),
        ("blocks.3.hook_mlp_out", Site(3, "mlp_out")), ("blocks.3.ln2.hook_normalized", Site(3, "ln2_normalized")),
        ("blocks.3.mlp.hook_in", Site(3, "mlp_in")), ("blocks.3.hook_out", Site(3)), ("model.layers.3", Site(3)),
        ("transformer.h.1", Site(1)), ("gpt_neox.layers.1", Site(1)), ("layers.1", Site(1)),
        ("layers.1.mlp", Site(1, "mlp_raw")), ("model.layers.4.self_attn.o_proj.input", Site(4, "z")),
        ("h.2.attn", Site(2, "attn_raw")), ("model.layers.2.output", Site(2)),
        ("model.layers.2.post_feedforward_layernorm.output", Site(2, "mlp_out")),
        ("blocks.3.attn.hook_q", None), ("blocks.3.hook_mlp_in", None), ("embed", None), ("layers.x", None),
        ("blocks.99999.hook_resid_post", None),
    ],
)  # fmt: skip
def test_names(name: str, site: Site | None) -> None:
    assert site_of(name) == site


def test_sites_are_ordered_as_a_pass_comes_by() -> None:
    assert sorted([Site(1), Site(0), Site(1, "mlp_in"), Site(1, "resid_pre")]) == [
        Site(0), Site(1, "resid_pre"), Site(1, "mlp_in"), Site(1),
    ]  # fmt: skip
