"""Numbers beyond what can be worked with: one sentence that names the option, before any work, nothing left behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from energy_lens.analysis.attractors.doses import DoseOptions
from energy_lens.analysis.attractors.run import AttractorOptions
from energy_lens.analysis.interventions.edits import LARGEST_VALUE, Edit
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.analysis.permutation_inputs import PermutationOptions
from energy_lens.cli.main import main
from energy_lens.errors import LARGEST_SEED, UsageError, require_batch, require_seed
from energy_lens.ingest.pipeline import IngestOptions
from energy_lens.ingest.sae.evaluation import EvaluationOptions
from energy_lens.ingest.training.lenses import FitOptions
from energy_lens.ingest.training.missing import MissingSaes
from energy_lens.ingest.training.saes import TrainingConfig
from energy_lens.tests.conftest import Tiny

HUGE = "1" + "0" * 30
SEEDS = ("-1", str(2**32), str(2**63), str(2**64), HUGE)

#: By command, each option with numbers that it cannot be; what is said names the option.
HOSTILE = {
    "ingest": {
        "--seed": SEEDS, "--batch-size": ("0", "-1", "100000000", HUGE), "--context": ("-1", "3", "32768", HUGE),
        "--max-tokens": ("0", "-1", HUGE), "--probes": ("-1", "100000000", HUGE), "--layers": ("-1", "99", HUGE, "x"),
    },
    "ingest --train-saes": {"--sae-tokens": ("0", "-1", HUGE)},
    "sae train": {
        "--seed": SEEDS, "--batch-size": ("0", "-1", "100000000", HUGE), "--context": ("-1", "2", "32768", HUGE),
        "--tokens": ("0", "-1", HUGE), "--features": ("0", "-1", "100000000", HUGE), "--k": ("0", "-1", "9999", HUGE),
        "--passes": ("0", "-1", HUGE), "--layers": ("-1", "99", HUGE),
        "--learning-rate": ("0", "-1", "nan", "inf", "-inf", "1e30", "1e39", "1e308", "1.5"),
    },
    "sae evaluate": {
        "--seed": SEEDS, "--batch-size": ("0", "-1", "100000000", HUGE), "--context": ("-1", "3", "32768", HUGE),
        "--max-tokens": ("-1", HUGE), "--ce-tokens": ("-1", HUGE), "--layers": ("-1", "99", HUGE),
    },
    "lens train": {
        "--seed": SEEDS, "--context": ("-1", "3", "32768", HUGE), "--tokens": ("0", "-1", HUGE),
        "--layers": ("-1", "99", HUGE),
    },
    "energy-model train": {
        "--seed": SEEDS, "--batch-size": ("0", "-1", "100000000", HUGE), "--context": ("-1", "3", "32768", HUGE),
        "--tokens": ("0", "-1", HUGE), "--width": ("0", "-1", "20", "100000000", HUGE), "--steps": ("0", "-1", HUGE),
        "--heads": ("0", "-1", "3", HUGE), "--memories": ("0", "-1", HUGE), "--vocabulary": ("0", "256", "65537", HUGE),
        "--learning-rate": ("0", "-1", "nan", "inf", "-inf", "1e30", "1.5"),
        "--weight-decay": ("-0.1", "nan", "inf", "2"),
    },
    "attractors": {
        "--seed": SEEDS, "--tokens": ("0", "-1", "15", HUGE), "--layer": ("-1", "99", HUGE),
        "--perplexity": ("0", "1", "-1", "nan", "inf", "-inf", "1e9", "1e39", "1e308"),
    },
    "attractors dose": {"--seed": SEEDS, "--tokens": ("0", "-1", HUGE)},
    "intervene": {
        "--seed": SEEDS, "--batch-size": ("0", "-1", "100000000", HUGE), "--contexts": ("0", "-1", HUGE),
        "--probes": ("-1", "100000000", HUGE), "--directions": ("-1", "100000000", HUGE),
        "--path": ("-1", "100000000", HUGE), "--shift": ("-1", "100000000", HUGE), "--layer": ("-1", "99", HUGE),
        "--dose": (
            "", "x", "0,0.5,2", "-1,0.5,2", "nan,0.5,2", "inf,0.5,2", f"0.5,2,{HUGE}", "1e-30,0.5,2", "1", "0.5",
            "0.5,1,0.5", ",".join(map(str, range(2, 35))),
        ),
        "--features": (f"top:{HUGE}", f"random:{HUGE}", "1:99999", f"1:{HUGE}", "top:-1", "99:1"),
    },
    "intervene --kind scale": {"--value": ("nan", "inf", "-inf", "1e39", "-1e39", "1e308")},
    "intervene try": {"--tokens": ("-1", "100000000", HUGE), "--feature": ("1:99999", f"1:{HUGE}", "99:1", "-1:1")},
    "efas test": {
        "--seed": SEEDS, "--permutations": ("0", "-1", "18", "100000000", HUGE), "--contexts": ("0", "-1", HUGE),
        "--layer": ("-1", "99", HUGE),
    },
    "efas replay-draft": {"--seed": SEEDS, "--repetitions": ("0", "-1", "100000000", HUGE), "--layers": ("99", HUGE)},
    "export --format saebench": {"--contexts": ("0", "-1", HUGE)},
    "model check": {"--tokens": ("-1", "0", "7", "100000000", HUGE)},
    "sae import": {
        "--layer": ("-1", HUGE), "--activation-scale": ("0", "-1", "nan", "inf", "1e39", "1e-39", "1e308"),
    },
}  # fmt: skip

#: What is said of the options by another name than they are typed by.
ALSO_SAID = {
    "--layers": ("layer",), "--layer": ("layer", "block"), "--features": ("feature", "layer"),
    "--feature": ("feature", "layer"), "--activation-scale": ("activation scale",),
}  # fmt: skip


def digest(folder: Path) -> str:
    """Of the names and contents of all that is below a folder."""
    files = sorted(path for path in folder.rglob("*"))
    parts = [f"{path}{hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''}" for path in files]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


@pytest.mark.parametrize("command", list(HOSTILE))
def test_numbers_that_cannot_be_are_one_sentence_before_any_work(
    command: str, tiny: Callable[[str], Tiny], tiny_warehouse: Path, small_corpus: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = tiny("llama")
    corpus, on_model, saes = str(small_corpus), ("--model", str(model.folder)), ("--sae", str(model.saes))
    output, stored = str(tmp_path / "output"), ("--db", str(tiny_warehouse))
    rest = {
        "ingest": (corpus, *on_model, *saes, "--db", str(tmp_path / "new.duckdb")),
        "sae train": (corpus, *on_model, "--layers", "1", "--output", output),
        "sae evaluate": (corpus, *on_model, *saes),
        "energy-model train": (corpus, "--output", output),
        "lens train": (corpus, *on_model, "--layers", "1", "--output", output),
        "attractors": stored,
        "attractors dose": ("1:1", *stored),
        "intervene": stored,
        "intervene try": ("Some text to try.", *stored),
        "efas test": stored,
        "efas replay-draft": (*on_model, *saes),
        "export": (output, *stored),
        "model check": (str(model.folder),),
        "sae import": (str(model.saes / "layer_1"), *on_model, "--output", output),
    }[command.partition(" --")[0]]
    if command == "intervene try":
        rest = (*rest, "--feature", "1:1")
    if command.endswith("--train-saes"):
        rest = (corpus, *on_model, "--layers", "1", "--db", str(tmp_path / "new.duckdb"))
    monkeypatch.chdir(tmp_path)
    before = digest(tmp_path), digest(tiny_warehouse.parent)
    for option, values in HOSTILE[command].items():
        for value in values:
            words = [*command.split(), *rest, f"{option}={value}"]
            code = main(words)
            said = capsys.readouterr()
            assert code == 2, (words, said)
            assert not said.out, words
            assert "Unexpected" not in said.err, words
            lines = said.err.strip().splitlines()
            assert len(lines) == 1 or all(not line.startswith("elw:") for line in lines[:-1]), (words, said.err)
            assert any(name in lines[-1] for name in (option, *ALSO_SAID.get(option, ()))), (words, said.err)
            assert digest(tmp_path) == before[0], words
    assert digest(tiny_warehouse.parent) == before[1]


@pytest.mark.parametrize("command", ["attractors", "intervene"])
def test_more_rows_than_there_are_is_all_of_them(
    command: str, tiny_warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A listing's length is no number that can be too large, above all not after the work."""
    db = tmp_path / "copy.duckdb"
    db.write_bytes(tiny_warehouse.read_bytes())
    few = ["--tokens", "64"] if command == "attractors" else ["--features", "1:1", "--contexts", "2", "--probes", "0"]
    assert main([command, "--db", str(db), "--layer", "1", *few, "--rows", HUGE]) == 0
    assert "Unexpected" not in capsys.readouterr().err


