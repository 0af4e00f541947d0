"""Stored statistics of version 3 against ones computed from the gradient vectors, without the byte they went through.

t_specific and p_reference are stored to the rounding of sums that are kept as a scale times an integer of seven bits:
a hundredth of the usual sum each, less of a mean of 64 squares. The cosine's ‖m_j‖ is estimated from 64 random
directions, so to 1/√128 of itself. Intervals spread what Σg² contexts without the feature have like Σ‖∇‖².
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from intervals import intervals
from measured import Measured, filled, outer, z_and_clusters
from numpy.typing import NDArray
from scrutiny_intervals import document_sums
from tables import Table, with_totals

from energy_lens import Warehouse
from energy_lens.ingest.statistics.directions import DecoderRows, Sizes, direction_test
from energy_lens.ingest.statistics.significance import two_sided_t_p

Floats = NDArray[np.float64]

#: Documents with the feature that the test across them needs.
MIN_DOCUMENTS = 10


def exact(measured: Measured) -> dict[str, Floats]:
    """What `efas` should say of the tested features [tested], from the vectors."""
    tested = np.flatnonzero(measured.enough)
    rows, m = measured.decoder.astype(np.float64), measured.m()[tested]
    lengths = np.linalg.norm(rows, axis=1)
    sizes = m @ rows.T / np.sqrt(np.einsum("kd,de,ke->k", rows, outer(measured.tested), rows))  # N [tested, row]
    references = np.broadcast_to(measured.references, (len(tested), len(measured.references)))
    is_other = references != tested[:, None]
    squares = np.take_along_axis(sizes, references, 1) ** 2
    t = sizes[np.arange(len(tested)), tested] / np.sqrt((squares * is_other).sum(1) / is_other.sum(1))
    cosine = (m * rows[tested]).sum(1) / lengths[tested] / np.linalg.norm(m, axis=1)
    z, n = z_and_clusters(
        measured.s([measured.decoder])[0], measured.pairs, measured.contexts.documents, len(measured.decoder)
    )
    z, n = z[tested], n[tested]
    student = z * np.sqrt((n - 1) / np.maximum(n - z**2, 1e-12))
    found = intervals(document_sums(measured))
    low, high = (np.tanh(np.arctanh(found.r) + side * found.fisher) for side in (-1, 1))
    few = n < MIN_DOCUMENTS
    return {
        "t_specific": t, "cosine": cosine, "p_reference": _p_reference(measured, m),
        "z_documents": np.where(few, np.nan, z),
        "p_documents": np.where(few, np.nan, two_sided_t_p(student, np.maximum(n - 1, 1))),
        "ci_low": low, "ci_high": high,
    }  # fmt: skip


def _p_reference(measured: Measured, m: Floats) -> Floats:
    """From exact sums, but by the package's own choice of the row that stands in. m: [tested, d_model]."""
    rows, tested = measured.decoder.astype(np.float64), np.flatnonzero(measured.enough)
    unit = rows[measured.references] / np.linalg.norm(rows[measured.references], axis=1, keepdims=True)
    sum_s, sum_gc2 = np.zeros(len(rows)), np.einsum("kd,de,ke->k", rows, outer(measured.tested), rows)
    sum_s[tested] = (m * rows[tested]).sum(1)
    compared = DecoderRows(rows, measured.references, np.eye(1, rows.shape[1]))
    sizes = Sizes(compared, sum_s, sum_gc2)
    return direction_test(sizes, tested, np.column_stack([m @ unit.T, m[:, 0]])).p_reference


