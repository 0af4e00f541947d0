"""What `elw intervene` can be told, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field

from energy_lens.analysis.interventions.choosing import SCORES
from energy_lens.analysis.interventions.controls import CONTROLS
from energy_lens.analysis.interventions.edits import Edit
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
from energy_lens.ingest.model.precision import CHOICES
from energy_lens.ingest.model.window import DEFAULT_CONTEXT

#: Passes, or directions, that are taken for each patch, at most.
MOST = 1_000

#: Doses, at most, beside at least FEWEST_DOSES: two points and the edit itself show whether they lie on a line.
MOST_DOSES, FEWEST_DOSES = 32, 2

#: Doses lie between these.
SMALLEST_DOSE, LARGEST_DOSE = 1e-6, 1e6


@dataclass(frozen=True)
class InterventionOptions:
    """The options of `elw intervene`, where they are not on the command line by their defaults."""

    edit: Edit = field(default_factory=lambda: Edit("ablate"))
    layers: tuple[int, ...] | None = None  #: None: all of the run, or those of the listed features
    features: tuple[str, ...] = ("top:25", "random:25")  #: top:N, random:N, LAYER:FEATURE, class:NAME
    by: str = "attribution"  #: one of SCORES, of nll
    contexts: int = 96
    probes: int = 3
    directions: int = 1  #: control directions of each kind
    controls: tuple[str, ...] = CONTROLS  #: their kinds, of CONTROLS
    path_points: int = 0
    hessian: bool = False
    shift: int = 0  #: later tokens of each patch at which attractors of later layers are read; 0: none are
    doses: tuple[float, ...] = ()  #: by which each patch's change is multiplied, to measure it again; 1 adds nothing
    dtype: str = "float32"
    batch_size: int = 16
    seed: int = 0
    cluster: Cluster | None = None  #: whose workers measure; None: this process does

    @property
    def control_kinds(self) -> list[str]:
        """Kinds of control directions that are measured, in the order of their numbers."""
        return [kind for kind in CONTROLS if kind in self.controls and self.directions]

    @property
    def other_doses(self) -> list[float]:
        """Doses beside 1, which is the edit itself; ascending, none twice."""
        return sorted(set(self.doses) - {1.0})

    def __post_init__(self) -> None:
        """Raises UsageError for a value that is out of range."""
        require(self.by in SCORES, f"--by is {self.by!r}{did_you_mean(self.by, SCORES)}; choose {', '.join(SCORES)}.")
        unknown = [kind for kind in self.controls if kind not in CONTROLS]
        near = did_you_mean(unknown[0], CONTROLS) if unknown else ""
        require(
            not unknown, f"--controls does not know {', '.join(unknown)}{near}; choose among {', '.join(CONTROLS)}."
        )
        require(bool(self.controls), "--controls names no kind; leave controls out with --directions 0.")
        require(self.contexts >= 1, f"--contexts is {self.contexts}; at least 1 is needed.")
        require_at_most("--contexts", self.contexts, LARGEST_COUNT)
        require_batch(self.batch_size, DEFAULT_CONTEXT, "patch")
        require(
            self.dtype in CHOICES,
            f"--dtype is {self.dtype!r}{did_you_mean(self.dtype, CHOICES)}; choose {', '.join(CHOICES)}.",
        )
        counts = {
            "--probes": (self.probes, MOST), "--directions": (self.directions, MOST),
            "--path": (self.path_points, MOST), "--shift": (self.shift, LONGEST_CONTEXT),
        }  # fmt: skip
        for option, (count, most) in counts.items():
            require(count >= 0, f"{option} is {count}; it must not be negative.")
            require_at_most(option, count, most)
        self._require_doses()
        require_seed(self.seed)

    def _require_doses(self) -> None:
        between = f"doses lie between {SMALLEST_DOSE:g} and {LARGEST_DOSE:g}"
        for dose in self.doses:
            require(SMALLEST_DOSE <= dose <= LARGEST_DOSE, f"--dose has {dose:g}; {between}.")
        n = len(self.other_doses)
        require(
            not self.doses or n >= FEWEST_DOSES,
            f"--dose has {n} beside 1, which is measured anyway; an exponent takes at least {FEWEST_DOSES} others, "
            "as in --dose 0.25,0.5,2.",
        )
        require(n <= MOST_DOSES, f"--dose has {n} beside 1; at most {MOST_DOSES} are possible.")