def test_the_largest_numbers_that_can_be_are_taken() -> None:
    """Each limit stands where the option does: what is at it passes."""
    IngestOptions(seed=LARGEST_SEED, batch_size=8_192, max_tokens=10**12, probes=1_000)
    IngestOptions(context_length=32_767, batch_size=32)
    TrainingConfig(seed=LARGEST_SEED, learning_rate=1.0, d_sae=2**20, tokens=10**12)
    EvaluationOptions(seed=LARGEST_SEED, batch_size=8_192)
    FitOptions(seed=LARGEST_SEED, tokens=10**12)
    MissingSaes(tokens=10**12)
    InterventionOptions(edit=Edit("scale", LARGEST_VALUE), seed=LARGEST_SEED, batch_size=8_192)
    AttractorOptions(seed=LARGEST_SEED, target=999_999.0)
    DoseOptions(1, 1, seed=LARGEST_SEED)
    PermutationOptions(seed=LARGEST_SEED, permutations=1_000_000)


def test_every_generator_takes_the_largest_seed() -> None:
    """As it is multiplied and added to on its way."""
    import numpy as np
    import torch

    from energy_lens.analysis.attractors.network import random_rows
    from energy_lens.ingest.energies.curvature import probe_generator
    from energy_lens.ingest.training.trainer import StepConfig, Trainer

    torch.Generator().manual_seed((LARGEST_SEED * 100_003 + 10**6) * 101 + 10_000)  # training.saes
    Trainer(200, 1, 4, torch.randn(8, 3), StepConfig(), LARGEST_SEED)
    np.random.default_rng([LARGEST_SEED, 200]).permutation(3)
    random_rows(torch.randn(4, 3), LARGEST_SEED)
    probe_generator(LARGEST_SEED, 2**31)


@pytest.mark.parametrize("context_length", [1, 4, 128, 32_767])
def test_a_pass_has_a_largest_size(context_length: int) -> None:
    most = max(n for n in range(2**20 // context_length + 1))
    require_batch(most, context_length)
    for batch_size in (0, most + 1):
        with pytest.raises(UsageError, match=f"--batch-size is {batch_size:,}; at (least|most)"):
            require_batch(batch_size, context_length)
    with pytest.raises(UsageError, match="at most 4,294,967,295 is possible"):
        require_seed(LARGEST_SEED + 1)
