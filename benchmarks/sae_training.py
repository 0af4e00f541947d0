"""SAE training compared: elw's trainer with the sae-lens package's, and L-BFGS with more Adam; and SAEs that vary.

    python benchmarks/sae_training.py harvest TEXT... --layers 15,20 --tokens 500000 --work DIR
    python benchmarks/sae_training.py peer --layers 15,20 --work DIR --peer-python PYTHON
    python benchmarks/sae_training.py optimizers --work DIR
    python benchmarks/sae_training.py variants --work DIR --output DIR

`harvest` writes the residuals of train, select and test documents to DIR once, so that every contender sees the same
tokens. `peer` trains on them with the sae-lens package, which must be installed for PYTHON (an environment of its own):
with its own settings, with the learning rate and then the window of its dead features chosen on select documents at the
first layer and first seed, and, if asked, with elw's learning-rate schedule; then with elw, for as many tokens, as wide
and as sparse; for every layer and seed. `optimizers` compares Adam followed by L-BFGS with Adam for as long as both
took, for three seeds. `variants` trains SAEs by elw's recipe that differ in one thing each (seed, k, width), for
studies of what depends on the SAE. FVU is that of test documents. `harvest`, `peer` and `variants` go on where they
were stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from energy_lens.ingest.contexts import Ids
from energy_lens.ingest.corpus import discover
from energy_lens.ingest.model.loading import DEFAULT_MODEL, DTYPES
from energy_lens.ingest.model.precision import load_in
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.ingest.training.activation_store import ActivationStore
from energy_lens.ingest.training.documents import cut_contexts, shuffled_contexts, split_documents
from energy_lens.ingest.training.polish import polish
from energy_lens.ingest.training.saes import (
    POLISH_TOKENS,
    QUARTILE_TOKENS,
    TrainingConfig,
    active_quartiles,
    schedule,
)
from energy_lens.ingest.training.trainer import StepConfig, Trainer
from energy_lens.warehouse.files import whole

RESIDUALS = "residuals_{}.safetensors"  # by layer
HELD_OUT = "held_out.safetensors"
HELD_OUT_CONTEXTS = 256

#: Contexts that are harvested before they are kept on disk: what a harvest that is stopped loses at most.
ROUND_CONTEXTS = 256

#: 3e-4 is the default of sae-lens' SAETrainerConfig.
PEER_RATES = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)

#: Steps without a single activation after which sae-lens counts a feature as dead: its default, which a training of 500
#: steps does not reach, and two that it does. elw's 50,000 tokens are 49 steps of 1,024.
PEER_WINDOW, PEER_WINDOWS = 1000, (50, 100)


@dataclass(frozen=True)
class PeerSettings:
    """What differs between trainings by sae-lens."""

    learning_rate: float = PEER_RATES[0]
    dead_feature_window: int = PEER_WINDOW  #: in steps
    scheduled: bool = False  #: warm-up and decay as elw's; its default is a constant rate

    @property
    def name(self) -> str:
        kind = ", warm-up and decay" if self.scheduled else ""
        return f"sae-lens, rate {self.learning_rate:g}, window {self.dead_feature_window}{kind}"


@dataclass(frozen=True)
class Outcome:
    """One training, by its name, layer and seed."""

    name: str
    layer: int
    seed: int
    select_fvu: float
    fvu: float  #: on test documents
    dead: float  #: share of features that never fire on test documents
    tokens_per_second: float
    auxiliary_steps: int | None = None  #: steps at which the auxiliary loss had dead features to act on, of sae-lens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("harvest", "peer", "optimizers", "variants"):
        subparser = commands.add_parser(name)
        subparser.add_argument("--work", type=Path, required=True)
        subparser.add_argument("--layers", type=_numbers, default=[15])
        subparser.add_argument("--k", type=int, default=8)
        subparser.add_argument("--features", type=int, default=2048)
    harvesting, comparing = commands.choices["harvest"], commands.choices["peer"]
    harvesting.add_argument("paths", nargs="+", type=Path)
    harvesting.add_argument("--tokens", type=int, default=500_000)
    harvesting.add_argument(
        "--rounds", type=int, help="of 32,768 tokens; the same command with more goes on from there"
    )
    harvesting.add_argument(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="the model's, and that of elw's scores; auto: faster"
    )
    comparing.add_argument("--peer-python", required=True)
    comparing.add_argument("--seeds", type=_numbers, default=[0, 1, 2])
    comparing.add_argument("--passes", type=int, default=1)
    comparing.add_argument("--rates", type=_floats, default=PEER_RATES, help="learning rates to choose from")
    comparing.add_argument("--windows", type=_numbers, default=PEER_WINDOWS, help="dead-feature windows to choose from")
    comparing.add_argument("--scheduled", action="store_true", help="sae-lens with elw's warm-up and decay too")
    varying = commands.choices["variants"]
    varying.add_argument("--output", type=Path, required=True)
    varying.add_argument("--passes", type=int, default=TrainingConfig.passes)
    arguments = parser.parse_args()
    commands_by_name = {"harvest": harvest, "peer": peer, "optimizers": optimizers, "variants": variants}
    commands_by_name[arguments.command](arguments)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _floats(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def harvest(arguments: argparse.Namespace) -> None:
    """Residuals of included tokens by layer and part, shuffled, one file a layer."""
    model = load_in(DEFAULT_MODEL, arguments.dtype, layer=max(arguments.layers))
    dtype = model.dtype
    parts = split_documents(discover(arguments.paths))
    config = TrainingConfig(tokens=arguments.tokens)
    contexts = shuffled_contexts(
        model, parts["train"], config.tokens, config.context_length, config.seed, config.batch_size
    )
    store = ActivationStore(arguments.work, model, contexts, arguments.layers, ROUND_CONTEXTS)
    generator = torch.Generator().manual_seed(0)

    def held_out(part: str) -> list[Ids]:
        part_contexts = cut_contexts(model, parts[part], config.context_length)
        order = torch.randperm(len(part_contexts), generator=generator)[:HELD_OUT_CONTEXTS].tolist()
        return [part_contexts[i] for i in order]

    contexts_by_part = {name: held_out(name) for name in ("select", "test")}
    if not (arguments.work / HELD_OUT).exists():
        by_part = {name: store.harvest(ids) for name, ids in contexts_by_part.items()}
        tensors = {f"{name}.{layer}": x for name, by_layer in by_part.items() for layer, x in by_layer.items()}
        with whole(arguments.work / HELD_OUT) as (scratch,):
            save_file(tensors, scratch)
    rounds = range(min(len(store), arguments.rounds or len(store)))
    for index in rounds:
        store.round(index)
        print(f"round {index + 1} of {len(rounds)}", flush=True)
    held_out_residuals = load_file(arguments.work / HELD_OUT)
    for layer in arguments.layers:
        train = torch.cat([store.round(index)[layer] for index in rounds])
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        residuals = {"train": train[order]} | {name: held_out_residuals[f"{name}.{layer}"] for name in contexts_by_part}
        about = {"norm_median": str(store.norm_medians[layer]), "dtype": str(dtype), "model_name": model.name}
        save_file(residuals, arguments.work / RESIDUALS.format(layer), about)
        print(layer, {name: len(x) for name, x in residuals.items()})


# ------------------------------------------------------------------------------------------------ beside sae-lens


def peer(arguments: argparse.Namespace) -> None:
    """sae-lens with several settings, and elw, on the same tokens; settings are chosen on select documents."""
    default = PeerSettings()

    def best(candidates: Sequence[PeerSettings]) -> PeerSettings:
        """By select documents, at the first layer and seed."""
        outcomes = list(saelens(arguments, candidates, arguments.layers[:1], arguments.seeds[:1]))
        for outcome in outcomes:
            print(f"choosing: {outcome.name:54} FVU on select {outcome.select_fvu:.4f}, test {outcome.fvu:.4f}")
        return min(zip(outcomes, candidates, strict=True), key=lambda pair: pair[0].select_fvu)[1]

    tuned = best([PeerSettings(rate) for rate in arguments.rates])
    short = best([replace(tuned, dead_feature_window=window) for window in arguments.windows])
    settings = [default, replace(default, dead_feature_window=short.dead_feature_window), tuned, short]
    settings += [replace(short, scheduled=True)] if arguments.scheduled else []
    for layer in arguments.layers:
        outcomes = list(saelens(arguments, settings, [layer], arguments.seeds))
        outcomes += [elw(arguments, layer, seed) for seed in arguments.seeds]
        print(f"layer {layer}, seeds {arguments.seeds}, {arguments.features} features, k = {arguments.k}; mean (range)")
        for name in dict.fromkeys(outcome.name for outcome in outcomes):
            same = [outcome for outcome in outcomes if outcome.name == name]
            fvus = [outcome.fvu for outcome in same]
            print(
                f"{name:54} FVU {fmean(fvus):.4f} ({min(fvus):.4f} to {max(fvus):.4f})"
                f"  dead {fmean(outcome.dead for outcome in same):6.1%}"
                f"  {fmean(outcome.tokens_per_second for outcome in same):8,.0f} tokens/s"
                f"  steps with auxiliary loss {[outcome.auxiliary_steps for outcome in same]}",
                flush=True,
            )


def saelens(
    arguments: argparse.Namespace, settings: Sequence[PeerSettings], layers: Sequence[int], seeds: Sequence[int]
) -> Iterator[Outcome]:
    """Train what is not there yet, in one process of the other environment, which takes a while to start."""
    config = TrainingConfig()
    runs = []
    for layer in layers:
        path = arguments.work / RESIDUALS.format(layer)
        n_steps = arguments.passes * (shape(path, "train")[0] // config.batch_size)
        for setting in settings:
            for seed in seeds:
                folder = f"layer_{layer}_seed_{seed}_{setting.name.removeprefix('sae-lens, ')}"
                share = {"warm_up_steps": config.warmup_share, "decay_steps": config.decay_share}
                steps = {name: round(part * n_steps) if setting.scheduled else 0 for name, part in share.items()}
                run = {
                    "residuals": str(path), "output": str(arguments.work / "saelens" / folder.replace(", ", "_")),
                    "layer": layer, "seed": seed, "passes": arguments.passes, "k": arguments.k,
                    "d_sae": arguments.features,
                    "learning_rate": setting.learning_rate, "dead_feature_window": setting.dead_feature_window, **steps,
                }  # fmt: skip
                runs.append((setting, run))
    command = [arguments.peer_python, str(Path(__file__).parent / "saelens_trainer.py")]
    if not all((Path(run["output"]) / "run.json").exists() for _, run in runs):
        lines = "\n".join(json.dumps(run) for _, run in runs)
        quiet = os.environ | {"TQDM_DISABLE": "1"}
        subprocess.run(command, input=lines, check=True, text=True, stdout=subprocess.DEVNULL, env=quiet)
    for setting, run in runs:
        yield outcome_of(setting.name, Path(run["output"]), run["layer"], run["seed"], Path(run["residuals"]))


def elw(arguments: argparse.Namespace, layer: int, seed: int) -> Outcome:
    """One training by elw, unless it is there."""
    path = arguments.work / RESIDUALS.format(layer)
    folder = arguments.work / "elw" / f"layer_{layer}_seed_{seed}"
    if not (folder / "run.json").exists():
        trainer, seconds = adam(path, layer, arguments.k, arguments.features, seed, arguments.passes)
        save_sae(trainer.finished(1.0, DEFAULT_MODEL), folder)
        n_steps = arguments.passes * (shape(path, "train")[0] // TrainingConfig.batch_size)
        (folder / "run.json").write_text(json.dumps({"seconds": seconds, "steps": n_steps}), encoding="utf-8")
    return outcome_of(f"elw, rate {TrainingConfig.learning_rate:g}", folder, layer, seed, path)


def outcome_of(name: str, folder: Path, layer: int, seed: int, residuals: Path) -> Outcome:
    """Figures of a trained SAE on held-out residuals."""
    sae = load_sae(folder)
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    speed = run["steps"] * TrainingConfig.batch_size / run["seconds"]
    select_fvu, _ = fvu_and_dead_share(sae, part(residuals, "select").float())
    fvu, dead = fvu_and_dead_share(sae, part(residuals, "test").float())
    return Outcome(name, layer, seed, select_fvu, fvu, dead, speed, run.get("auxiliary_steps"))


# ------------------------------------------------------------------------------------------------ elw alone


def optimizers(arguments: argparse.Namespace) -> None:
    """Adam and L-BFGS against Adam alone for as long."""
    layer, k, features = arguments.layers[0], arguments.k, arguments.features
    path = arguments.work / RESIDUALS.format(layer)
    x = load_file(path)
    test = x["test"].float()
    for seed in range(3):
        trainer, seconds = adam(path, layer, k, features, seed, 2.0)
        alone = fvu_and_dead_share(trainer.finished(1.0, ""), test)[0]
        polishing = timed(lambda trainer=trainer: polish(trainer, x["train"][:POLISH_TOKENS], x["select"]))  # type: ignore[misc]
        polished = fvu_and_dead_share(trainer.finished(1.0, ""), test)[0]
        longer, all_seconds = adam(path, layer, k, features, seed, 2.0 * (1 + polishing / seconds))
        print(
            f"seed {seed}: Adam {alone:.4f} in {seconds:.0f} s, then L-BFGS {polished:.4f} in {polishing:.0f} s more; "
            f"Adam alone {fvu_and_dead_share(longer.finished(1.0, ''), test)[0]:.4f} in {all_seconds:.0f} s",
            flush=True,
        )


def variants(arguments: argparse.Namespace) -> None:
    """SAEs by elw's recipe, over the same tokens, that differ in one thing each; saved for an ingest."""
    layer, k, features = arguments.layers[0], arguments.k, arguments.features
    path = arguments.work / RESIDUALS.format(layer)
    variants_by_name = {
        "seed0": (k, features, 0), "seed1": (k, features, 1), "k32": (4 * k, features, 0), "wide": (k, 4 * features, 0),
    }  # fmt: skip
    train, test = part(path, "train"), part(path, "test").float()
    for name, (n_active, width, seed) in variants_by_name.items():
        folder = arguments.output / name / f"layer_{layer}"
        if not folder.exists():
            trainer, seconds = adam(path, layer, n_active, width, seed, arguments.passes)
            about = metadata(path)
            sae = trainer.finished(float(about["norm_median"]), about["model_name"])
            sae.quartiles = active_quartiles(sae, train[:QUARTILE_TOKENS])
            config = TrainingConfig(d_sae=width, ks=(n_active,), tokens=len(train), passes=arguments.passes, seed=seed)
            settings = {key: value for key, value in asdict(config).items() if key != "ks"}
            sae.metadata["training"] = {**settings, "k": n_active, "dtype": about["dtype"].removeprefix("torch.")}
            save_sae(sae, folder)
            print(f"{name} trained in {seconds:.0f} s", flush=True)
        fvu, dead = fvu_and_dead_share(load_sae(folder), test)
        print(f"{name:6} k = {n_active:2}, {width} features, seed {seed}: FVU {fvu:.4f}, dead {dead:.1%}", flush=True)


