"""A run's model and SAEs in, the tables feature_logits and logit_histogram of its features out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl

from energy_lens.console import bar
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.logit_weights import summaries
from energy_lens.ingest.model.token_texts import TokenTexts
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.warehouse.database import Warehouse

#: Tokens that are told of each direction, and bins, as SAEDashboard has them.
N_TOLD, N_BINS = 10, 50


def lacking(warehouse: Warehouse, run_id: int, layer: int) -> list[int]:
    """Features of a layer that fire and have no logits yet."""
    return [feature for (feature,) in warehouse.run("cards/without_logits", run=run_id, layer=layer).fetchall()]


def fill_feature_logits(
    open_warehouse: Callable[[], Warehouse],
    run_id: int,
    load_model: Callable[[], LanguageModel],
    saes: Mapping[int, SparseAutoencoder],
) -> None:
    """Add the rows of features that have none; the model is asked for if there are such features.

    Layers whose decoder rows are not of the residual stream's width, as at hook_z, have none.
    """
    with open_warehouse() as warehouse:
        wanted = {layer: lacking(warehouse, run_id, layer) for layer in saes}
    if not any(wanted.values()):
        return
    model = load_model()
    wanted = {layer: features for layer, features in wanted.items() if saes[layer].W_dec.shape[1] == model.d_model}
    texts = TokenTexts(model.tokenizer)
    with bar("Logits", sum(map(len, wanted.values())), "feature") as progress:
        for layer, features in wanted.items():
            tokens, sizes = [], []
            rows = saes[layer].W_dec.detach()[features]
            done = 0
            for summary in summaries(model, rows, N_TOLD, N_BINS):
                n = len(summary.low)
                feature = np.array(features[done : done + n], dtype=np.int32)
                for direction, ids, logits in (
                    ("promoted", summary.top_ids, summary.top), ("suppressed", summary.bottom_ids, summary.bottom),
                ):  # fmt: skip
                    k = ids.shape[1]
                    flat = ids.reshape(-1).tolist()
                    tokens.append(
                        pl.DataFrame({
                            "feature": np.repeat(feature, k), "direction": [direction] * (n * k),
                            "place": np.tile(np.arange(1, k + 1, dtype=np.int16), n), "vocabulary_id": flat,
                            "text": [texts[vocabulary_id] for vocabulary_id in flat],
                            "logit": logits.reshape(-1),
                        }, schema_overrides={"vocabulary_id": pl.Int32})
                    )  # fmt: skip
                sizes.append(
                    pl.DataFrame({
                        "feature": feature, "low": summary.low, "high": summary.high,
                        "counts": pl.Series(summary.counts.tolist(), dtype=pl.List(pl.Int32)),
                    })
                )  # fmt: skip
                done += n
                progress.update(n)
            if features:
                _store(open_warehouse, run_id, layer, pl.concat(tokens), pl.concat(sizes))


def _store(
    open_warehouse: Callable[[], Warehouse], run_id: int, layer: int, tokens: pl.DataFrame, sizes: pl.DataFrame
) -> None:
    place = {"run_id": pl.lit(run_id), "layer": pl.lit(layer)}
    with open_warehouse() as warehouse, warehouse.transaction():
        warehouse.append("feature_logits", tokens.sort("feature", "direction", "place").with_columns(**place))
        warehouse.append("logit_histogram", sizes.with_columns(**place))
