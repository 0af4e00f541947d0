"""What `elw ingest` can be told, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from energy_lens.errors import (
    LARGEST_COUNT,
    LONGEST_CONTEXT,
    did_you_mean,
    require,
    require_at_most,
    require_batch,
    require_seed,
)
from energy_lens.ingest.cluster import Cluster
from energy_lens.ingest.model import bos, compiling, precision
from energy_lens.ingest.model.loading import DEFAULT_MODEL, DTYPES
from energy_lens.ingest.model.window import DEFAULT_CONTEXT
from energy_lens.ingest.rows import Columns
from energy_lens.warehouse.shards import Shard
from energy_lens.warehouse.staging.places import place_at

#: Curvature probes, at most: each keeps a gradient of every token of a pass.
MOST_PROBES = 1_000


@dataclass(frozen=True)
class IngestOptions:
    """What `elw ingest` can be told."""

    db: Path = Path("elw.duckdb")
    model: str = DEFAULT_MODEL
    layers: tuple[int, ...] | None = None  #: None: those of the SAEs given, else the default ones
    saes: tuple[Path, ...] = ()  #: SAE folders; none: those shipped for the model
    energies: tuple[str, ...] = ("nll", "hopfield")  #: built-in names, or package.module:Class
    lens: Path | None = None  #: file of the tuned lens; None: the one shipped for the model
    context_length: int | None = None  #: tokens of a context; None: 128, or the fewer that the model can read
    batch_size: int = 8
    dtype: str = "auto"
    bos: str = "auto"  #: whether a BOS token stands before every context: auto, yes or no
    compile: str = "auto"  #: whether the model's blocks are fused: auto, on or off
    max_tokens: int | None = None  #: stop at the first group end at or after so many tokens of the run
    seed: int = 0
    store_gradients: bool = False
    probes: int = 0  #: curvature probes, for attribution_curvature
    new_run: bool = False  #: start afresh although a run with equal settings exists
    just_these: bool = False  #: the run holds the documents at hand and no others: one that does, else a new one
    exclude: tuple[str, ...] = ()  #: shell patterns of files to leave out
    columns: Columns = field(default_factory=Columns)  #: of tables: which holds what
    cluster: Cluster | None = None  #: whose workers compute groups; None: this process does
    plan_only: bool = False  #: plan and calibrate, and compute no group
    shard: Shard | None = None  #: compute the groups of this part of the plan alone
    stage: str | None = None  #: folder or URL to write finished groups to, in place of the warehouse

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be carried out."""
        length = self.context_length
        require(length is None or length >= 4, f"--context is {length}; at least 4 tokens are needed.")
        require_at_most("--context", length or 0, LONGEST_CONTEXT)
        require_batch(self.batch_size, length or DEFAULT_CONTEXT)
        max_tokens = self.max_tokens
        require(max_tokens is None or max_tokens >= 1, f"--max-tokens is {max_tokens}; it must be positive.")
        require_at_most("--max-tokens", max_tokens or 0, LARGEST_COUNT)
        require(self.probes >= 0, f"--probes is {self.probes}; it must not be negative.")
        require_at_most("--probes", self.probes, MOST_PROBES)
        require(
            not self.probes or "nll" in self.energies,
            "--probes measure the curvature of nll, which is not among the energies; add it (--energies).",
        )
        require_seed(self.seed)
        words = (("--bos", self.bos, bos.CHOICES), ("--compile", self.compile, compiling.CHOICES))
        for option, word, choices in words:
            require(word in choices, f"{option} is {word!r}{did_you_mean(word, choices)}; choose {', '.join(choices)}.")
        near = did_you_mean(self.dtype, precision.CHOICES)
        require(
            self.dtype in precision.CHOICES, f"--dtype is {self.dtype!r}{near}; choose auto, {' or '.join(DTYPES)}."
        )
        require(
            not (self.plan_only and self.shard),
            "--plan-only and --shard are two wishes: plan once, then run each shard on a copy of the warehouse.",
        )
        require(
            not (self.shard and self.new_run and not self.shard.is_whole),
            "--shard with --new-run would begin a run anew in every shard: begin it with --plan-only --new-run.",
        )

        if self.stage is not None:
            place_at(self.stage)

    @property
    def finishes(self) -> bool:
        """Whether statistics are of all that is asked for, and so are made when the groups are there."""
        return not (self.plan_only or self.stage or (self.shard and not self.shard.is_whole))
