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
from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.kernels import counted_sizes, label_counts, tested_sums
from energy_lens.ingest.statistics.significance import (
    MIN_TEST_CONTEXTS,
    MIN_TEST_DOCUMENTS,
    MIN_TEST_TOKENS,
    hypergeometric_tail,
    known_q,
    two_sided_p,
)
from energy_lens.ingest.statistics.tokens import Centred, Tokens
from energy_lens.ingest.token_classes import CLASSES, token_classes
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

MAX_Q, MIN_LOG_ODDS, MIN_DOCUMENTS = 0.05, math.log(4), 5
MIN_SHARE, RARE_SHARE = 0.5, 0.05

#: Classes of so few tokens that a feature for them may have most of its activations elsewhere.
RARE = ("regex", "number")


#: Whose labels a token gets.
LABELS = ("own", "mates")


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


class FeatureClasses:
    """Counts and tests of every feature of a layer by class, gathered slice by slice."""

    def __init__(self, tokens: Tokens, included: Mask, d_sae: int) -> None:
        """included: [token] those of the layer."""
        self._tokens, self._d_sae = tokens, d_sae
        label = np.where(included, tokens.class_code, -1).astype(np.int8)
        labelled = label >= 0
        # Of the row's next context, which is another document: what the rule finds where there is nothing.
        mates = np.where(labelled, tokens.shifted(label), -1).astype(np.int8)
        self._labels = dict(zip(LABELS, (label, mates), strict=True))
        self._tested = np.empty((len(tokens), 2 * len(CLASSES)))
        for code in range(len(CLASSES)):
            centred = Centred.of(tokens, (label == code).astype(np.float64), labelled)
            self._tested[:, code], self._tested[:, len(CLASSES) + code] = centred.tested, centred.control
        self._counted = centred.counted
        shape = len(LABELS), len(CLASSES), d_sae
        self._sum_s, self._sum_s2, self._n_in, self._n_documents = (np.zeros(shape) for _ in range(4))
        self._n_active, self._testable = np.zeros((len(LABELS), d_sae)), np.zeros(d_sae, dtype=bool)

    def add(self, rows: Slice) -> None:
        """Take in a slice's features."""
        where, shape = slice(rows.start, rows.stop), (len(LABELS), len(CLASSES), -1)
        s, s2 = tested_sums(rows.cells, rows.cell_features, rows.place, self._tested)
        self._sum_s[:, :, where], self._sum_s2[:, :, where] = s.reshape(shape), s2.reshape(shape)
        for i, label in enumerate(self._labels.values()):
            n_in, n_documents = label_counts(rows.pairs, rows.pair_features, rows.place, label, len(CLASSES))
            self._n_in[i, :, where], self._n_documents[i, :, where] = n_in, n_documents
            self._n_active[i, where] = n_in.sum(0)
        n_tokens, n_contexts, n_documents = counted_sizes(
            rows.cells, rows.cell_pairs, rows.pair_features, rows.place, self._counted
        )
        self._testable[where] = (
            (n_tokens >= MIN_TEST_TOKENS) & (n_contexts >= MIN_TEST_CONTEXTS) & (n_documents >= MIN_TEST_DOCUMENTS)
        )

    def frames(self) -> Iterator[pl.DataFrame]:
        """Rows of feature_classes without run and layer: a frame for each kind of labels."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(self._testable & (self._sum_s2 > 0), self._sum_s / np.sqrt(self._sum_s2), np.nan)
        for i, (kind, label) in enumerate(self._labels.items()):
            n_tokens = int((label >= 0).sum())
            parts = [
                _class_frame(
                    kind, name, self._n_active[i].astype(np.int64), self._n_in[i, code].astype(np.int64), n_tokens,
                    int((label == code).sum()), self._n_documents[i, code].astype(np.int64), z[i, code],
                )
                for code, name in enumerate(CLASSES)
            ]  # fmt: skip
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
            "p_naive": hypergeometric_tail(n_in, n_tokens, n_class, n_active),
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