def stored(measured: Measured, generator: np.random.Generator) -> dict[str, Floats] | None:
    """Differences of what is stored from `exact`, of the tested features; None of version 2.

    Of t_specific and z_documents relative to their size, from 1; of the cosine relative to the exact one; of ends of
    the interval relative to its half-width; of p as they are.
    """
    del generator
    if not measured.stored or measured.version < 3:
        return None
    from_vectors = exact(measured)
    kept = {name: values[measured.enough] for name, values in measured.stored.items()}
    half_width = (from_vectors["ci_high"] - from_vectors["ci_low"]) / 2
    scales = {
        "t_specific": np.maximum(np.abs(from_vectors["t_specific"]), 1), "cosine": np.abs(from_vectors["cosine"]),
        "z_documents": np.maximum(np.abs(from_vectors["z_documents"]), 1), "ci_low": half_width, "ci_high": half_width,
    }  # fmt: skip
    for name, values in kept.items():
        assert (np.isfinite(values) == np.isfinite(from_vectors[name])).all(), f"{name} is stored for other features"
    return {name: np.abs(values - from_vectors[name]) / scales.get(name, 1) for name, values in kept.items()}


def stored_table(results: Mapping[tuple[int, str], Any]) -> Table:
    """Median and largest differences."""
    results = {place: result for place, result in results.items() if result is not None}
    rows = [["energy", "layer", "features"]]
    for first, several in with_totals(results):
        rows[0] = [*rows[0][:3], *(f"{name}: median / largest" for name in several[0])]
        cells = []
        for name in several[0]:
            differences = np.concatenate([result[name] for result in several])
            differences = differences[np.isfinite(differences)]
            cells.append(f"{np.median(differences):.1e} / {differences.max(initial=0):.1e}")
        rows.append([*first, f"{sum(len(result['cosine']) for result in several):,}", *cells])
    return "Stored: differences from what the vectors say", rows


def found_table(db: Path, layers: Sequence[int] | None, energies: Sequence[str] | None) -> Table:
    """What each stored test finds, what the controls reject, and how many of its findings z_documents keeps."""
    columns = ("p_value", "q_value", "p_specific", "q_specific", "p_reference", "p_documents", "q_documents", "z_null")
    query = f"SELECT layer, energy, {', '.join(columns)} FROM efas WHERE gradient = 'decoder' AND category = 'all'"
    with Warehouse(db) as warehouse:
        found = warehouse.sql(f"{query} AND p_value IS NOT NULL ORDER BY energy, layer").numpy()
    values = {name: filled(found[name]) for name in columns}
    energy = found["energy"].astype(str)
    places = {
        (int(layer), name): (found["layer"] == layer) & (energy == name)
        for layer, name in dict.fromkeys(zip(found["layer"].tolist(), energy.tolist(), strict=True))
        if (layers is None or layer in layers) and (energies is None or name in energies)
    }
    rows = [["energy", "layer", "features", "z: p / q < 0.05", "t_specific: p / q < 0.05", "both q < 0.05"]]
    rows[0] += ["z_documents: p / q < 0.05", "p_documents < 0.05 of z's / of t_specific's findings"]
    rows[0] += ["a reference row: 5 % / 0.1 %", "z_null beyond 1.96"]
    for first, masks in with_totals(places):
        here = {name: column[np.any(masks, axis=0)] for name, column in values.items()}
        by_z, by_direction = here["q_value"] < 0.05, here["q_specific"] < 0.05
        documents, reference = here["p_documents"] < 0.05, here["p_reference"][np.isfinite(here["p_reference"])]
        rows.append(
            [
                *first, f"{len(by_z):,}", f"{(here['p_value'] < 0.05).mean():.1%} / {by_z.sum():,}",
                f"{(here['p_specific'] < 0.05).mean():.1%} / {by_direction.sum():,}",
                f"{(by_z & by_direction).sum():,}",
                f"{documents.sum() / max(np.isfinite(here['p_documents']).sum(), 1):.1%} / "
                f"{(here['q_documents'] < 0.05).sum():,}",
                f"{(by_z & documents).sum():,} / {(by_direction & documents).sum():,}",
                f"{(reference < 0.05).mean():.1%} / {(reference < 0.001).mean():.2%}",
                f"{(np.abs(here['z_null']) > 1.96).mean():.1%}",
            ]
        )  # fmt: skip
    return "Stored: what the tests find", rows
