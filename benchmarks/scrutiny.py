"""What a hostile reader asks of the significance test: a warehouse with stored gradient vectors in, tables out.

    python benchmarks/scrutiny.py FILE.duckdb [--layers 15,20] [--energies nll,hopfield] [--seed 0]
                                  [--sections stored,direction,specific,documents,unequal,intervals,selection]
                                  [--output DIR]

FILE comes from `elw ingest --store-gradients`. Sections, each of them Markdown tables:

  stored      of statistics of version 3: t_specific, cosine, z_documents and intervals against ones from the vectors.
  direction   z with another direction in place of the feature's decoder row, all else as it is.
  specific    the test that compares directions: t_specific, its variants, their level and their power.
  documents   z by documents in place of contexts, and how far z of two halves of the documents differ.
  unequal     synthetic contexts of unequal length, in which nothing is true.
  intervals   coverage of intervals of a correlation in simulations, and their widths on this run.
  selection   size in half B of what was found in half A.

What is computed from the vectors must equal the stored z, of version 2 of the statistics or of 3; the script says
which, and stops when it is neither. Unequal and the simulated part of intervals do not depend on FILE. DIR/scrutiny.md
holds what is printed, DIR/scrutiny.json the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measured import Measured, filled, places, z_and_clusters
from numpy.typing import NDArray
from scrutiny_intervals import coverage_table, stored_intervals, stored_intervals_table
from scrutiny_stored import found_table, stored, stored_table
from situations import SYNTHETIC
from specific import COSINES, DRAWS, REFERENCES, K, SpecificResult, specific
from streamed import streamed
from synthetic import Sample, synthetic
from tables import Table, levels, markdown, rejected, with_totals
from tqdm import tqdm

from energy_lens import Warehouse
from energy_lens.ingest.statistics.significance import benjamini_hochberg, two_sided_p, two_sided_t_p

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Documents that a test across them needs, as intervals do.
MIN_DOCUMENTS = 10

#: Seeds of synthetic data, each of 192 features.
SEEDS = 20

UNEQUAL = ("levels and drift", "lengths by context", "lengths by document", "short tails")

#: Features of a layer that selection takes: the largest.
TOP = 20

SECTIONS = ("stored", "direction", "specific", "documents", "unequal", "intervals", "selection")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("warehouse", type=Path, help="with stored gradient vectors")
    parser.add_argument("--layers", type=_numbers, help="default: all of the run")
    parser.add_argument("--energies", type=_names, help="default: all of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sections", type=_names, default=SECTIONS, help="default: all")
    parser.add_argument("--output", type=Path, help="folder for scrutiny.md and scrutiny.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}: choose among {', '.join(SECTIONS)}")
    tables = scrutinise(arguments.warehouse, arguments.layers, arguments.energies, arguments.sections, arguments.seed)
    text = "\n\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in tables)
    print(text)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "scrutiny.md").write_text(text + "\n", encoding="utf-8")
        (arguments.output / "scrutiny.json").write_text(json.dumps(tables, indent=1), encoding="utf-8")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def scrutinise(
    db: Path, layers: Sequence[int] | None, energies: Sequence[str] | None, sections: Sequence[str], seed: int
) -> list[Table]:
    """The tables of the sections, in the order of SECTIONS."""
    by_place = {
        "stored": stored, "direction": direction, "specific": specific, "documents": documents,
        "intervals": stored_intervals,
    }  # fmt: skip
    results: dict[str, dict[tuple[int, str], Any]] = {name: {} for name in by_place}
    differences = {}
    if set(by_place) & set(sections):
        for place, measured in places(db, layers, energies):
            differences[place] = [f"{measured.difference:.1e}", str(measured.version)]
            for name, measure in by_place.items():
                if name in sections:
                    results[name][place] = measure(
                        measured, np.random.default_rng([seed, *place[1].encode(), place[0]])
                    )
    tables: list[Table] = []
    if differences:
        head = ["layer", "energy", "largest difference from the stored z", "version of the statistics"]
        tables.append(("Against the stored z", [head, *([str(p[0]), p[1], *row] for p, row in differences.items())]))
    if any(found is not None for found in results["stored"].values()):
        tables += [stored_table(results["stored"]), found_table(db, layers, energies)]
    if "direction" in sections:
        tables += direction_tables(results["direction"])
    if "specific" in sections:
        tables += specific_tables(results["specific"])
    if "documents" in sections:
        tables += [*document_tables(results["documents"]), halves_table(db, layers, energies)]
    if "unequal" in sections:
        tables.append(unequal_table(seed))
    if "intervals" in sections:
        tables += [coverage_table(seed), stored_intervals_table(results["intervals"])]
    if "selection" in sections:
        tables.append(selection_table(db, layers, energies))
    return tables


# ------------------------------------------------------------------------------------------------ direction


def direction(measured: Measured, generator: np.random.Generator) -> dict[str, list[Floats]]:
    """z of the tested features [tested] along each kind of direction, by draw."""
    rows, is_tested = measured.decoder, measured.enough
    tested = np.flatnonzero(is_tested)

    def isotropic() -> Singles:
        return generator.standard_normal(rows.shape).astype(np.float32)

    def another() -> Singles:
        others = np.arange(len(rows))
        others[tested] = np.roll(tested, generator.integers(1, max(len(tested), 2)))
        return rows[others]

    def mix() -> Singles:
        return generator.standard_normal((len(rows), len(rows))).astype(np.float32) @ rows

    kinds: dict[str, list[Singles]] = {"the feature's row": [rows]}
    kinds |= {
        name: [draw() for _ in range(DRAWS)]
        for name, draw in (
            ("isotropic", isotropic), ("another tested feature's row", another), ("mix of all rows", mix),
        )
    }  # fmt: skip
    z = {name: [measured.z(s)[is_tested] for s in measured.s(directions)] for name, directions in kinds.items()}
    z["negative control"] = [measured.z(measured.s([rows], measured.null)[0])[is_tested]]
    return z


def direction_tables(results: Mapping[tuple[int, str], dict[str, list[Floats]]]) -> list[Table]:
    kinds = list(next(iter(results.values())))
    rows = [["energy", "layer", "features", *(f"{kind}: > 1.96 / mean z² / q < 0.05" for kind in kinds)]]
    for first, several in with_totals(results):
        cells = []
        for kind in kinds:
            z = np.concatenate([draw for result in several for draw in result[kind]])
            z = z[np.isfinite(z)]
            n_draws = len(several[0][kind])
            n_q = sum(
                rejected([two_sided_p(draw[np.isfinite(draw)])]).n_q for result in several for draw in result[kind]
            )
            cells.append(f"{(np.abs(z) > 1.96).mean():.1%} / {(z**2).mean():.2f} / {n_q / n_draws:.3g}")
        rows.append([*first, f"{sum(len(result[kinds[0]][0]) for result in several):,}", *cells])
    return [("Direction: z along other directions", rows)]


# ------------------------------------------------------------------------------------------------ specific


def specific_tables(results: Mapping[tuple[int, str], SpecificResult]) -> list[Table]:
    by_place = [["energy", "layer", "features", "|cosine| median", "z: p / q < 0.05"]]
    by_place[0] += [f"K = {k}: p / q < 0.05" for k in REFERENCES]
    by_place[0] += [f"q < 0.05 by z and K = {K} / z alone / K = {K} alone", "draws agree"]
    by_place[0] += [f"another row, K = {K}: 5 % / 0.1 %", f"negative control, K = {K}: 5 % / 0.1 %"]
    by_variant = [["energy", "variant", "features", "p / q < 0.05", "null like references: 5 % / 0.1 %"]]
    by_variant[0] += ["null any row: 5 % / 0.1 %", "negative control: 5 % / 0.1 %"]
    by_variant[0] += [f"planted {cosine:g}: p < 0.05" for cosine in COSINES]
    for first, several in with_totals(results):
        by_place.append([*first, *_specific_cells(several)])
        if first[1] == "all" or len(results) == len({energy for _, energy in results}):
            by_variant += [[first[0], name, *_variant_cells(several, name)] for name in several[0].variants]
    return [("Specific: is it this direction?", by_place), ("Specific: variants", by_variant)]


def _specific_cells(several: Sequence[SpecificResult]) -> list[str]:
    """Of t_specific beside z, over several layers."""
    z = rejected([result.z_p for result in several])
    cosine = np.median(np.abs(np.concatenate([result.cosine for result in several])))
    overlap, agreement = np.zeros(3), np.zeros(2)
    for result in several:
        by_z = benjamini_hochberg(result.z_p) < 0.05
        draws = [benjamini_hochberg(p) < 0.05 for p in result.variants[f"K = {K}"].true]
        overlap += np.mean([[(by_z & t).sum(), (by_z & ~t).sum(), (~by_z & t).sum()] for t in draws], axis=0)
        agreement += [sum((draws[0] & t).sum() for t in draws[1:]), sum(t.sum() for t in draws[1:])]
    return [
        f"{z.n:,}", f"{cosine:.2f}", f"{z.at_5:.1%} / {z.n_q}",
        *(_variant_cells(several, f"K = {k}")[1] for k in REFERENCES),
        " / ".join(f"{x:.4g}" for x in overlap), f"{agreement[0] / max(agreement[1], 1):.0%}",
        _variant_cells(several, f"K = {K}")[2], _variant_cells(several, f"K = {K}")[4],
    ]  # fmt: skip


def _variant_cells(several: Sequence[SpecificResult], name: str) -> list[str]:
    """Of one variant over several layers; shares and counts are means over draws."""
    by_layer = [result.variants[name] for result in several]
    true = rejected([p for variant in by_layer for p in variant.true])
    n_draws = len(by_layer[0].true)
    nulls = [[p for variant in by_layer for p in getattr(variant, kind)] for kind in ("null", "any_row", "noise")]
    planted = [rejected([p for variant in by_layer for p in variant.power[cosine]]).at_5 for cosine in COSINES]
    return [
        f"{true.n / n_draws:,.0f}", f"{true.at_5:.1%} / {true.n_q / n_draws:.4g}", *map(levels, nulls),
        *map("{:.0%}".format, planted),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ documents


class ByDocuments(NamedTuple):
    """Of the tested features [tested]."""

    z_p: Floats
    p: dict[str, Floats]  #: by method; NaN below MIN_DOCUMENTS
    null: dict[str, Floats]  #: of the negative control
    shared: tuple[Floats, Floats]  #: z in random halves of documents, in random halves of contexts: [2·draw, tested]


def document_p(z: Floats, n: Ids, n_documents: int) -> dict[str, Floats]:
    """p of z by documents, from n documents whose S is not 0, of n_documents of the run; NaN below MIN_DOCUMENTS.

    `all` and `active` take z itself for Student's t, with all documents or with those. `student` is the t of the S that
    are not 0, z·√((n−1)/(n−z²)): at a level up to 8 % it is valid for normal S of any variances (Ibragimov and
    Müller 2010), and z² cannot exceed n.
    """
    t = z * np.sqrt((n - 1) / np.maximum(n - z**2, 1e-12))
    freedoms = np.maximum(n - 1, 1)
    p = {
        "all": two_sided_t_p(z, n_documents - 1),
        "active": two_sided_t_p(z, freedoms),  # type: ignore[arg-type]
        "student": two_sided_t_p(t, freedoms),  # type: ignore[arg-type]
    }
    return {method: np.where(n >= MIN_DOCUMENTS, values, np.nan) for method, values in p.items()}


def documents(measured: Measured, generator: np.random.Generator) -> ByDocuments:
    """p by contexts and by documents, and z in halves."""
    is_tested, of_context = measured.enough, measured.contexts.documents
    n_documents = len(np.unique(of_context))
    p = {}
    s = measured.s([measured.decoder])[0]
    null = measured.s([measured.decoder], measured.null)[0]
    for name, values in (("true", s), ("null", null)):
        z, n = z_and_clusters(values, measured.pairs, of_context, len(measured.decoder))
        p[name] = document_p(z[is_tested], n[is_tested], n_documents)
    halves = []
    for units in (of_context, np.arange(len(of_context))):
        labels = np.unique(units, return_inverse=True)[1]
        by_draw = []
        for _ in range(DRAWS):
            is_first = (generator.permutation(labels.max() + 1) % 2 == 0)[labels][measured.pairs.contexts]
            by_draw += [measured.z(np.where(is_first == side, s, 0))[is_tested] for side in (True, False)]
        halves.append(np.array(by_draw))
    return ByDocuments(two_sided_p(measured.z(s)[is_tested]), p["true"], p["null"], (halves[0], halves[1]))


def document_tables(results: Mapping[tuple[int, str], ByDocuments]) -> list[Table]:
    methods = ("all", "active", "student")
    rows = [["energy", "layer", "features", f"in {MIN_DOCUMENTS} documents", "z: q < 0.05"]]
    rows[0] += [f"{m}: p < 0.05 / q < 0.05 / of z's: p / q" for m in methods]
    rows[0] += [f"{m}, negative control: 5 % / 0.1 %" for m in methods]
    rows[0] += ["correlation of z between halves of documents / of contexts / share of documents"]
    for first, several in with_totals(results):
        z_q = [benjamini_hochberg(result.z_p) < 0.05 for result in several]
        enough_documents = [np.isfinite(result.p["all"]) for result in several]
        cells = [*first, f"{sum(map(len, z_q)):,}", f"{sum(x.sum() for x in enough_documents):,}"]
        cells.append(str(sum(int(x.sum()) for x in z_q)))
        for method in methods:
            kept_p = kept_q = 0
            families = []
            for result, by_z, is_used in zip(several, z_q, enough_documents, strict=True):
                p = result.p[method][is_used]
                families.append(p)
                kept_p += int(((p < 0.05) & by_z[is_used]).sum())
                kept_q += int(((benjamini_hochberg(p) < 0.05) & by_z[is_used]).sum()) if len(p) else 0
            total = rejected(families)
            cells.append(f"{total.at_5:.1%} / {total.n_q} / {kept_p} / {kept_q}")
        nulls = [[result.null[method] for result in several] for method in methods]
        cells += [levels([p[np.isfinite(p)] for p in families]) for families in nulls]
        cells.append(_shared([result.shared for result in several]))
        rows.append(cells)
    return [("Documents: z by documents", rows)]


def _shared(halves: Sequence[tuple[Floats, Floats]]) -> str:
    """Mean correlation of z between halves of documents and of contexts, and the share that the former lacks."""
    r = []
    for unit in range(2):
        z = np.concatenate([both[unit] for both in halves], axis=1)
        pairs = zip(z[::2], z[1::2], strict=True)
        r.append(np.mean([np.corrcoef(*(x[np.isfinite(a + b)] for x in (a, b)))[0, 1] for a, b in pairs]))
    return f"{r[0]:.2f} / {r[1]:.2f} / {1 - r[0] / r[1]:.0%}"


def _halves(db: Path, layers: Sequence[int] | None, energies: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    """Rows of `efas_halves` tested in both halves: columns of A and B by feature, energy and layer."""
    columns = "layer, feature, energy, score, score_within, q_value, z, z_null"
    table = f"(SELECT {columns}, half FROM efas_halves WHERE gradient = 'decoder' AND category = 'all')"
    sides = ", ".join(f"{side}.{c} AS {c}_{side}" for side in "ab" for c in columns.split(", ")[3:])
    where = "a.half = 'A' AND b.half = 'B' AND a.z IS NOT NULL AND b.z IS NOT NULL"
    query = f"SELECT layer, feature, energy, {sides} FROM {table} a JOIN {table} b USING (layer, feature, energy)"
    with Warehouse(db) as warehouse:
        frame = warehouse.sql(f"{query} WHERE {where} ORDER BY energy, layer, feature").numpy()
    wanted = np.ones(len(frame["layer"]), bool)
    if layers is not None:
        wanted &= np.isin(frame["layer"], layers)
    if energies is not None:
        wanted &= np.isin(frame["energy"].astype(str), energies)
    return {name: filled(values)[wanted] for name, values in frame.items()}


def _places_of(halves: Mapping[str, NDArray[Any]]) -> Iterator[tuple[list[str], list[Mask]]]:
    energy = halves["energy"].astype(str)
    places = {(int(layer), name): None for layer, name in zip(halves["layer"], energy, strict=True)}
    return with_totals({(layer, name): (halves["layer"] == layer) & (energy == name) for layer, name in places})


def halves_table(db: Path, layers: Sequence[int] | None, energies: Sequence[str] | None) -> Table:
    """Var(z_A − z_B)/2 between the halves of the run's documents: 1 where contexts are replicates."""
    halves = _halves(db, layers, energies)
    rows = [["energy", "layer", "features", "Var(z_A − z_B)/2", "of z_null", "correlation of z_A and z_B"]]
    for first, masks in _places_of(halves):
        here = np.any(masks, axis=0)
        a, b, null_a, null_b = (halves[name][here] for name in ("z_a", "z_b", "z_null_a", "z_null_b"))
        both = np.isfinite(null_a + null_b)
        variance, of_null = np.var(a - b) / 2, np.var((null_a - null_b)[both]) / 2
        rows.append([*first, f"{here.sum():,}", f"{variance:.2f}", f"{of_null:.2f}", f"{np.corrcoef(a, b)[0, 1]:.2f}"])
    return "Documents: z in two halves", rows


