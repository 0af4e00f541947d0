"""Energy-Lens Warehouse: token energies, energy gradients and sparse features of a language model, in DuckDB.

    from energy_lens import Warehouse

    with Warehouse("elw.duckdb") as warehouse:
        warehouse.sql("SELECT * FROM efas WHERE abs(score) > 0.7").pl()

Names are imported on first use, since polars and torch together take seconds to load and a query needs neither.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from energy_lens.version import __version__

if TYPE_CHECKING:
    from energy_lens.analyzer import EnergyLensAnalyzer, EnergyLensConfig
    from energy_lens.warehouse.database import Warehouse

# torch's threads wait for each other some thousand times per batch. By default they spin, and when another program
# wants a core they spin for as long as it runs: several times slower than sleeping. The library reads this once, when
# it is loaded; it stands here, since whichever module loads torch, this file has run before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["EnergyLensAnalyzer", "EnergyLensConfig", "Warehouse", "__version__"]

_HOMES = {
    "Warehouse": "energy_lens.warehouse.database",
    "EnergyLensAnalyzer": "energy_lens.analyzer",
    "EnergyLensConfig": "energy_lens.analyzer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
