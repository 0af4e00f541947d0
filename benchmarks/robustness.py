"""Which conclusions move with SAE, context length, corpus or model: warehouses in, a Markdown table out.

    python benchmarks/robustness.py "shipped SAE"=base.duckdb "k = 32"=k32.duckdb … [--layer 15] [--energy nll]

Each file comes from `elw ingest` with one thing changed; the first is what the others are held against. Rows are what a
reader of docs/results.md concludes from: how many features each test finds and how often its controls reject, how large
effects are, and what the other half of the documents says.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from significance import markdown

from energy_lens import Warehouse

ROWS = """
SELECT
    any_value(n_tokens) AS n_tokens,
    any_value(n_documents) AS n_documents,
    count(*) FILTER (n_active > 0) AS n_firing,
    count(z) AS n_tested,
    count(*) FILTER (q_specific < 0.05) / count(z) AS specific,
    avg((p_reference < 0.05)::INTEGER) AS reference,
    count(*) FILTER (q_value < 0.05) / count(z) AS within,
    avg((abs(z_null) > 1.96)::INTEGER) AS null,
    count(*) FILTER (q_documents < 0.05) AS documents,
    median(abs(cosine)) AS cosine,
    median(abs(cosine)) FILTER (q_specific < 0.05) AS found_cosine,
    max(abs(score)) FILTER (q_specific < 0.05) AS largest,
    median(score_active) AS active
FROM efas
WHERE layer = $layer AND energy = $energy AND gradient = 'decoder' AND category = 'all'
"""

HALVES = """
SELECT
    count(*) FILTER (a.q_specific < 0.05 AND b.t_specific IS NOT NULL) AS n_found,
    count(*) FILTER (a.q_specific < 0.05 AND sign(a.t_specific) = sign(b.t_specific)) AS n_same,
    avg(abs(a.cosine)) FILTER (a.q_specific < 0.05 AND b.t_specific IS NOT NULL) AS selected,
    avg(b.cosine * sign(a.cosine)) FILTER (a.q_specific < 0.05) AS replicated,
    corr(a.cosine, b.cosine) AS agreement,
    avg((a.z - b.z) ** 2) / 2 AS variance
FROM efas_halves AS a
JOIN efas_halves AS b USING (layer, feature, energy, gradient, category)
WHERE a.half = 'A' AND b.half = 'B' AND gradient = 'decoder' AND category = 'all'
    AND layer = $layer AND energy = $energy
"""


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def number(digits: int) -> Callable[[float | None], str]:
    return lambda value: "–" if value is None else f"{value:.{digits}f}"


def whole(value: float | None) -> str:
    return "–" if value is None else f"{int(value):,}"


#: Heading, column, and how it is written.
SHOWN: list[tuple[str, str, Callable[[Any], str]]] = [
    ("included tokens", "n_tokens", whole),
    ("documents", "n_documents", whole),
    ("features that fire", "n_firing", whole),
    ("tested", "n_tested", whole),
    ("q_specific < 0.05, of the tested", "specific", percent),
    ("p_reference < 0.05: its control", "reference", percent),
    ("q_value < 0.05, of the tested", "within", percent),
    ("its control beyond 1.96", "null", percent),
    ("q_documents < 0.05", "documents", whole),
    ("median cosine, absolute", "cosine", number(3)),
    ("the same where q_specific < 0.05", "found_cosine", number(3)),
    ("largest score of these, absolute", "largest", number(3)),
    ("found in half A and testable in B", "n_found", whole),
    ("same sign in B", "n_same", whole),
    ("their cosine in A", "selected", number(3)),
    ("their cosine in B, with A's sign", "replicated", number(3)),
    ("correlation of cosines between halves", "agreement", number(2)),
    ("Var(z_A − z_B)/2", "variance", number(2)),
    ("positive control: median score_active", "control_active", number(2)),
    ("positive control: median cosine", "control_cosine", number(2)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="+", metavar="LABEL=FILE[@LAYER]", help="warehouses; a layer of their own if need be"
    )
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--energy", default="nll")
    arguments = parser.parse_args()
    columns = []
    for run in arguments.runs:
        label, _, file = run.rpartition("=")
        file, _, layer = file.partition("@")
        columns.append((label or file, measured(Path(file), int(layer or arguments.layer), arguments.energy)))
    head = ["", *(label for label, _ in columns)]
    print(markdown([head, *([title, *(shown(c[name]) for _, c in columns)] for title, name, shown in SHOWN)]))


def measured(db: Path, layer: int, energy: str) -> dict[str, Any]:
    """What is shown of the current run of a warehouse."""
    with Warehouse(db) as warehouse:

        def row(query: str, of: str) -> dict[str, Any]:
            result = warehouse.sql(query, layer=layer, energy=of)
            return dict(zip(result.columns, result.fetchall()[0], strict=True))

        control = row(ROWS, "hopfield")
        found = row(ROWS, energy) | row(HALVES, energy)
    return found | {"control_active": control["active"], "control_cosine": control["cosine"]}


if __name__ == "__main__":
    main()
