"""`elw model check`: passes on models that work, and a model that is broken on purpose fails the line that is meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from energy_lens.analysis.model_check.finding import Finding, Outcome
from energy_lens.analysis.model_check.run import check_by_name, check_model, default_layers
from energy_lens.cli import main
from energy_lens.errors import UsageError
from energy_lens.ingest.energies.base import Reading
from energy_lens.ingest.energies.forward import ForwardPass
from energy_lens.ingest.energies.nll import NegativeLogLikelihood
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import load_model, locate
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.tests.conftest import TINY_WIDTH, _tokenizer

PROOFS = [
    "token texts", "logits", "causality", "losses", "residual stream", "padded batch", "patched = hooked",
    "gradient of nll", "gradient of logit_lens", "gradient of hopfield", "fused attention",
]  # fmt: skip


def by_check(findings: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def failures(model: LanguageModel) -> dict[str, str]:
    """Notes of the checks that fail."""
    return {f.check: f.note for f in check_model(model) if f.outcome is Outcome.FAILED}


# ------------------------------------------------------------------------------------------------ models that work


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_a_model_that_works(architecture: str, tiny: Callable[..., Any]) -> None:
    """Every check passes by a margin; what cannot be had says why."""
    findings = by_check(check_by_name(str(tiny(architecture).folder)))
    assert [check for check in PROOFS if findings[check].outcome is not Outcome.PASSED] == []
    inapplicable = {check for check, f in findings.items() if f.outcome is Outcome.INAPPLICABLE}
    assert inapplicable == {"gradient of tuned_lens", "gradient of native"}
    assert "descends no energy of its own" in findings["gradient of native"].note
    assert "No tuned lens is shipped" in findings["gradient of tuned_lens"].note
    for check in ("gradient of nll", "gradient of attention", "gradient of logit_lens", "gradient of hopfield"):
        assert findings[check].difference < findings[check].tolerance / 4, findings[check]
    assert "4 blocks of 32 numbers" in findings["parts"].note
    assert "at most 256 tokens" in findings["positions"].note
    assert "single losses are off" in findings["bfloat16"].note
    for finding in findings.values():
        assert "\n" not in finding.note


def test_layers_that_are_looked_at() -> None:
    assert [default_layers(n) for n in (1, 2, 3, 4, 30)] == [[0], [0, 1], [0, 1], [0, 2], [0, 15, 28]]


def test_nothing_of_the_model_is_changed(tiny: Callable[..., Any]) -> None:
    """Its precision, attention, hooks and numbers are as before."""
    model = tiny("llama").load()
    tokens = torch.arange(20)[None]
    before, attention = model.hidden(tokens), model.config._attn_implementation
    list(check_model(model))
    assert torch.equal(model.hidden(tokens), before)
    assert model.config._attn_implementation == attention
    hooks = [
        hook
        for module in model.module.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    # transformers leaves some of its own behind where it was asked for attention patterns.
    assert [hook for hook in hooks if not hook.__module__.startswith("transformers.")] == []


def test_a_model_in_bfloat16(tiny: Callable[..., Any]) -> None:
    """Passes are compared as closely as it rounds; differences of energies are not taken."""
    findings = by_check(check_model(tiny("llama").load(torch.bfloat16)))
    assert [f for f in findings.values() if f.outcome is Outcome.FAILED] == []
    assert findings["gradient of nll"].outcome is Outcome.INAPPLICABLE


def test_options_are_checked(tiny: Callable[..., Any]) -> None:
    model = tiny("llama").load()
    with pytest.raises(UsageError, match="has no layer 4"):
        list(check_model(model, [4]))
    with pytest.raises(UsageError, match="--tokens is 3"):
        list(check_model(model, n_tokens=3))


def test_a_damaged_copy_in_the_cache_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Any]
) -> None:
    """By its contents, even where size and time are those that were written."""
    import os

    from energy_lens.tests.test_models import write_gguf

    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf", tiny("llama").load())
    assert by_check(check_by_name(str(path)))["copy in the cache"].outcome is Outcome.PASSED
    weights = locate(str(path))[0] / "model.safetensors"
    status, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    finding = by_check(check_by_name(str(path)))["copy in the cache"]
    assert finding.outcome is Outcome.FAILED
    assert "model.safetensors holds something else than was written" in finding.note


# ------------------------------------------------------------------------------------------------ models that do not


class Wrapped(torch.nn.Module):
    """A module in another's place, with its parameters."""

    def __init__(self, module: torch.nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = module.weight
        self._inner, self._changed = [module], forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._changed(self._inner[0], x)


def test_logits_of_something_else(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does more after its final norm than is known."""
    model = tiny("llama").load()
    original = type(model.module).forward

    def more(self: Any, *arguments: Any, **keywords: Any) -> Any:
        output = original(self, *arguments, **keywords)
        output.logits = output.logits - output.logits.mean(-2, keepdim=True)
        return output

    monkeypatch.setattr(type(model.module), "forward", more)
    found = failures(model)
    assert "more than norm, unembed, scale and cap" in found["logits"]
    assert set(found) <= {"logits", "losses", "causality"}


def test_a_token_that_reaches_back(tiny: Callable[..., Any]) -> None:
    model = tiny("llama").load()
    model.module.model.norm = Wrapped(model.final_norm, lambda norm, x: norm(x).roll(-1, dims=1))
    model.final_norm = model.module.model.norm
    found = failures(model)
    assert "changes what is said before it" in found["causality"]
    assert "logits" not in found


def test_blocks_that_hand_on_more(tiny: Callable[..., Any]) -> None:
    """The last block is given what the first one said, past the residual stream."""
    model = tiny("llama").load()
    kept: list[torch.Tensor] = []
    first, last = model.blocks[0].forward, model.blocks[3].forward

    def keeping(x: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        output = first(x, *arguments, **keywords)
        kept[:] = [output]
        return output

    model.blocks[0].forward = keeping
    model.blocks[3].forward = lambda x, *arguments, **keywords: last(x + kept[0].flip(2), *arguments, **keywords)
    found = failures(model)
    assert "Blocks hand on more than the residual stream" in found["patched = hooked"]
    assert set(found) <= {"patched = hooked", "gradient of nll", "fused attention", "gradient of attention"}


def test_a_block_that_gets_something_else(tiny: Callable[..., Any]) -> None:
    model = tiny("llama").load()
    model.blocks[1].register_forward_pre_hook(lambda _module, inputs: (1.5 * inputs[0], *inputs[1:]))
    assert "is no residual stream" in failures(model)["residual stream"]


def test_a_context_that_depends_on_its_neighbours(tiny: Callable[..., Any]) -> None:
    model = tiny("llama").load()
    block = model.blocks[1].forward
    model.blocks[1].forward = lambda x, *arguments, **keywords: block(x + x.mean(0), *arguments, **keywords)
    assert "what is beside it" in failures(model)["padded batch"]


def test_a_gradient_that_stops_on_its_way(tiny: Callable[..., Any]) -> None:
    """Numbers are right, and what autograd makes of them is not."""
    model = tiny("llama").load()
    norm = model.blocks[2].input_layernorm
    model.blocks[2].input_layernorm = Wrapped(norm, lambda norm, x: norm(x).detach())
    found = failures(model)
    assert "not the derivative of that energy" in found["gradient of nll"]
    assert "gradient of logit_lens" not in found


def test_an_energy_that_is_off_by_a_tenth(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read = NegativeLogLikelihood.read

    def off(self: NegativeLogLikelihood, forward: ForwardPass) -> Reading:
        values, gradients, _ = read(self, forward)
        return Reading(values, {layer: 1.1 * gradient for layer, gradient in gradients.items()})

    monkeypatch.setattr(NegativeLogLikelihood, "read", off)
    assert list(failures(tiny("llama").load())) == ["gradient of nll"]


def test_what_raises_is_a_finding(tiny: Callable[..., Any]) -> None:
    """A model that fails in some pass does not hide what else there is to say."""
    model = tiny("llama").load()
    block = model.blocks[1].forward

    def picky(x: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        if len(x) == 1:
            raise RuntimeError("no batch of one\nand so on")
        return block(x, *arguments, **keywords)

    model.blocks[1].forward = picky
    found = failures(model)
    assert found["padded batch"] == "It could not be carried out (RuntimeError: no batch of one)."
    assert "logits" not in found


# ------------------------------------------------------------------------------------------------ the command


def test_the_command(tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Lines on stdout, the sum of it on stderr, 0 when all holds."""
    folder = tiny("gpt2").folder
    assert main(["model", "check", str(folder), "--layers", "1", "--tokens", "16"]) == 0
    output, said = capsys.readouterr()
    assert "logits" in output
    assert "passes all" in said
    assert "not to be had: gradient of tuned_lens, gradient of native" in said
    assert main(["model", "check", str(folder), "--format", "json"]) == 0
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["logits"]["outcome"] == "ok"
    assert rows["logits"]["difference"] <= rows["logits"]["tolerance"]
    assert main(["model", "check", str(folder), "--layers", "9"]) == 2
    assert main(["model", "check", str(folder / "nowhere")]) == 2


@pytest.mark.usefixtures("capped_llama")
def test_the_command_on_a_model_that_does_not_work(
    tiny: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that other commands refuse without more ado: every line is shown, and 1 is returned."""
    folder = Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
    assert main(["model", "check", str(folder)]) == 1
    output, said = capsys.readouterr()
    assert "FAILED" in output
    assert "residual stream" in output
    assert "fails 2 of" in said
    assert "(logits, losses)" in said


# ------------------------------------------------------------------------------------------------ families

SHAPE = {
    "vocab_size": 512, "hidden_size": TINY_WIDTH, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MAMBA = {"state_size": 8, "num_hidden_layers": 4, "hidden_size": TINY_WIDTH, "vocab_size": 512}

#: Configuration of transformers, and what it needs beside SHAPE.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "olmo2": ("Olmo2Config", {}),
    "phi3": ("Phi3Config", {}),
    "phi": ("PhiConfig", {}),
    "stablelm": ("StableLmConfig", {}),
    "opt": ("OPTConfig", {"word_embed_proj_dim": TINY_WIDTH, "ffn_dim": 64}),
    "bloom": ("BloomConfig", {"n_layer": 4, "n_head": 4}),
    "gptj": ("GPTJConfig", {"n_embd": TINY_WIDTH, "n_layer": 4, "n_head": 4, "n_positions": 128, "rotary_dim": 8}),
    "gpt_neo": ("GPTNeoConfig", {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
                                 "window_size": 8}),
    "falcon": ("FalconConfig", {}),
    "falcon_alibi": ("FalconConfig", {"alibi": True}),
    "mpt": ("MptConfig", {"d_model": TINY_WIDTH, "n_heads": 4, "n_layers": 4, "max_seq_len": 128}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 8}),
    "cohere": ("CohereConfig", {}),
    "cohere2": ("Cohere2Config", {"sliding_window": 8}),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3}),
    "glm4": ("Glm4Config", {"head_dim": 8}),
    "smollm3": ("SmolLM3Config", {}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": 8}),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
                                 "sliding_window": 8}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                                     "head_dim": 8}),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "mamba": ("MambaConfig", MAMBA),
    "rwkv": ("RwkvConfig", {"attention_hidden_size": TINY_WIDTH}),
    "recurrent_gemma": ("RecurrentGemmaConfig", {"lru_width": TINY_WIDTH, "attention_window_size": 8}),
}  # fmt: skip


def family_folder(family: str, folder: Path) -> Path:
    """A tiny model of a family, on disk with a tokenizer."""
    import transformers

    config, settings = FAMILIES[family]
    torch.manual_seed(5)
    made = getattr(transformers, config)(**{**SHAPE, **settings})
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


#: What keeps the attention energy from a family.
UNREAD, CAPPED, SINKS = "The queries and keys of", "a cap on scores", "attention sinks"
NO_ATTENTION = {
    **dict.fromkeys(("bloom", "gpt_neo", "falcon", "falcon_alibi", "mpt", "mamba", "rwkv", "recurrent_gemma"), UNREAD),
    "gemma2": CAPPED, "gpt_oss": SINKS,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    """Nothing in the code names these. All that applies passes; what does not is one sentence with the remedy."""
    model = load_model(str(family_folder(family, tmp_path / "model")))
    findings = by_check(check_model(model, n_tokens=24))
    assert [f"{f.check}: {f.note}" for f in findings.values() if f.outcome is Outcome.FAILED] == []
    refused = {check: f.note for check, f in findings.items() if f.outcome is Outcome.INAPPLICABLE}
    refused.pop("gradient of tuned_lens")
    refused.pop("gradient of native")
    if why := NO_ATTENTION.get(family):
        assert list(refused) == ["attention patterns", "gradient of attention"]
        for note in refused.values():
            assert why in note
            assert note.endswith("(--energies).")
    else:
        assert refused == {}


@pytest.mark.parametrize("family", ["bloom", "falcon", "gemma2", "mamba"])
def test_an_attention_that_cannot_be_read_is_refused_before_the_work(
    family: str, tmp_path: Path, small_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An ingest with that energy plans nothing, and tokenises nothing."""
    folder = family_folder(family, tmp_path / "model")
    rows = torch.randn(16, TINY_WIDTH)
    save_sae(
        SparseAutoencoder(1, 2, rows.T.contiguous(), torch.zeros(16), rows, torch.zeros(TINY_WIDTH)),
        tmp_path / "layer_1",
    )
    command = f"ingest {small_corpus} --db {tmp_path / 'x.duckdb'} --model {folder} --sae {tmp_path / 'layer_1'}"
    assert main([*command.split(), "--energies", "nll,attention", "--dtype", "float32"]) == 2
    said = capsys.readouterr().err
    assert "leave" in said.splitlines()[-1]
    assert "(--energies)." in said.splitlines()[-1]
    assert "Tokenising" not in said
