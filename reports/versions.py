"""Rows of sql/reports/versions.sql in, versions and hashes as pairs of a name and a value out."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from energy_lens.reports.formatting import Cell, Foreign, count
from energy_lens.version import __version__

#: Packages that numbers or pictures depend on; those of pyproject that only move files are left out.
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "numba", "duckdb", "polars", "matplotlib")


def hashes(row: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """What the run was made from: sha256 in full, versions, and the schema of the file."""
    saes = zip(row["sae_layers"], row["sae_sha256s"], strict=True)
    return [
        ("Run's identity", Foreign(row["identity"])),
        ("Begun with", Foreign(f"elw {row['elw_version']}, statistics version {row['statistics_version']}")),
        ("Schema", f"migration {row['schema_number']}"),
        ("Model's weights", Foreign(row["model_sha256"])),
        ("Tokenizer", Foreign(row["tokenizer_sha256"])),
        *((f"SAE of layer {layer}", Foreign(sha256)) for layer, sha256 in saes),
        (
            "Corpus",
            f"{row['corpus_sha256']}, of the sorted sha256 of its {count(row['n_documents'])} documents, a line each"
            if row["corpus_sha256"]
            else "no documents",
        ),
    ]


def installed() -> list[tuple[str, str]]:
    """Versions of elw, Python and the packages that are installed here; the run may have been made with others."""
    found = [("elw", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found
