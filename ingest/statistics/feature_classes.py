"""Concept classes of features: classes of tokens and activations in, how much each feature keeps to each class out.

Enrichment alone would call nearly every feature enriched in something, and a good part still with another document's
labels. So a feature belongs to a class when

  1. it goes with the class within contexts: the within-context test, the class indicator in place of g and 1 where the
     feature is active in place of a, has q < MAX_Q over the features of the layer and class;
  2. its log odds ratio is at least MIN_LOG_ODDS;
  3. at least MIN_SHARE of its active tokens are in the class, or RARE_SHARE for the rare ones;
  4. on at least MIN_DOCUMENTS documents.

Of several classes the one with the largest log odds counts. All of it is done once more with the labels of the row's
next context, which is another document: the share of features that get a class there is the rule's own false-positive
rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import hypergeom

from energy_lens.ingest.statistics.significance import (
    MIN_MATES,
    MIN_TEST_CONTEXTS,
    MIN_TEST_DOCUMENTS,
    MIN_TEST_TOKENS,
    known_q,
    two_sided_p,
)
from energy_lens.ingest.token_classes import CLASSES, token_classes
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_Q, MIN_LOG_ODDS, MIN_DOCUMENTS = 0.05, math.log(4), 5
MIN_SHARE, RARE_SHARE = 0.5, 0.05

#: Classes of so few tokens that a feature for them may have most of its activations elsewhere.
RARE = ("regex", "number")


#: Whose labels a token gets.
LABELS = ("own", "mates")


class Grid(NamedTuple):
    """Tokens of a layer, context by context; contexts of a row of the plan share its lanes."""

    label: NDArray[np.int8]  #: [context, position] place in CLASSES, −1 where there is no included token
    included: NDArray[np.bool_]  #: [context, position]
    row: Integers  #: [context] rows numbered from 0, ascending
    lane: Integers  #: [context]
    document: Integers  #: [context]


class Active(NamedTuple):
    """Active features at included tokens, as places in a Grid, sorted by feature, context and position."""

    feature: Integers
    context: Integers
    position: Integers


def class_tokens(warehouse: Warehouse, run_id: int, context_length: int) -> None:
    """Give a class to tokens that were stored without one. Call within a transaction."""
    frame = warehouse.run("classes/unclassed", run=run_id, context_length=context_length).pl()
    if frame.is_empty():
        return
    named = [
        of_context.with_columns(pl.Series("class", token_classes(of_context["text"].to_list())))
        for of_context in frame.partition_by("context_id", maintain_order=True)
    ]
    warehouse.run("classes/create_named")
    warehouse.append("named_tokens", pl.concat(named).select("token_id", "class"))
    warehouse.run("classes/update_tokens", run=run_id)
    warehouse.run("classes/drop_named")


def fill_feature_classes(warehouse: Warehouse, run_id: int, layer: int, context_length: int, d_sae: int) -> None:
    """Replace feature_classes of a layer. Call within a transaction."""
    place = {"run": run_id, "layer": layer, "context_length": context_length}
    tokens = warehouse.run("classes/tokens", **place).numpy()
    active = warehouse.run("classes/active", run=run_id, layer=layer).numpy()
    if not len(tokens["token_id"]) or not len(active["token_id"]):
        return
    grid, context_of = _grid(tokens, context_length)
    at = Active(
        active["feature"].astype(np.int64), context_of(active["token_id"]),
        (active["token_id"] % context_length).astype(np.int64),
    )  # fmt: skip
    for frame in class_statistics(grid, at, d_sae):
        warehouse.append("feature_classes", frame.with_columns(run_id=pl.lit(run_id), layer=pl.lit(layer)))


def _grid(tokens: Mapping[str, NDArray], context_length: int):  # type: ignore[type-arg,no-untyped-def]
    """The grid of a layer's included tokens, and what finds the place of a token's context."""
    ids, first, context = np.unique(tokens["token_id"] // context_length, return_index=True, return_inverse=True)
    position = tokens["token_id"] % context_length
    label = np.full((len(ids), context_length), -1, dtype=np.int8)
    label[context, position] = tokens["class_code"]
    _, row = np.unique(tokens["row_number"][first], return_inverse=True)
    grid = Grid(label, label >= 0, row, tokens["lane"][first].astype(np.int64), tokens["document_id"][first])
    return grid, lambda token_ids: np.searchsorted(ids, token_ids // context_length)


# ------------------------------------------------------------------------------------------------ statistics


def class_statistics(grid: Grid, active: Active, d_sae: int) -> Iterator[pl.DataFrame]:
    """Rows of feature_classes without run and layer: a frame for each kind of labels."""
    n_contexts = len(grid.row)
    following = _following(grid)
    # Sums of a feature in a context are taken over this code, by which the activations are sorted.
    code_of = active.feature * n_contexts + active.context
    begins = np.diff(code_of, prepend=-1) != 0
    cells, cell = code_of[begins], np.cumsum(begins) - 1
    cell_feature, cell_context = cells // n_contexts, cells % n_contexts
    mates, null_mates = _mates(grid, following)
    counted = grid.included & (mates >= MIN_MATES)
    is_counted = counted[active.context, active.position]
    counted_cells = np.bincount(cell, weights=is_counted, minlength=len(cells)) > 0
    n_counted = np.bincount(active.feature, weights=is_counted, minlength=d_sae)
    n_counted_contexts = np.bincount(cell_feature[counted_cells], minlength=d_sae)
    n_counted_documents = _documents_of(cell_feature[counted_cells], grid.document[cell_context[counted_cells]], d_sae)
    testable = (
        (n_counted >= MIN_TEST_TOKENS)
        & (n_counted_contexts >= MIN_TEST_CONTEXTS)
        & (n_counted_documents >= MIN_TEST_DOCUMENTS)
    )
    for kind in LABELS:
        label = grid.label if kind == "own" else np.where(grid.included, _shifted(grid.label, following), -1)
        known = label >= 0
        label_of_active = label[active.context, active.position]
        n_active = np.bincount(active.feature[label_of_active >= 0], minlength=d_sae)
        parts = []
        for code in range(len(CLASSES)):
            indicator = (grid.label == code).astype(np.float64)
            centred = _centred(indicator, grid.included)
            if kind == "own":
                tested = centred - (_total(centred, grid) - centred) / np.maximum(mates, 1)
                tested = _centred(tested, counted)
            else:
                shifted = _shifted(centred, following)
                usable = grid.included & (_shifted(grid.included, following) > 0) & (null_mates >= MIN_MATES - 1)
                rest = _total(centred, grid) - centred - shifted
                tested = _centred(shifted - rest / np.maximum(null_mates, 1), usable)
            sums = np.bincount(cell, weights=tested[active.context, active.position], minlength=len(cells))
            sum_s = np.bincount(cell_feature, weights=sums, minlength=d_sae)
            sum_s2 = np.bincount(cell_feature, weights=sums**2, minlength=d_sae)
            in_class = label_of_active == code
            parts.append(
                _class_frame(
                    kind, CLASSES[code], n_active, np.bincount(active.feature[in_class], minlength=d_sae),
                    int(known.sum()), int((label == code).sum()),
                    _documents_of(active.feature[in_class], grid.document[active.context[in_class]], d_sae),
                    np.where(testable & (sum_s2 > 0), sum_s / np.sqrt(np.maximum(sum_s2, 1e-300)), np.nan),
                )
            )  # fmt: skip
        yield _assigned(pl.concat(parts))


def _class_frame(
    kind: str,
    name: str,
    n_active: Integers,
    n_in: Integers,
    n_tokens: int,
    n_class: int,
    n_documents: Integers,
    z: Floats,
) -> pl.DataFrame:
    """One class and kind of labels, features that are active."""
    inside, outside = n_in, n_active - n_in
    rest_inside, rest_outside = n_class - n_in, (n_tokens - n_class) - outside
    log_odds = np.log((inside + 0.5) * (rest_outside + 0.5) / ((outside + 0.5) * (rest_inside + 0.5)))
    p = two_sided_p(z)
    q = known_q(p)
    frame = pl.DataFrame(
        {
            "feature": np.arange(len(z), dtype=np.int32), "class": name, "labels": kind,
            "n_active": n_active.astype(np.int64), "n_in_class": n_in.astype(np.int64),
            "share": n_in / np.maximum(n_active, 1), "log_odds": log_odds,
            "n_documents": n_documents.astype(np.int32), "z": z, "p_value": p, "q_value": q,
            "p_naive": hypergeom.sf(n_in - 1, n_tokens, n_class, n_active),
        }
    )  # fmt: skip
    return frame.filter(pl.col("n_active") > 0).with_columns(pl.col(pl.Float64).fill_nan(None))


def _assigned(frame: pl.DataFrame) -> pl.DataFrame:
    """With is_assigned, at most once a feature."""
    fits = (
        (pl.col("q_value") < MAX_Q).fill_null(False)
        & (pl.col("z") > 0).fill_null(False)
        & (pl.col("log_odds") >= MIN_LOG_ODDS)
        & (pl.col("share") >= pl.when(pl.col("class").is_in(RARE)).then(RARE_SHARE).otherwise(MIN_SHARE))
        & (pl.col("n_documents") >= MIN_DOCUMENTS)
    )
    fitting = pl.when(fits).then(pl.col("log_odds"))
    # Equal log odds are settled by the order of CLASSES, in which the frame is.
    best = (fitting == fitting.max().over("feature")).fill_null(False)
    return frame.with_columns(is_assigned=best & (best.cum_sum().over("feature") == 1))


# ------------------------------------------------------------------------------------------------ rows of the plan


def _following(grid: Grid) -> Integers:
    """[context] the row's next context, cyclic; −1 in a row of one."""
    order = np.lexsort((grid.lane, grid.row))
    starts = np.flatnonzero(np.diff(grid.row[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    nexts = np.arange(1, len(order) + 1)
    nexts[starts + sizes - 1] = starts
    following = np.empty(len(order), dtype=np.int64)
    following[order] = order[nexts]
    alone = np.repeat(sizes == 1, sizes)
    following[order[alone]] = -1
    return following


def _shifted(values: NDArray, following: Integers) -> NDArray:  # type: ignore[type-arg]
    """Values [context, position] of each context's next one; −1 or 0 in a row of one."""
    nothing = np.full_like(values[:1], -1 if values.dtype == np.int8 else 0)
    return np.concatenate([values, nothing])[following]


def _total(values: Floats, grid: Grid) -> Floats:
    """Σ over the row's contexts at the same position, [context, position]."""
    total: Floats = np.zeros((int(grid.row.max()) + 1, values.shape[1]))
    np.add.at(total, grid.row, values)
    return np.take(total, grid.row, axis=0)


def _mates(grid: Grid, following: Integers) -> tuple[Floats, Floats]:
    """How many mates are included at each position, and how many without the next context, both [context, position]."""
    included = grid.included.astype(np.float64)
    mates = _total(included, grid) - included
    return mates, mates - _shifted(included, following)


def _centred(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """Minus their mean over the context's chosen tokens; 0 elsewhere. Both [context, position]."""
    n = np.maximum(chosen.sum(1, keepdims=True), 1)
    centred: Floats = (values - (values * chosen).sum(1, keepdims=True) / n) * chosen
    return centred


def _documents_of(features: Integers, documents: Integers, d_sae: int) -> Integers:
    """[feature] how many different documents stand beside it."""
    width = int(documents.max()) + 1 if len(documents) else 1
    seen = np.zeros(d_sae * width, dtype=bool)
    seen[features * width + documents] = True
    counts: Integers = seen.reshape(d_sae, width).sum(1)
    return counts
