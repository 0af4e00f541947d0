"""Documents in, a trained small language model out: an energy transformer, or a plain transformer of equal size.

1. Documents are split by content hash into train, select and test, in every category alike (`documents`). A tokenizer
   is learnt on train, and all three become streams of ids (`energy_model_text`), kept in the training's folder.
2. AdamW on windows of the train stream, whose order follows from seed and step alone; gradients are clipped, and the
   learning rate warms up linearly and follows half a cosine down.
3. The loss on a fixed part of select goes into the loss curve on the way; it decides nothing.
4. The loss of test, by category, per token and per byte (`energy_model_evaluation`).

A checkpoint with the optimizer's state is written, whole or not at all, at rows of the loss curve: the same call goes
on from the last one, and ends with the same numbers as one that was never stopped, bit by bit on the same machine.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.corpus import Document
from energy_lens.ingest.model.configuration import check_window
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.training.documents import split_documents
from energy_lens.ingest.training.energy_model_evaluation import HeldOut, held_out, mean_loss_of, spread_contexts
from energy_lens.ingest.training.energy_model_loss import mean_loss
from energy_lens.ingest.training.energy_model_sizes import EnergyModelOptions, untrained
from energy_lens.ingest.training.energy_model_text import Stream, learn_tokenizer, write_stream
from energy_lens.warehouse.files import whole

#: Rows of a loss curve, and every which of them has a loss on select documents.
ROWS, MEASURED = 200, 5

#: Tokens of the select documents on which that is measured.
SELECT_TOKENS = 16_384

#: Contexts of test documents that are handed on with a model, for a look at what it does with them.
TEST_CONTEXTS = 32

#: Seconds between checkpoints, at least: losing that much is cheaper than writing more often.
CHECKPOINT_SECONDS = 30.0

#: Norm to which the gradient of all parameters together is cut.
LARGEST_GRADIENT = 1.0

#: Decay of AdamW's two moments: the second shorter than its default, since batches are small.
MOMENTS = (0.9, 0.95)

#: Step sizes and temperatures are learnt as logarithms. Weights are of the order of 0.1 and logarithms of 1, so that
#: at the rate of weights they hardly leave where they began.
RATE_OF_LOGARITHMS = 2.0

#: Matrices that all steps share move less: each step moves by what one of them moved, and what all memories have in
#: common adds up. At the embedding's rate a model was at 6.5 nats a token after 0.2 million, and at 5.9 with this.
RATE_OF_LANDSCAPE = 0.3

CHECKPOINT, CURVE, TOKENIZER = "checkpoint.safetensors", "loss.jsonl", "tokenizer"


@dataclass
class Progress:
    """State of a training."""

    share: float
    train_loss: float | None = None  #: mean over the latest row of the curve, nats a token
    select_loss: float | None = None
    note: str = ""  #: what is done at the moment, where that is not training


@dataclass
class Trained:
    """What came of a training."""

    module: Any  #: of transformers, float32
    tokenizer: Any
    options: EnergyModelOptions
    curve: list[dict[str, Any]]  #: rows of the loss curve
    held_out: HeldOut | None  #: None: no document was held out
    test_contexts: Tensor | None  #: ids [context, position] of test documents, of full length; None: there are none
    documents: dict[str, list[Document]]  #: by part
    train_tokens: int  #: of the train stream, seen several times or in part
    seconds: float  #: of training, over all calls
    began_from: str | None  #: sha256 of the weights that it began from


@dataclass
class BegunFrom:
    """A model that is trained further."""

    module: Any  #: of transformers, float32
    tokenizer: Any
    sha256: str  #: of its weights
    is_plain: bool


@dataclass
class _Training:
    """One call of `train_energy_model`."""

    module: Any
    options: EnergyModelOptions
    train: Stream
    select: Stream
    folder: Path
    digest: str
    on_progress: Callable[[Progress], None]
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        named = dict(self.module.named_parameters())  # without the tied unembedding, which is the embedding
        self.parameters: dict[str, nn.Parameter] = named
        logs = {name for name in named if name.rpartition(".")[2].startswith("log_")}
        shared = {name for name, parameter in named.items() if ".landscape." in name and parameter.dim() >= 2}
        matrices = {name for name, parameter in named.items() if parameter.dim() >= 2} - shared
        groups = [
            {"params": [named[name] for name in named if name in of], "weight_decay": decay, "rate": rate}
            for of, decay, rate in (
                (matrices, self.options.weight_decay, 1.0),
                (shared, self.options.weight_decay, RATE_OF_LANDSCAPE),
                (set(named) - matrices - shared - logs, 0.0, 1.0),
                (logs, 0.0, RATE_OF_LOGARITHMS),
            )
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=0.0, betas=MOMENTS, fused=True
        )
        for parameter in named.values():  # made now, so that a checkpoint can be read into them
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors that a later step depends on, by name; not copies."""
        moments = {
            f"{name}:{key}": tensor
            for name, parameter in self.parameters.items()
            for key, tensor in self.optimizer.state[parameter].items()
        }
        return {name: parameter.detach() for name, parameter in self.parameters.items()} | moments

    def run(self) -> None:
        """From the last checkpoint to the end."""
        options = self.options
        row_steps = max(1, options.n_steps // ROWS)
        first = self._restore()
        saved, began = time.monotonic(), time.monotonic() - self.seconds
        losses: list[float] = []
        self.module.train()
        for step in range(first, options.n_steps):
            losses.append(self._step(step))
            is_last = step + 1 == options.n_steps
            if (step + 1) % row_steps and not is_last:
                continue
            self._note(step + 1, sum(losses) / len(losses), is_last)
            losses.clear()
            self.seconds = time.monotonic() - began
            if is_last or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._save(step + 1)
                saved = time.monotonic()

    def _step(self, step: int) -> float:
        options = self.options
        ids = torch.from_numpy(self.train.batch(step, options.batch_size, options.context_length, options.seed))
        with self._precision():
            loss = loss_of(self.module, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), LARGEST_GRADIENT)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate_at(step) * group["rate"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _precision(self) -> AbstractContextManager[Any]:
        coarse = self.options.dtype == "bfloat16"
        return torch.autocast("cpu", dtype=torch.bfloat16) if coarse else nullcontext()

    def _note(self, n_steps: int, train_loss: float, is_last: bool) -> None:
        """A row of the curve. Raises ElwError when the training has run away, before a checkpoint keeps that."""
        if not torch.tensor(train_loss).isfinite():
            raise ElwError(
                f"The training ran away to numbers that are not finite: remove {self.folder}, and take a smaller "
                "--learning-rate."
            )
        measured = is_last or (len(self.curve) + 1) % MEASURED == 0
        row = {
            "step": n_steps,
            "tokens": n_steps * self.options.step_tokens,
            "train_nats_per_token": round(train_loss, 5),
            "select_nats_per_token": round(self._select_loss(), 5) if measured and len(self.select) else None,
            "learning_rate": round(self.options.learning_rate_at(n_steps - 1), 8),
        }
        self.curve.append(row)
        seen = [entry["select_nats_per_token"] for entry in self.curve if entry["select_nats_per_token"] is not None]
        self.on_progress(Progress(n_steps / self.options.n_steps, train_loss, seen[-1] if seen else None))

    def _select_loss(self) -> float:
        self.module.eval()
        loss = mean_loss_of(self.module, self.select, self.options.context_length, SELECT_TOKENS)
        self.module.train()
        return loss

    # -- checkpoints

    def _save(self, n_steps: int) -> None:
        from safetensors.torch import save_file

        about = {
            "settings": self.digest, "steps": str(n_steps), "seconds": str(self.seconds),
            "curve": json.dumps(self.curve),
        }  # fmt: skip
        try:
            with whole(self.folder / CHECKPOINT) as (scratch,):
                save_file({name: tensor.contiguous() for name, tensor in self.state.items()}, scratch, about)
        except (OSError, SafetensorError) as error:
            raise ElwError(
                f"{self.folder} cannot be written ({error}): make room; the same command goes on from the last "
                "checkpoint."
            ) from error

    @torch.no_grad()
    def _restore(self) -> int:
        """Go back to the last checkpoint; returns the number of steps that it had seen."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return 0
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
                if about["settings"] != self.digest:
                    raise UsageError(
                        f"{self.folder} holds a training with other settings or documents: give the same again, or "
                        "remove it."
                    )
                for name, tensor in self.state.items():
                    tensor.copy_(file.get_tensor(name))
                self.curve, self.seconds = json.loads(about["curve"]), float(about["seconds"])
                return int(about["steps"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UsageError(f"{path} is damaged ({error}): remove it to start again.") from error


def loss_of(module: Any, ids: Tensor) -> Tensor:
    """The mean loss of a causal model of transformers over ids [context, position + 1], the first of them given."""
    hidden = module.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return mean_loss(hidden.flatten(0, 1).float(), module.get_output_embeddings().weight, ids[:, 1:].flatten())


def train_energy_model(
    documents: Sequence[Document],
    options: EnergyModelOptions,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
    begin: BegunFrom | None = None,
) -> Trained:
    """Train a small language model on documents; measure it on those that are held out.

    folder: for the tokenizer, the ids and checkpoints; the caller removes it when the model is saved.
    begin: a model that is trained further, with a new optimizer, instead of one from scratch.
    Raises UsageError for too little text, or a folder of another training.
    """
    parts = split_documents(documents)
    n_bytes = sum(document.n_bytes for document in parts["train"])
    if n_bytes < options.step_tokens:  # a token is at least a byte: this needs no tokenizer
        raise _too_little(f"{n_bytes:,} bytes", options)
    on_progress(Progress(0, note="Learning a tokenizer"))
    began_from = None if begin is None else begin.sha256
    tokenizer = _tokenizer(parts, options.vocabulary, folder) if begin is None else begin.tokenizer
    streams = {
        name: write_stream(part, tokenizer, folder / f"{name}.ids", f"Tokenise {name}") for name, part in parts.items()
    }
    if streams["train"].n_windows(options.context_length) < options.batch_size:
        raise _too_little(f"{len(streams['train']):,} tokens", options)
    module = begin.module if begin else untrained(options, len(tokenizer), tokenizer.eos_token_id)
    digest = _digest([asdict(options), began_from], parts)
    training = _Training(module, options, streams["train"], streams["select"], folder, digest, on_progress)
    training.run()
    on_progress(Progress(1.0, note="Measuring held-out losses"))
    module.eval()
    figures = held_out(module, tokenizer, parts["test"], streams["test"], options.context_length)
    test = spread_contexts(streams["test"], options.context_length, TEST_CONTEXTS)
    return Trained(
        module, tokenizer, options, training.curve, figures, None if test is None else torch.from_numpy(test), parts,
        len(streams["train"]), training.seconds, began_from,
    )  # fmt: skip


def _too_little(held: str, options: EnergyModelOptions) -> UsageError:
    return UsageError(
        f"The training documents hold {held}, and a step reads {options.step_tokens:,} tokens: give more text, or a "
        "smaller --batch-size or --context."
    )


def begun_from(folder: Path, context_length: int) -> BegunFrom:
    """A model that this package trained, to be trained further on contexts of that length.

    Raises UsageError for a folder that holds no model, one of another making, or one with fewer positions.
    """
    model = load_model(str(folder))
    kind = model.config.model_type
    plain = kind == "llama"
    if kind != "energy_transformer" and not plain:
        raise UsageError(f"{folder} holds a model of type {kind}: --init takes one that elw energy-model train wrote.")
    check_window(model.name, model.window, context_length)
    if model.tokenizer.eos_token_id is None:
        raise UsageError(f"The tokenizer in {folder} knows no end of text: --init takes a model of this command.")
    module: Any = model.module
    module.requires_grad_(True)
    module.set_attn_implementation("sdpa")
    return BegunFrom(module, model.tokenizer, model.sha256, plain)


def _tokenizer(parts: dict[str, list[Document]], n_entries: int, folder: Path) -> Any:
    """Learnt once on the train documents, then kept in a training's folder."""
    from transformers import AutoTokenizer

    place, mark = folder / TOKENIZER, folder / f"{TOKENIZER}.of"
    digest = _digest(n_entries, parts)
    if mark.exists():
        if mark.read_text(encoding="ascii") != digest:
            raise UsageError(
                f"{folder} holds a training with another --vocabulary or other documents: give the same again, or "
                "remove it."
            )
    else:
        learn_tokenizer(parts["train"], n_entries).save_pretrained(place)
        with whole(mark) as (scratch,):  # last: what was left half-written is written again
            scratch.write_text(digest, encoding="ascii")
    return AutoTokenizer.from_pretrained(place)


def _digest(settings: object, parts: dict[str, list[Document]]) -> str:
    """Of settings and the documents that they are for."""
    hashes = {name: [document.sha256 for document in part] for name, part in parts.items()}
    return hashlib.sha256(json.dumps([settings, hashes]).encode()).hexdigest()
