"""What `elw ingest` can be told, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from energy_lens.errors import require
from energy_lens.ingest.model import bos, compiling, precision
from energy_lens.ingest.model.loading import DEFAULT_MODEL, DTYPES
from energy_lens.ingest.rows import Columns


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
    exclude: tuple[str, ...] = ()  #: shell patterns of files to leave out
    columns: Columns = field(default_factory=Columns)  #: of tables: which holds what

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be carried out."""
        length, batch_size = self.context_length, self.batch_size
        require(length is None or length >= 4, f"--context is {length}; at least 4 tokens are needed.")
        require(length is None or length <= 32_767, f"--context is {length}; at most 32,767 tokens are possible.")
        require(batch_size >= 1, f"--batch-size is {batch_size}; at least 1 context is needed.")
        max_tokens = self.max_tokens
        require(max_tokens is None or max_tokens >= 1, f"--max-tokens is {max_tokens}; it must be positive.")
        require(self.probes >= 0, f"--probes is {self.probes}; it must not be negative.")
        require(
            not self.probes or "nll" in self.energies,
            "--probes measure the curvature of nll, which is not among the energies; add it (--energies).",
        )
        require(self.seed >= 0, f"--seed is {self.seed}; it must not be negative.")
        words = (("--bos", self.bos, bos.CHOICES), ("--compile", self.compile, compiling.CHOICES))
        for option, word, choices in words:
            require(word in choices, f"{option} is {word!r}; choose {', '.join(choices)}.")
        require(self.dtype in precision.CHOICES, f"--dtype is {self.dtype!r}; choose auto, {' or '.join(DTYPES)}.")
