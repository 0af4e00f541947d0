"""`elw features build`: the current run's model and SAEs in, the tables that its features' cards show out.

An ingest fills them when it finishes; this is for a run that a version without cards finished, or for logits that an
interrupted one left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from energy_lens.analysis.current_run import CurrentRun
from energy_lens.ingest.pipeline.feature_logits import fill_feature_logits
from energy_lens.ingest.statistics.cards import fill_cards
from energy_lens.warehouse.database import Warehouse, ingest_lock


@dataclass(frozen=True)
class BuiltCards:
    """What was built."""

    run_id: int
    n_features: int  #: that fire, and so have a card


def build_cards(path: Path) -> BuiltCards:
    """Fill the tables of the current run's cards anew; logits only where they are missing.

    Raises what `CurrentRun` and `load_model` raise, and LockedError while another command writes the warehouse.
    """
    current = CurrentRun(path)
    saes = {layer: current.sae(layer) for layer in current.facts.layers}
    open_warehouse = partial(Warehouse, path, writable=True, create=False)
    with ingest_lock(path, "elw features build"):
        with open_warehouse():  # brings the schema up to date before any time goes into it
            pass
        fill_cards(open_warehouse, current.run_id, {layer: sae.W_dec for layer, sae in saes.items()})
        fill_feature_logits(open_warehouse, current.run_id, current.load_model, saes)
        with open_warehouse() as warehouse:
            n_features: int = warehouse.run("cards/n_features").value()
    return BuiltCards(current.run_id, n_features)