# ------------------------------------------------------------------------------------------------ unequal


def unequal_p(sample: Sample) -> dict[str, Floats]:
    """p by feature of each test, of the negative control too; NaN where it cannot test [feature].

    With a as it is, less its mean over the context's counted tokens, and as the stream has it: the last two are one.
    """
    kept, a, contexts = streamed(sample), sample.a, sample.contexts
    columns, counted = kept.columns, kept.counted
    tested = contexts.less_mates(contexts.centred(sample.g)) * counted[..., None]
    labels = np.unique(contexts.documents, return_inverse=True)[1]
    p = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        p["z of the stream"] = two_sided_p(columns["sum_s"] / np.sqrt(columns["sum_s2"]))
        p["its z_null"] = two_sided_p(columns["null_s"] / np.sqrt(columns["null_s2"]))
        for name, s in (("a as it is", s_by_context(a, tested)), ("a centred", s_centred(a, tested, counted))):
            p[f"z, {name}"] = two_sided_p(s.sum(0) / np.sqrt((s**2).sum(0)))
            by_document = np.zeros((labels.max() + 1, a.shape[-1]))
            np.add.at(by_document, labels, s)
            z = by_document.sum(0) / np.sqrt((by_document**2).sum(0))
            of_documents = document_p(z, (by_document != 0).sum(0), len(by_document))
            p |= {f"documents ({method}), {name}": of_documents[method] for method in ("all", "student")}
    return p


