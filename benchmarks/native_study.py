"""What survives of features and energies where the energy is the model's own: the tables of docs/native-energy.md.

    python benchmarks/native_study.py WORK --train TEXT [TEXTS] [--model energy-transformer-small] [--only tables]

Three warehouses are made in WORK, of TEXTS (by default corpus/): of the model, of the model read through random
directions, and of a model with untrained weights whose SAEs are trained on TEXT. Every step is a command that is
printed before it runs; those that have run are not run again.

Intervals are of 95 %, by resampling features, or features and documents at once (the pigeonhole bootstrap of Owen 2007,
doi 10.1214/07-AOAS122, which is a little too wide): features of one layer share a text, and tokens of one feature a
document. Features of different layers are ranked within their layer. Those over features alone hold the text fixed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from native_nulls import random_dictionary, untrained
from numpy.typing import NDArray
from tables import Table, markdown

from energy_lens import Warehouse

Floats = NDArray[np.float64]

CORPUS = Path(__file__).parent.parent / "corpus"

ENERGIES = ("nll", "native", "attention", "hopfield")

#: What a column is called in a table.
NAMES = {"cosine": "cosine", "score": "score", "per_token": "attribution by token"}

#: Resamples of an interval.
RESAMPLES = 1_000

EFAS = """
SELECT e.layer, e.feature, e.energy, e.score, e.cosine, e.t_specific, e.p_reference, e.q_specific, e.q_documents,
    e.z IS NOT NULL AS is_tested, a.cosine AS cosine_a, b.cosine AS cosine_b,
    a.score AS score_a, b.score AS score_b, e.p_specific, e.attribution / e.n_active AS per_token,
    a.attribution / a.n_active AS per_token_a
FROM efas AS e
LEFT JOIN efas_halves AS a ON a.layer = e.layer AND a.feature = e.feature AND a.energy = e.energy
    AND a.gradient = e.gradient AND a.category = 'all' AND a.half = 'A'
LEFT JOIN efas_halves AS b ON b.layer = e.layer AND b.feature = e.feature AND b.energy = e.energy
    AND b.gradient = e.gradient AND b.category = 'all' AND b.half = 'B'
WHERE e.gradient = 'decoder' AND e.category = 'all'
ORDER BY e.energy, e.layer, e.feature
"""

PATCHES = """
SELECT n.layer, n.feature, n.kind, n.direction, n.activation, n.delta_energy, n.fall,
    n.fall_patched - n.fall AS delta_fall, n.is_settled, n.is_changed, n.distance, n.delta_settled, p.document_id,
    p.half
FROM native_patches AS n
JOIN token_places AS p USING (run_id, token_id)
WHERE n.run_id = (SELECT run_id FROM current_run)
ORDER BY n.layer, n.feature, n.token_id, n.kind, n.direction
"""

SETTINGS = """
SELECT weights, n_tokens, n_attractors, entropy, largest_share, unconverged_share, steps, cosine, energy_start, energy,
    block_turn, block_agreement
