"""Fixtures: tiny language models with fixed weights, their SAEs, a small corpus, and the real default model.

What takes long to make is made by whichever worker needs it first, and found by the others.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# One seed of noise less: hypothesis must not call a busy machine a failing test.
from hypothesis import HealthCheck, settings

settings.register_profile("elw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("elw")

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "corpus"

ARCHITECTURES = ("llama", "gpt2", "gpt_neox")
TINY_LAYERS = (1, 2)
TINY_WIDTH, TINY_FEATURES, TINY_K = 32, 64, 4

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the processor's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that make(folder) fills, in the first of all workers to ask for that name; nobody may write to it."""
    place = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own below that of all
        place = place.parent
    folder, made = place / f"shared-{name}", place / f"shared-{name}.made"
    with (place / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a worker left that failed at it
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def own_copy(db: Path, factory: pytest.TempPathFactory) -> Path:
    """A warehouse's file for this worker alone: one process that writes to a file, or holds its lock, bars others."""
    return Path(shutil.copy(db, factory.mktemp("warehouse") / db.name))


@dataclass(frozen=True)
class Tiny:
    """A tiny model on disk with one SAE folder per hooked layer, and a tuned lens for them."""

    architecture: str
    folder: Path
    saes: Path
    lens: Path  #: a tuned lens of the hooked layers

    def load(self, dtype=None):
        import torch

        from energy_lens.ingest.model.loading import load_model

        return load_model(str(self.folder), dtype or torch.float32)


def _tokenizer():
    """A byte-level BPE tokenizer of 512 entries, trained on the sample corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sorted(CORPUS.glob("*/*.txt"))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def _config(architecture: str):
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig

    if architecture == "llama":
        return LlamaConfig(
            vocab_size=512, hidden_size=TINY_WIDTH, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2,
        )  # fmt: skip
    if architecture == "gpt2":
        return GPT2Config(
            vocab_size=512, n_embd=TINY_WIDTH, n_layer=4, n_head=4, n_positions=256, initializer_range=0.2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    if architecture == "energy_transformer":
        from energy_lens.ingest.model.energy_transformer import EnergyTransformerConfig, register

        register()
        return EnergyTransformerConfig(
            vocab_size=512, hidden_size=TINY_WIDTH, num_hidden_layers=4, num_attention_heads=4, head_dim=8,
            intermediate_size=64, max_position_embeddings=256, initializer_range=0.2,
        )  # fmt: skip
    return GPTNeoXConfig(
        vocab_size=512, hidden_size=TINY_WIDTH, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=256, rotary_pct=0.5, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip


def tiny_quartiles():
    """Quartiles [TINY_FEATURES, 3], in the range of the tiny SAEs' activations; every ninth feature has none."""
    import torch

    quartiles = torch.tensor([3.2, 4.0, 4.8]) * torch.linspace(0.8, 1.2, TINY_FEATURES)[:, None]
    quartiles[::9] = torch.nan
    return quartiles


def make_tiny(architecture: str, folder: Path) -> None:
    """Fill a folder with a tiny model of an architecture, its SAEs and its lens."""
    import torch
    from transformers import AutoModelForCausalLM

    from energy_lens.ingest.energies.translators import Translator, Translators, save_translators
    from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
    from energy_lens.ingest.sae.saving import save_sae

    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(_config(architecture)).save_pretrained(folder / "model")
    _tokenizer().save_pretrained(folder / "model")
    for layer in TINY_LAYERS:
        rows = torch.randn(TINY_FEATURES, TINY_WIDTH)
        rows /= rows.norm(dim=1, keepdim=True)
        sae = SparseAutoencoder(
            layer=layer, k=TINY_K, W_enc=rows.T.contiguous(), b_enc=0.05 * torch.randn(TINY_FEATURES), W_dec=rows,
            b_dec=0.1 * torch.randn(TINY_WIDTH), quartiles=tiny_quartiles(), model_name=architecture,
        )  # fmt: skip
        save_sae(sae, folder / "saes" / f"layer_{layer}")
    tilts = {layer: torch.eye(TINY_WIDTH) + 0.1 * torch.randn(TINY_WIDTH, TINY_WIDTH) for layer in TINY_LAYERS}
    maps = {layer: Translator(tilt, torch.randn(TINY_WIDTH)) for layer, tilt in tilts.items()}
    save_translators(Translators(maps, architecture, metadata={}), folder / "lens.safetensors")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """tiny("llama" | "gpt2" | "gpt_neox" | "energy_transformer"): a model folder and its SAEs, built once."""

    @functools.cache
    def found(architecture: str = "llama") -> Tiny:
        folder = made_once(tmp_path_factory, architecture, functools.partial(make_tiny, architecture))
        return Tiny(architecture, folder / "model", folder / "saes", folder / "lens.safetensors")

    return found


@pytest.fixture
def capped_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama caps its logits from now on, and its configuration does not say so."""
    from transformers import LlamaForCausalLM

    original = LlamaForCausalLM.forward

    def capped(self, *arguments, **keywords):
        output = original(self, *arguments, **keywords)
        output.logits = 2 * (output.logits / 2).tanh()
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", capped)


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of eight documents each: the smallest corpus in which every statistic is defined."""

    def make(folder: Path) -> None:
        for category in ("natural", "code"):
            (folder / category).mkdir()
            for path in sorted((CORPUS / category).glob("*.txt"))[:8]:
                (folder / category / path.name).write_text(path.read_text(encoding="utf-8")[:1500], encoding="utf-8")

    return made_once(tmp_path_factory, "corpus", make)


@pytest.fixture(scope="session")
def few_texts(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of four documents of 300 bytes: one group each."""

    def make(folder: Path) -> None:
        for category in ("code", "natural"):
            (folder / category).mkdir()
            for path in sorted((small_corpus / category).iterdir())[:4]:
                (folder / category / path.name).write_bytes(path.read_bytes()[:300])

    return made_once(tmp_path_factory, "texts", make)


@pytest.fixture
def corpus(few_texts: Path, tmp_path: Path) -> Path:
    """A copy of the few texts, to be changed."""
    return Path(shutil.copytree(few_texts, tmp_path / "texts"))


@pytest.fixture(scope="session")
def empty_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse without runs; only copy it."""
    from energy_lens.warehouse.database import Warehouse

    path = tmp_path_factory.mktemp("empty") / "elw.duckdb"
    Warehouse(path, writable=True).close()
    return path


@pytest.fixture(scope="session")
def tiny_warehouse(tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished warehouse of the tiny Llama over the small corpus, every energy, gradients stored; only read it."""

    def make(folder: Path) -> None:
        from energy_lens.ingest.energies.registry import OF_ANY_MODEL
        from energy_lens.ingest.pipeline import IngestOptions, ingest

        model = tiny("llama")
        options = IngestOptions(
            db=folder / "tiny.duckdb", model=str(model.folder), saes=(model.saes,), energies=OF_ANY_MODEL,
            lens=model.lens, context_length=32, dtype="float32", store_gradients=True,
        )  # fmt: skip
        ingest([small_corpus], options)

    return own_copy(made_once(tmp_path_factory, "tiny", make) / "tiny.duckdb", tmp_path_factory)


@pytest.fixture(scope="session")
def complete_warehouse(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny warehouse with attractors and interventions, so that every page has something to show; only read it."""

    def make(folder: Path) -> None:
        from energy_lens.analysis.attractors.run import AttractorOptions, find_attractors
        from energy_lens.analysis.interventions.options import InterventionOptions
        from energy_lens.analysis.interventions.run import intervene

        db = Path(shutil.copy(tiny_warehouse, folder))
        find_attractors(db, AttractorOptions(tokens=300, target=3.0))
        intervene(
            db,
            InterventionOptions(
                layers=(1,), features=("top:8", "random:8"), contexts=16, probes=2, shift=2, doses=(0.5, 2.0)
            ),
        )

    return own_copy(made_once(tmp_path_factory, "complete", make) / "tiny.duckdb", tmp_path_factory)


@pytest.fixture(scope="session")
def real_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M with the shipped SAEs over a part of the sample corpus: every energy, float32, gradients stored."""

    def make(folder: Path) -> None:
        from energy_lens.ingest.energies.registry import OF_ANY_MODEL
        from energy_lens.ingest.pipeline import IngestOptions, ingest

        options = IngestOptions(
            db=folder / "real.duckdb", layers=(10, 20), energies=OF_ANY_MODEL, dtype="float32",
            store_gradients=True, max_tokens=8_000,
        )  # fmt: skip
        ingest([CORPUS], options)

    return own_copy(made_once(tmp_path_factory, "real", make) / "real.duckdb", tmp_path_factory)