def s_by_context(a: Singles, tested: Singles) -> Floats:
    """S_c = Σa·g̃ by context and feature; a and g̃ [context, position, feature], g̃ 0 where not counted."""
    result: Floats = np.einsum("ctf,ctf->cf", a.astype(np.float64), tested)
    return result


def s_centred(a: Singles, tested: Singles, counted: Mask) -> Floats:
    """S_c − (Σa/n)(Σg̃), the sums over the context's n counted tokens: Σ of a minus its mean times g̃."""
    sum_a = np.einsum("ctf,ct->cf", a.astype(np.float64), counted)
    n = np.maximum(counted.sum(1), 1)[:, None]
    return s_by_context(a, tested) - sum_a / n * tested.sum(1, dtype=np.float64)


def unequal_table(seed: int) -> Table:
    """Levels in UNEQUAL of each test, SEEDS seeds each."""
    rows: list[list[str]] = []
    for i, situation in enumerate(tqdm(UNEQUAL, desc="unequal")):
        seeds = range(1_000_000 * (seed + 1) + 1_000 * i, 1_000_000 * (seed + 1) + 1_000 * i + SEEDS)
        repetitions = [unequal_p(synthetic(SYNTHETIC[situation], each)) for each in seeds]
        if not rows:
            rows.append(["situation", *(f"{test}: 5 % / 0.1 %" for test in repetitions[0])])
        families = {test: [p[test][np.isfinite(p[test])] for p in repetitions] for test in repetitions[0]}
        rows.append([situation, *map(levels, families.values())])
    return "Unequal: synthetic contexts, nothing is true", rows


