"""A corpus and a model in, trained SAEs out: for several layers, and several k, at once, from one pass of the model.

1. Documents are split by content hash into train, select and test, in every category alike. Test documents decide
   nothing; select documents decide which L-BFGS rounds are kept.
2. Contexts of the training documents, in seeded order, run through the model, here or by workers (`rounds_ahead`); the
   residuals of all layers are kept on disk in rounds (`activation_store`). They are cut as an ingest cuts them, and the
   tokens that an ingest excludes (first and last of a context, special ones, massive norms) are left out.
3. Round by round, shuffled, each SAE takes `passes` passes of Adam steps (`trainer`) on x·s, where s makes the
   mean norm √d_model.
4. With optimizer "lbfgs" the decoder, encoder and biases are polished by L-BFGS (`polish`).
5. s is folded back: activations are in residual units, decoder rows keep unit norm.
6. Quartiles of each feature's active values and held-out figures are measured and stored with the weights.

A checkpoint follows every round, so that the same call goes on from the last one and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from energy_lens.errors import (
    LARGEST_COUNT,
    LONGEST_CONTEXT,
    ElwError,
    UsageError,
    did_you_mean,
    require,
    require_at_most,
    require_seed,
)
from energy_lens.ingest.cluster import Cluster, connected
from energy_lens.ingest.contexts import parts_of
from energy_lens.ingest.corpus import Document
from energy_lens.ingest.model.configuration import check_window
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import weight_bytes
from energy_lens.ingest.model.sites import POINTS, READ_ONLY, RESID_POST
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.evaluation import EvaluationOptions, evaluate
from energy_lens.ingest.training.activation_store import ActivationStore
from energy_lens.ingest.training.documents import cut_contexts, shuffled_contexts, split_documents
from energy_lens.ingest.training.polish import polish
from energy_lens.ingest.training.rounds_ahead import rounds_of
from energy_lens.ingest.training.trainer import StepConfig, Trainer
from energy_lens.warehouse.files import whole

#: Tokens on which an SAE's quartiles are taken, and those on which L-BFGS works and is judged.
QUARTILE_TOKENS, POLISH_TOKENS, SELECT_TOKENS = 200_000, 131_072, 32_768

#: Test tokens on which FVU and dead features are measured, and those on which the loss is.
TEST_TOKENS, LOSS_TOKENS = 100_000, 16_000

#: Active values from which a feature's quartiles are taken, at least.
MIN_ACTIVE = 40

#: What helps where there is too little text.
REMEDY = "give more text, or a smaller --batch-size"

#: Features of an SAE, at most: beyond what is trained anywhere, and what a machine without a cluster holds.
MOST_FEATURES = 2**20

#: Adam's steps are as long as its learning rate, in units where a residual's entries are about 1.
HIGHEST_LEARNING_RATE = 1.0

#: Times that a token is trained on, at most.
MOST_PASSES = 10_000

CHECKPOINT = "checkpoint.safetensors"
OPTIMIZERS = ("adam", "lbfgs")
TRAINED_ARCHITECTURES = ("topk", "batchtopk")


@dataclass(frozen=True)
class TrainingConfig:
    """What a training depends on, apart from model, layers and documents."""

    d_sae: int = 2048  #: features
    ks: tuple[int, ...] = (8,)  #: active features per token; one SAE a layer for each
    architecture: str = "topk"  #: or "batchtopk": k is the mean of a batch; saved as jumprelu
    optimizer: str = "adam"  #: or "lbfgs": Adam, then L-BFGS
    tokens: int = 2_000_000  #: distinct tokens to train on, or all there are
    passes: int = 2  #: times that each round of tokens is trained on
    batch_size: int = 1024  #: tokens per step
    learning_rate: float = 2e-3  #: of Adam at its highest
    warmup_share: float = 0.02  #: of the steps, linear from 0
    decay_share: float = 0.25  #: of the steps, linear to 0
    auxiliary: float = 1 / 32  #: weight of the dead features' loss
    dead_after: int = 50_000  #: a feature that has not fired for so many tokens counts as dead
    round_contexts: int = 2048  #: contexts that are shuffled together and kept on disk at once
    context_length: int = 128
    point: str = RESID_POST  #: where in each block, of sites.POINTS
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.d_sae >= 1, f"--features is {self.d_sae}; at least 1 is needed.")
        require_at_most("--features", self.d_sae, MOST_FEATURES)
        require(bool(self.ks), "--k is missing; name at least one.")
        require(len(set(self.ks)) == len(self.ks), f"--k is {self.ks}; the same is named twice.")
        for k in self.ks:
            features = f"the number of features, {self.d_sae} (--features)"
            require(1 <= k <= self.d_sae, f"--k is {k}; it must lie between 1 and {features}.")
        for option, name, known in (
            ("--architecture", self.architecture, TRAINED_ARCHITECTURES), ("--optimizer", self.optimizer, OPTIMIZERS)
        ):  # fmt: skip
            require(name in known, f"{option} is {name!r}{did_you_mean(name, known)}; choose {' or '.join(known)}.")
        for option, number in (("--batch-size", self.batch_size), ("--passes", self.passes)):
            require(number >= 1, f"{option} is {number}; it must be positive.")
        require_at_most("--passes", self.passes, MOST_PASSES)
        rate = self.learning_rate
        require(0 < rate < math.inf, f"--learning-rate is {rate}; it must be positive and finite.")
        require_at_most("--learning-rate", rate, HIGHEST_LEARNING_RATE)
        require(self.context_length >= 3, f"--context is {self.context_length}; at least 3 tokens are needed.")
        require_at_most("--context", self.context_length, LONGEST_CONTEXT)
        points = [point for point in POINTS if point not in READ_ONLY]
        near = did_you_mean(self.point, points)
        require(self.point in points, f"--hook-point is {self.point!r}{near}; choose {', '.join(points)}.")
        require_seed(self.seed)
        most = self.round_contexts * (self.context_length - 2) // 2
        require(
            self.batch_size <= most,
            f"--batch-size is {self.batch_size:,}; at most {most:,} tokens are possible, since two steps must fit in a "
            f"round of {self.round_contexts:,} contexts of {self.context_length:,} tokens.",
        )
        require(
            self.tokens >= self.batch_size,
            f"--tokens is {self.tokens}, less than one step of {self.batch_size}: train on more.",
        )
        require_at_most("--tokens", self.tokens, LARGEST_COUNT)


@dataclass
class Progress:
    """State of a training."""

    share: float  #: of the whole training
    tokens: int  #: trained on since this call began, passes counted
    seconds: float  #: since this call began
    fvu: dict[tuple[int, int], float]  #: by layer and k, on the latest batches
    dead_share: dict[tuple[int, int], float]
    note: str = ""  #: what is done at the moment, where that is not training


@dataclass
class _Training:
    """One call of `train_saes`."""

    model: LanguageModel
    layers: Sequence[int]
    config: TrainingConfig
    store: ActivationStore
    folder: Path
    on_progress: Callable[[Progress], None]
    remedy: str
    trainers: list[Trainer] = field(default_factory=list)
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def run(self, round_of: Callable[[int], Mapping[int, Tensor]]) -> None:
        """Adam over all rounds, from the last checkpoint on.

        round_of: gives a round's residuals by layer, [token, width].
        """
        self._say(0, f"harvesting round 1 of {len(self.store)}")
        first = round_of(0)
        config = self.config
        if (n_tokens := self.store.n_tokens(0)) < config.batch_size:
            raise UsageError(
                f"Of the first round's tokens {n_tokens:,} are no outliers in norm, less than a step of "
                f"{config.batch_size:,}: {self.remedy}."
            )
        # bfloat16 is worth its rounding only where the machine is faster with it: the model's precision was chosen so.
        step = StepConfig(config.architecture, config.auxiliary, config.dead_after, self.model.dtype)
        self.trainers = [
            Trainer(layer, k, config.d_sae, first[layer][:32_768].float(), step, config.seed)
            for k in config.ks
            for layer in self.layers
        ]
        for index in range(self._restore(), len(self.store)):
            self._say(index, f"harvesting round {index + 1} of {len(self.store)}")
            residuals = round_of(index)
            for n_pass in range(config.passes):
                self._train(residuals, index, n_pass)
                self._check_finite()
            self._save(index + 1)
            # What begins after this many tokens does not serve once more at the end.
            if sum(map(self.store.n_tokens, range(index))) >= max(QUARTILE_TOKENS, POLISH_TOKENS):
                self.store.drop(index)

    def _train(self, residuals: Mapping[int, Tensor], index: int, n_pass: int) -> None:
        """One pass over a round."""
        config = self.config
        n_tokens = len(residuals[self.layers[0]])
        generator = torch.Generator().manual_seed((config.seed * 100_003 + index) * 101 + n_pass)
        order = torch.randperm(n_tokens, generator=generator)
        batches = order[: n_tokens // config.batch_size * config.batch_size].split(config.batch_size)
        for i, batch in enumerate(batches):
            within = (n_pass + (i + 0.5) / len(batches)) / config.passes
            share = (index + within) / len(self.store)
            for layer in self.layers:
                x = residuals[layer][batch]
                for trainer in self.trainers:
                    if trainer.layer == layer:
                        trainer.step(x, config.learning_rate * schedule(share, config))
            self.tokens += len(batch)
            if i % 20 == 19 or i == len(batches) - 1:
                self._say(share)

    def _check_finite(self) -> None:
        """Raises ElwError when a training has run away, before a checkpoint keeps that."""
        for trainer in self.trainers:
            if not all(bool(tensor.isfinite().all()) for tensor in trainer.state.values()):
                raise ElwError(
                    f"The training of the SAE of layer {trainer.layer} with k = {trainer.k} ran away to numbers that "
                    f"are not finite: remove {self.folder}, and take a smaller --learning-rate."
                )

    def _say(self, share: float, note: str = "") -> None:
        fvu = {(trainer.layer, trainer.k): trainer.fvu for trainer in self.trainers}
        dead = {(trainer.layer, trainer.k): trainer.dead_share for trainer in self.trainers}
        share = share / len(self.store) if note else share
        self.on_progress(Progress(share, self.tokens, time.monotonic() - self.started, fvu, dead, note))

    # -- checkpoints

    @property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps([asdict(self.config), list(self.layers)]).encode()).hexdigest()

    def _save(self, n_rounds: int) -> None:
        """Keep the state after so many rounds."""
        from safetensors.torch import save_file

        tensors = {f"{t.layer}.{t.k}.{name}": tensor for t in self.trainers for name, tensor in t.state.items()}
        try:
            with whole(self.folder / CHECKPOINT) as (scratch,):
                save_file(tensors, scratch, {"settings": self._digest, "rounds": str(n_rounds)})
        except (OSError, SafetensorError) as error:
            raise ElwError(
                f"{self.folder} cannot be written ({error}): make room; the same command goes on from the round before."
            ) from error

    def _restore(self) -> int:
        """Go back to the last checkpoint; returns the number of rounds that it had seen."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return 0
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
                if about["settings"] != self._digest:
                    raise UsageError(
                        f"{self.folder} holds a training with other settings: give the same again, or remove it."
                    )
                for trainer in self.trainers:
                    trainer.restore(
                        {name: file.get_tensor(f"{trainer.layer}.{trainer.k}.{name}") for name in trainer.state}
                    )
                return int(about["rounds"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UsageError(f"{path} is damaged ({error}): remove it to start again.") from error


def train_saes(
    model: LanguageModel,
    documents: Sequence[Document],
    layers: Sequence[int],
    config: TrainingConfig,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
    held_out: EvaluationOptions | None = None,
    remedy: str = REMEDY,
    cluster: Cluster | None = None,
) -> list[SparseAutoencoder]:
    """Train one SAE per k and layer, in that order; each carries its held-out figures in `metadata`.

    folder: for residuals and checkpoints; the caller removes it when the SAEs are saved.
    held_out: how they are measured on test documents; None: FVU on many tokens, losses on fewer, which take longer.
    remedy: what helps where there is too little text.
    cluster: whose workers harvest; None: this process does. The residuals are the same.
    Raises UsageError for layers that the model lacks, a corpus that is too short, or a folder of another training.
    """
    model.check_layers(layers)
    check_window(model.name, model.window, config.context_length)
    layers = list(dict.fromkeys(layers))
    parts = split_documents(documents)
    with ExitStack() as stack:
        connection = None if cluster is None else stack.enter_context(connected(cluster, weight_bytes(model.name)))
        contexts = shuffled_contexts(
            model, parts["train"], config.tokens, config.context_length, config.seed, config.batch_size, remedy
        )
        store = ActivationStore(folder, model, contexts, layers, config.round_contexts, point=config.point)
        training = _Training(model, layers, config, store, folder, on_progress, remedy)
        training.run(stack.enter_context(rounds_of(store, connection)))
    polished = _polish(training, parts["select"]) if config.optimizer == "lbfgs" else {}
    saes = [trainer.finished(store.norm_medians[trainer.layer], model.name) for trainer in training.trainers]
    training._say(len(store), "measuring quartiles")
    add_quartiles(saes, store)
    training._say(len(store), "measuring held-out figures")
    settings = {name: value for name, value in asdict(config).items() if name != "ks"}
    settings["dtype"] = str(model.dtype).removeprefix("torch.")
    for sae, trainer in zip(saes, training.trainers, strict=True):
        sae.bos, sae.point = model.bos is not None, config.point
        sae.metadata |= {
            "training": {**settings, "k": trainer.k, "tokens": sum(map(store.n_tokens, range(len(store))))},
            "documents": {name: [document.sha256[:16] for document in part] for name, part in parts.items()},
            "test_documents": [document.path for document in parts["test"]],
        }
        if rounds := polished.get((trainer.layer, trainer.k)):
            sae.metadata["lbfgs_select_fvu"] = rounds
    if parts["test"]:
        options = held_out or EvaluationOptions(
            TEST_TOKENS, config.context_length, seed=config.seed, ce_tokens=LOSS_TOKENS
        )
        for sae, evaluation in zip(saes, evaluate(model, saes, parts["test"], options), strict=True):
            sae.metadata |= evaluation.metadata()
    return saes


def schedule(share: float, config: TrainingConfig) -> float:
    """Warm-up and decay: the learning rate's factor after `share` of the steps."""
    up = share / config.warmup_share if config.warmup_share else 1.0
    down = (1 - share) / config.decay_share if config.decay_share else 1.0
    return min(1.0, up, down)


def _polish(training: _Training, select: Sequence[Document]) -> dict[tuple[int, int], list[float]]:
    """L-BFGS on every SAE; by layer and k, FVU on select before and after each kept round."""
    config, model = training.config, training.model
    contexts = cut_contexts(model, select, config.context_length)
    held_out = training.store.harvest(parts_of(contexts, SELECT_TOKENS)[0]) if contexts else {}
    if not contexts or not len(held_out[training.layers[0]]):
        raise UsageError("L-BFGS needs select documents, 3 in a category: give more, or --optimizer adam.")
    figures = {}
    for trainer in training.trainers:
        training._say(len(training.store), f"L-BFGS at layer {trainer.layer}, k = {trainer.k}")
        sample = _sample(training.store, trainer.layer, POLISH_TOKENS)
        figures[trainer.layer, trainer.k] = polish(trainer, sample, held_out[trainer.layer])
    return figures


def _sample(store: ActivationStore, layer: int, n: int) -> Tensor:
    """[n, d_model] residuals of the first rounds, or all there are of them."""
    parts: list[Tensor] = []
    for index in range(len(store)):
        parts.append(store.round(index)[layer][: n - sum(map(len, parts))])
        if sum(map(len, parts)) >= n:
            break
    return torch.cat(parts)


def add_quartiles(saes: Sequence[SparseAutoencoder], store: ActivationStore) -> None:
    """Quartiles of each feature's active values over training tokens; NaN where it fired too rarely."""
    for sae in saes:
        sae.quartiles = active_quartiles(sae, _sample(store, sae.layer, QUARTILE_TOKENS))


def active_quartiles(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """[d_sae, 3] quartiles of each feature's active values over x [n, d_model]; NaN where it fired too rarely."""
    pieces = []
    for chunk in x.split(4096):
        values, indices = sae.encode(chunk.float())
        pieces.append((values[values > 0], indices[values > 0]))
    values, indices = (torch.cat(part) for part in zip(*pieces, strict=True))
    quartiles = torch.full((sae.d_sae, 3), math.nan)
    order = indices.argsort()
    counts = torch.bincount(indices, minlength=sae.d_sae).tolist()
    for feature, active_values in enumerate(values[order].split(counts)):
        if len(active_values) >= MIN_ACTIVE:
            quartiles[feature] = active_values.quantile(torch.tensor([0.25, 0.5, 0.75]))
    return quartiles
