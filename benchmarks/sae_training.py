"""SAE training compared: elw's trainer with the sae-lens package's, and L-BFGS with more Adam.

    python benchmarks/sae_training.py harvest TEXT... --layer 15 --tokens 500000 --work DIR
    python benchmarks/sae_training.py peer --work DIR --peer-python PYTHON
    python benchmarks/sae_training.py optimizers --work DIR

`harvest` writes the residuals of train, select and test documents to DIR once, so that every contender sees the same
tokens. `peer` trains on them with the sae-lens package, which must be installed for PYTHON (an environment of its own),
with its default learning rate and with others; then with elw, for as many tokens, as wide and as sparse. `optimizers`
compares Adam followed by L-BFGS with Adam for as long as both took, for three seeds. FVU is that of test documents.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from energy_lens.ingest.corpus import discover
from energy_lens.ingest.model.loading import DEFAULT_MODEL, load_model
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.training.activation_store import ActivationStore
from energy_lens.ingest.training.documents import cut_contexts, shuffled_contexts, split_documents
from energy_lens.ingest.training.polish import polish
from energy_lens.ingest.training.saes import POLISH_TOKENS, TrainingConfig, schedule
from energy_lens.ingest.training.trainer import StepConfig, Trainer

RESIDUALS = "residuals.safetensors"
HELD_OUT_CONTEXTS = 256

#: 3e-4 is the default of sae-lens' SAETrainerConfig.
PEER_RATES = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("harvest", "peer", "optimizers"):
        subparser = commands.add_parser(name)
        subparser.add_argument("--work", type=Path, required=True)
        subparser.add_argument("--layer", type=int, default=15)
        subparser.add_argument("--tokens", type=int, default=500_000)
        subparser.add_argument("--k", type=int, default=8)
        subparser.add_argument("--features", type=int, default=2048)
        subparser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="elw's, for scores")
    commands.choices["harvest"].add_argument("paths", nargs="+", type=Path)
    commands.choices["peer"].add_argument("--peer-python", required=True)
    arguments = parser.parse_args()
    {"harvest": harvest, "peer": peer, "optimizers": optimizers}[arguments.command](arguments)


def harvest(arguments: argparse.Namespace) -> None:
    """Residuals of included tokens by part, shuffled, in one file."""
    model = load_model(DEFAULT_MODEL, torch.bfloat16)
    parts = split_documents(discover(arguments.paths))
    config = TrainingConfig(tokens=arguments.tokens)
    contexts = shuffled_contexts(
        model, parts["train"], config.tokens, config.context_length, config.seed, config.batch_size
    )
    store = ActivationStore(arguments.work, model, contexts, [arguments.layer])
    generator = torch.Generator().manual_seed(0)

    def held_out(part: str) -> Tensor:
        part_contexts = cut_contexts(model, parts[part], config.context_length)
        return part_contexts[torch.randperm(len(part_contexts), generator=generator)[:HELD_OUT_CONTEXTS]]

    contexts_by_part = {"train": contexts, "select": held_out("select"), "test": held_out("test")}
    residuals = {name: store.harvest(ids)[arguments.layer] for name, ids in contexts_by_part.items()}
    residuals["train"] = residuals["train"][torch.randperm(len(residuals["train"]), generator=generator)]
    save_file(residuals, arguments.work / RESIDUALS)
    print({name: len(x) for name, x in residuals.items()})


def peer(arguments: argparse.Namespace) -> None:
    """sae-lens at several learning rates, and elw, on the same tokens once."""
    x = load_file(arguments.work / RESIDUALS)
    rows = []
    for rate in PEER_RATES:
        folder = arguments.work / f"saelens_{rate}"
        command = [arguments.peer_python, str(Path(__file__).parent / "saelens_trainer.py")]
        command += [str(arguments.work / RESIDUALS), str(folder), str(rate), str(arguments.k), str(arguments.features)]
        seconds = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        rows.append((f"sae-lens, learning rate {rate:g}", seconds, load_sae(folder)))
    trainer, seconds = adam(arguments, x["train"], 0, 1.0)
    rows.append((f"elw, learning rate {TrainingConfig.learning_rate:g}", seconds, trainer.finished(1.0, "")))
    print(f"{len(x['train']):,} tokens, {arguments.features} features, k = {arguments.k}, layer {arguments.layer}")
    for name, seconds, sae in rows:
        fvu, dead = fvu_and_dead_share(sae, x["test"].float())
        print(f"{name:32} FVU {fvu:.4f}  dead {dead:6.1%}  {len(x['train']) / seconds:8,.0f} tokens/s")


def optimizers(arguments: argparse.Namespace) -> None:
    """Adam and L-BFGS against Adam alone for as long."""
    x = load_file(arguments.work / RESIDUALS)
    test = x["test"].float()
    for seed in range(3):
        trainer, seconds = adam(arguments, x["train"], seed, 2.0)
        alone = fvu_and_dead_share(trainer.finished(1.0, ""), test)[0]
        polishing = timed(lambda trainer=trainer: polish(trainer, x["train"][:POLISH_TOKENS], x["select"]))  # type: ignore[misc]
        polished = fvu_and_dead_share(trainer.finished(1.0, ""), test)[0]
        longer, all_seconds = adam(arguments, x["train"], seed, 2.0 * (1 + polishing / seconds))
        print(
            f"seed {seed}: Adam {alone:.4f} in {seconds:.0f} s, then L-BFGS {polished:.4f} in {polishing:.0f} s more; "
            f"Adam alone {fvu_and_dead_share(longer.finished(1.0, ''), test)[0]:.4f} in {all_seconds:.0f} s",
            flush=True,
        )


def adam(arguments: argparse.Namespace, x: Tensor, seed: int, passes: float) -> tuple[Trainer, float]:
    """Train on x [n, d_model] for so many passes; returns the seconds too."""
    config = TrainingConfig(seed=seed)
    step = StepConfig(scores=getattr(torch, arguments.dtype))
    trainer = Trainer(arguments.layer, arguments.k, arguments.features, x[:32_768].float(), step, seed)
    generator = torch.Generator().manual_seed(seed)
    n_steps = int(passes * (len(x) // config.batch_size))

    def run() -> None:
        batches: list[Tensor] = []
        for i in range(n_steps):
            batches = batches or list(torch.randperm(len(x), generator=generator).split(config.batch_size))[:-1]
            trainer.step(x[batches.pop()], config.learning_rate * schedule((i + 0.5) / n_steps, config))

    return trainer, timed(run)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fvu_and_dead_share(sae: SparseAutoencoder, x: Tensor) -> tuple[float, float]:
    """FVU and the share of features that never fire, over x [n, d_model]."""
    error, fired = 0.0, torch.zeros(sae.d_sae, dtype=torch.bool)
    for chunk in x.split(4096):
        activations = sae.encode(chunk)
        fired[activations.indices[activations.values > 0]] = True
        error += float((chunk - sae.decode(activations, chunk)).double().square().sum())
    return error / float((x - x.mean(0)).double().square().sum()), float(1 - fired.double().mean())


if __name__ == "__main__":
    main()