# ------------------------------------------------------------------------------------------------ selection


def selection_table(db: Path, layers: Sequence[int] | None, energies: Sequence[str] | None) -> Table:
    """Size in half B, in the direction of A, over size in A: means over what was selected in A."""
    halves = _halves(db, layers, energies)
    kinds = (f"{TOP} largest |score|, q < 0.05", "all q < 0.05", f"{TOP} largest |score|", "all tested")
    rows = [["energy", "layer", *(f"{kind}: n / score / score_within / q < 0.05 in B" for kind in kinds)]]
    for first, masks in _places_of(halves):
        picked: list[list[Ids]] = [[] for _ in kinds]
        for mask in masks:
            here = np.flatnonzero(mask)
            here = here[np.argsort(-np.abs(halves["score_a"][here]), kind="stable")]
            significant = here[halves["q_value_a"][here] < 0.05]
            for chosen, selected in zip(picked, (significant[:TOP], significant, here[:TOP], here), strict=True):
                chosen.append(selected)
        cells = []
        for chosen in picked:
            selected = np.concatenate(chosen)
            if not len(selected):
                cells.append("0")
                continue
            kept = []
            for name in ("score", "score_within"):
                a, b = halves[f"{name}_a"][selected], halves[f"{name}_b"][selected]
                kept.append(f"{(np.sign(a) * b).sum() / np.abs(a).sum():.2f}")
            again = (halves["q_value_b"][selected] < 0.05).mean()
            cells.append(f"{len(selected)} / {' / '.join(kept)} / {again:.0%}")
        rows.append([*first, *cells])
    return "Selection: size in half B over size in half A", rows


if __name__ == "__main__":
    main()