def adam(residuals: Path, layer: int, k: int, features: int, seed: int, passes: float) -> tuple[Trainer, float]:
    """Train on the residuals of a file for so many passes; returns the seconds too."""
    x = part(residuals, "train")
    config = TrainingConfig(seed=seed)
    # As in `train_saes`: the model's precision was chosen because the machine is faster with it.
    step = StepConfig(scores=getattr(torch, metadata(residuals)["dtype"].removeprefix("torch.")))
    trainer = Trainer(layer, k, features, x[:32_768].float(), step, seed)
    generator = torch.Generator().manual_seed(seed)
    n_steps = int(passes * (len(x) // config.batch_size))

    def run() -> None:
        batches: list[Tensor] = []
        for i in range(n_steps):
            batches = batches or list(torch.randperm(len(x), generator=generator).split(config.batch_size))[:-1]
            trainer.step(x[batches.pop()], config.learning_rate * schedule((i + 0.5) / n_steps, config))

    return trainer, timed(run)


# ------------------------------------------------------------------------------------------------ measuring


def part(residuals: Path, name: str) -> Tensor:
    """[n, d_model] bfloat16 of train, select or test documents."""
    with safe_open(residuals, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def shape(residuals: Path, name: str) -> tuple[int, ...]:
    """Of a part, which is not read."""
    with safe_open(residuals, "pt") as file:
        return tuple(file.get_slice(name).get_shape())


def metadata(residuals: Path) -> dict[str, str]:
    """norm_median, dtype and model_name of a harvest."""
    with safe_open(residuals, "pt") as file:
        about: dict[str, str] = file.metadata()
    return about


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
