"""Stored energies in; how each is distributed over tokens, by layer and category, and sums of losses out."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.ingest.statistics.strata import RunLayout
from energy_lens.ingest.statistics.tokens import Tokens
from energy_lens.warehouse.database import Warehouse

#: Columns of layer_energies that are quantiles.
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def fill_energy_sizes(
    warehouse: Warehouse, run: RunLayout, tokens: Tokens, included: Mapping[int, NDArray[np.bool_]]
) -> None:
    """Fill layer_energies and layer_losses. included: layer: [token]. Call within a transaction."""
    categories = run.partitions[1]
    document = run.contexts.document[tokens.context]
    of_tokens = categories.of_documents[document]
    distributions, losses = [], []
    for energy, layer, is_loss in warehouse.run("finish/energies_read", run=run.run_id).fetchall():
        stored = warehouse.run("finish/energies", run=run.run_id, energy=energy, layer=layer).numpy()
        place, value = tokens.places(stored["token_id"]), stored["value"].astype(np.float64)
        kl = np.ma.filled(np.ma.asarray(stored["kl_to_output"]).astype(np.float64), np.nan)
        stratum = of_tokens[place]
        order = np.argsort(stratum, kind="stable")
        bounds = np.flatnonzero(np.diff(stratum[order], prepend=-1, append=-1))
        parts: list[tuple[str | None, slice | NDArray[np.int64]]] = [(None, slice(None))]
        parts += [
            (categories.strata[stratum[order[start]]].category, order[start:stop]) for start, stop in pairwise(bounds)
        ]
        for category, chosen in parts:
            of_part = value[chosen]
            quantiles = np.quantile(of_part, list(QUANTILES.values()))
            known = kl[chosen][~np.isnan(kl[chosen])]
            distributions.append(
                {
                    "run_id": run.run_id, "energy": energy, "layer": layer, "category": category,
                    "n_tokens": len(of_part), "mean": of_part.mean(), "sd": of_part.std(),
                    **dict(zip(QUANTILES, quantiles, strict=True)),
                    "kl_to_output": known.mean() if len(known) else None,
                }
            )  # fmt: skip
        if is_loss:
            for hooked in run.layers if layer is None else [layer]:
                total = float(value[included[hooked][place]].sum())
                losses.append({"run_id": run.run_id, "energy": energy, "layer": hooked, "total": total})
    types = {"layer": pl.Int16, "category": pl.String, "kl_to_output": pl.Float64}
    if distributions:
        warehouse.append("layer_energies", pl.DataFrame(distributions, schema_overrides=types))
    if losses:
        warehouse.append("layer_losses", pl.DataFrame(losses))