FROM native_settings
WHERE run_id = (SELECT run_id FROM current_run)
ORDER BY weights DESC
"""

AGREEMENT = """
SELECT weights, partition, layer, n_tokens, p_shared, p_chance, adjusted_rand
FROM native_agreement
ORDER BY weights DESC, partition, layer
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("texts", type=Path, nargs="?", default=CORPUS)
    parser.add_argument("--train", type=Path, metavar="TEXT", help="what SAEs of untrained weights are trained on")
    parser.add_argument("--model", default="energy-transformer-small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["tables"], help="of what is in WORK already")
    given = parser.parse_args()
    work: Path = given.work
    if given.only is None:
        if given.train is None:
            parser.error("--train TEXT is needed")
        work.mkdir(parents=True, exist_ok=True)
        make(work, given.texts, given.train, given.model, given.seed)
    names = {"trained": "the model", "dictionary": "random dictionary", "untrained": "untrained weights"}
    found = {name: work / f"{name}.duckdb" for name in names if (work / f"{name}.duckdb").exists()}
    tables: list[Table] = [scores_table({names[name]: read(path, EFAS) for name, path in found.items()})]
    scores, patches = read(found["trained"], EFAS), read(found["trained"], PATCHES)
    tables += [
        energies_table(scores), signs_table(scores, patches), speeds_table(patches),
        plain("Where tokens settle", found["trained"], SETTINGS),
        plain("What tokens of a basin share", found["trained"], AGREEMENT),
        moves_table(patches), predictions_table(scores, patches),
    ]  # fmt: skip
    for title, rows in tables:
        print(f"## {title}\n\n{markdown(rows)}\n")


# ------------------------------------------------------------------------------------------------ commands


def make(work: Path, texts: Path, train: Path, model: str, seed: int) -> None:
    """Everything that the tables are read from."""
    elw = [sys.executable, "-m", "energy_lens.cli"]
    fresh, fresh_saes, drawn = work / "untrained-model", work / "untrained-saes", work / "random-dictionary"
    if not fresh.exists():
        untrained(model, fresh, seed)
    if not drawn.exists():
        random_dictionary(model, drawn, seed)
    energies = ["--energies", ",".join(ENERGIES), "--dtype", "float32"]
    commands: list[list[Any]] = [
        ["ingest", texts, "--model", model, *energies, "--db", work / "trained.duckdb"],
        ["attractors", "--db", work / "trained.duckdb"],
        ["attractors", "native", "--features", "40", "--seed", seed, "--db", work / "trained.duckdb"],
        ["ingest", texts, "--model", model, "--sae", drawn, *energies, "--db", work / "dictionary.duckdb"],
        [
            "sae", "train", train, "--model", fresh, "--layers", "1,2,3,4,5", "--hook-point", "resid_pre",
            "--features", "1024", "--k", "16", "--tokens", "1000000", "--dtype", "float32", "--output", fresh_saes,
        ],
        ["ingest", texts, "--model", fresh, "--sae", fresh_saes, *energies, "--db", work / "untrained.duckdb"],
    ]  # fmt: skip
    done = work / "commands.txt"
    have = done.read_text(encoding="utf-8").splitlines() if done.exists() else []
    for words in commands:
        line = shlex.join(["elw", *map(str, words)])
        print(line, file=sys.stderr)
        if line not in have:
            subprocess.run([*elw, *map(str, words)], check=True)
            with done.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def read(path: Path, query: str) -> pl.DataFrame:
    with Warehouse(path) as warehouse:
        return warehouse.sql(query).pl()


# ------------------------------------------------------------------------------------------------ intervals


def rank(values: Floats) -> Floats:
    """Ranks with ties in the middle."""
    return pl.Series(values).rank("average").to_numpy()


def correlated(x: Floats, y: Floats, layers: NDArray[Any]) -> float:
    """Spearman's correlation inside layers: of ranks less their layer's mean."""
    both = np.array([x, y], dtype=np.float64)
    for layer in np.unique(layers):
        own = layers == layer
        for row in both:
            ranks = rank(row[own])
            row[own] = (ranks - ranks.mean()) / len(ranks)
    return float(np.corrcoef(both)[0, 1])


def over_features(
    columns: Sequence[Floats], layers: NDArray[Any], statistic: Callable[..., float], seed: int = 0
) -> str:
    """statistic(*columns, layers) and its interval over other features, drawn within their layer."""
    generator = np.random.default_rng(seed)
    own = [np.flatnonzero(layers == layer) for layer in np.unique(layers)]
    drawn = []
    for _ in range(RESAMPLES):
        at = np.concatenate([generator.choice(rows, len(rows)) for rows in own])
        drawn.append(statistic(*(column[at] for column in columns), layers[at]))
    return interval(statistic(*columns, layers), drawn)


def over_both(frame: pl.DataFrame, statistic: Callable[[Floats], float], seed: int = 0) -> str:
    """statistic(weights of rows) and its interval over other features and other documents, drawn independently."""
    generator = np.random.default_rng(seed)
    keys = [
        np.unique(frame.select(pl.struct(*names).rank("dense")).to_numpy().ravel(), return_inverse=True)[1]
        for names in (("layer", "feature"), ("document_id",))
    ]
    drawn = []
    for _ in range(RESAMPLES):
        weights = np.ones(len(frame))
        for key in keys:
            n = key.max() + 1
            weights *= np.bincount(generator.integers(0, n, n), minlength=n)[key]
        drawn.append(statistic(weights))
    return interval(statistic(np.ones(len(frame))), drawn)


def interval(value: float, drawn: Sequence[float], digits: int = 2) -> str:
    kept = np.asarray(drawn)[np.isfinite(drawn)]
    if not np.isfinite(value) or len(kept) < RESAMPLES // 2:
        return "–"
    low, high = np.quantile(kept, [0.025, 0.975])
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


# ------------------------------------------------------------------------------------------------ tables


def plain(title: str, path: Path, query: str) -> Table:
    """What a query says."""
    frame = read(path, query)
    rows = [["–" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in frame.rows()]
    return title, [frame.columns, *rows]


def scores_table(by_source: dict[str, pl.DataFrame]) -> Table:
    """EFAS by energy, of the model and of the nulls."""
    rows = [
        [
            "", "energy", "tested", "p_specific < 0.05", "the same of another row", "q_specific < 0.05",
            "and q_documents < 0.05",
            "median \\|cosine\\|", "median \\|score\\|", "cosines of halves, Spearman", "scores of halves",
        ]
    ]  # fmt: skip
    for name, frame in by_source.items():
        for energy in ENERGIES:
            own = frame.filter(pl.col("energy") == energy, pl.col("is_tested"))
            if own.is_empty():
                continue
            specific = own["q_specific"] < 0.05
            halves = [in_halves(own, what) for what in ("cosine", "score")]
            rows.append(
                [
                    name, energy, f"{len(own):,}", f"{(own['p_specific'] < 0.05).mean():.1%}",
                    f"{(own['p_reference'] < 0.05).mean():.1%}", f"{specific.mean():.1%}",
                    f"{(specific & (own['q_documents'] < 0.05).fill_null(False)).mean():.1%}",
                    f"{own['cosine'].abs().median():.3f}", f"{own['score'].abs().median():.3f}",
                    *halves,
                ]
            )  # fmt: skip
    return "EFAS by energy", rows


def in_halves(scores: pl.DataFrame, what: str) -> str:
    """Correlation of a column's values on half A of the documents with those on half B."""
    both = scores.drop_nulls([f"{what}_a", f"{what}_b"])
    if len(both) <= 10:
        return "–"
    return over_features(
        (both[f"{what}_a"].to_numpy(), both[f"{what}_b"].to_numpy()), both["layer"].to_numpy(), correlated
    )


def energies_table(scores: pl.DataFrame) -> Table:
    """How far native agrees with other energies about features."""
    rows = [
        [
            "native and",
            "features",
            "cosines, Spearman",
            "scores",
            "same sign of cosine",
            "same sign where both q_specific < 0.05",
        ]
    ]
    native = scores.filter(pl.col("energy") == "native", pl.col("is_tested"))
    for energy in ENERGIES:
        if energy == "native":
            continue
        other = scores.filter(pl.col("energy") == energy, pl.col("is_tested"))
        both = native.join(other, on=["layer", "feature"], suffix="_other").sort("layer", "feature")
        layers = both["layer"].to_numpy()
        cells = [
            over_features((both[what].to_numpy(), both[f"{what}_other"].to_numpy()), layers, correlated)
            for what in ("cosine", "score")
        ]
        same = (both["cosine"].sign() == both["cosine_other"].sign()).to_numpy().astype(float)
        found = ((both["q_specific"] < 0.05) & (both["q_specific_other"] < 0.05)).fill_null(False).to_numpy()
        rows.append(
            [
                energy, f"{len(both):,}", *cells, over_features((same,), layers, mean_of),
                f"{over_features((same[found],), layers[found], mean_of)} of {found.sum():,}"
                if found.any() else "–",
            ]
        )  # fmt: skip
    return "Native beside other energies", rows


def signs_table(scores: pl.DataFrame, patches: pl.DataFrame) -> Table:
    """Whether EFAS on half A of the documents says what more of a feature does in half B: to E, and to the descent."""
    rows = [["EFAS in A of", "as", "in B, doubled", "along", "features", "Spearman", "sign is said", "by chance"]]
    done = patches.filter(kind="double", half="B").with_columns(after=pl.col("delta_energy") - pl.col("delta_fall"))
    outcomes = {
        "delta_energy": (-1, "E falls"),
        "after": (-1, "E behind the step falls"),
        "delta_fall": (1, "it falls further"),
    }
    for energy, what in (("native", "cosine"), ("native", "score"), ("native", "per_token"), ("nll", "cosine")):
        known = scores.filter(pl.col("energy") == energy, pl.col("is_tested")).drop_nulls(f"{what}_a")
        for outcome, (sign, said) in outcomes.items():
            for direction in ("feature", "decoder"):
                own = done.filter(direction=direction).group_by("layer", "feature").agg(pl.col(outcome).mean())
                own = own.join(known, on=["layer", "feature"]).sort("layer", "feature")
                x, y, layers = own[f"{what}_a"].to_numpy(), sign * own[outcome].to_numpy(), own["layer"].to_numpy()
                agree = (np.sign(x) == np.sign(y)).astype(float)
                rows.append(
                    [
                        energy, NAMES[what], said, direction, f"{len(own)}", over_features((x, y), layers, correlated),
                        over_features((agree,), layers, mean_of), f"{agreement_by_chance(x, y, layers):.2f}",
                    ]
                )  # fmt: skip
    return "What EFAS of half A says of edits in half B", rows


def agreement_by_chance(x: Floats, y: Floats, layers: NDArray[Any]) -> float:
    """Share of equal signs if those of a layer were dealt out anew."""
    shares = []
    for layer in np.unique(layers):
        p, q = ((values[layers == layer] > 0).mean() for values in (x, y))
        shares.append((p * q + (1 - p) * (1 - q)) * (layers == layer).mean())
    return float(sum(shares))


def speeds_table(patches: pl.DataFrame) -> Table:
    """By how much further, or less far, a step goes down with an edit, by layer."""
    directions = ("feature", "decoder", "isotropic")
    rows = [
        [
            "edit",
            "layer",
            "the step's fall",
            *(f"further along {name}" for name in directions),
            "features that speed it",
        ]
    ]
    by_feature = patches.group_by("kind", "layer", "direction", "feature").agg(pl.col("delta_fall", "fall").mean())
    for (kind, layer), own in by_feature.sort("kind", "layer", "feature").group_by(
        "kind", "layer", maintain_order=True
    ):
        cells = []
        for direction in directions:
            values = own.filter(direction=direction)["delta_fall"].to_numpy()
            cells.append(over_features((values,), np.zeros(len(values)), mean_of))
        along = own.filter(direction="feature")
        rows.append(
            [
                str(kind), str(layer), f"{along['fall'].mean():.1f}", *cells,
                f"{(along['delta_fall'] > 0).sum()} of {len(along)}",
            ]
        )  # fmt: skip
    return "How much further a step goes down", rows


def mean_of(values: Floats, _: Any) -> float:
    return float(values.mean())


def moves_table(patches: pl.DataFrame) -> Table:
    """How often an edit of one token moves it to another basin."""
    rows = [["edit", "layer", *(f"along {direction}" for direction in ("feature", "decoder", "isotropic"))]]
    settled = patches.filter("is_settled")
    for kind in ("ablate", "double"):
        for layer in [None, *settled["layer"].unique().sort()]:
            own = settled.filter(pl.col("kind") == kind)
            own = own if layer is None else own.filter(pl.col("layer") == layer)
            cells = []
            for direction in ("feature", "decoder", "isotropic"):
                part = own.filter(pl.col("direction") == direction)
                changed = part["is_changed"].to_numpy().astype(float)
                share = over_both(
                    part, lambda w, changed=changed: float(np.average(changed, weights=w) if w.any() else np.nan)
                )
                cells.append(f"{share} of {len(part):,}" if changed.any() else f"none of {len(part):,}")
            rows.append([kind, "all" if layer is None else str(layer), *cells])
    return "Edits of one token that move it to another basin", rows


def weighted_share(of: Floats, weights: Floats) -> float:
    return float(np.average(of, weights=weights)) if weights.any() else np.nan


def area(score: Floats, positive: NDArray[np.bool_], layers: NDArray[Any], weights: Floats) -> float:
    """Area under the ROC curve: the chance that of two rows of a layer the positive one has the larger score."""
    right, pairs = 0.0, 0.0
    for layer in np.unique(layers):
        own = layers == layer
        _, place = np.unique(score[own], return_inverse=True)
        n = place.max() + 1
        up, down = (np.bincount(place[part], weights[own][part], n) for part in (positive[own], ~positive[own]))
        below = np.concatenate([[0.0], np.cumsum(down)[:-1]])
        right += float((up * (below + down / 2)).sum())
        pairs += float(up.sum() * down.sum())
    return right / pairs if pairs else np.nan


def predictions_table(scores: pl.DataFrame, patches: pl.DataFrame) -> Table:
    """Which number tells edits that move a token from those that do not: area under the ROC curve, 0.5 by chance."""
    predictors = list(predictor_columns(scores))
    rows = [["edit", "edits, of these move", *(name for name, _ in predictors)]]
    settled = patches.filter(pl.col("is_settled"), pl.col("direction") == "feature")
    for _, known in predictors:
        settled = settled if known is None else settled.join(known, on=["layer", "feature"], how="left")
    columns = ["activation", "size", *(known.columns[-1] for _, known in predictors if known is not None)]
    settled = settled.with_columns(size=pl.col("delta_energy").abs()).drop_nulls(columns)
    for kind in ("ablate", "double"):
        own = settled.filter(pl.col("kind") == kind)
        changed, layers = own["is_changed"].to_numpy(), own["layer"].to_numpy()
        rows.append(
            [
                kind, f"{len(own):,}, {changed.sum():,}",
                *(over_both(own, partial(area, own[name].to_numpy(), changed, layers)) for name in columns),
            ]
        )  # fmt: skip
    return "Which edits move a token: area under the ROC curve", rows


def predictor_columns(scores: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame | None]]:
    """What might tell: a heading, and the column by layer and feature; None where the patch itself has it."""
    yield "activation", None
    yield "\\|ΔE\\| before the step", None
    for energy in ("native", "nll", "hopfield"):
        for what in ("cosine", "per_token"):
            own = scores.filter(pl.col("energy") == energy)
            yield (
                f"\\|{NAMES[what]}\\| of {energy}",
                own.select("layer", "feature", pl.col(what).abs().alias(f"{energy}_{what}")),
            )


if __name__ == "__main__":
    main()
