"""Tables of a report in, the headings of its sections out, in order: its table of contents."""

from __future__ import annotations

from collections.abc import Mapping

from energy_lens.reports.tables import Table

#: Section: the table without whose rows it is left out, if any.
SECTIONS = {
    "Abstract": None,
    "Contents": None,
    "What was run": None,
    "What was found": None,
    "Noise floor and the draft's headline": None,
    "Features that align most": None,
    "Where they fire": None,
    "Concept classes": "concept_classes",
    "Interventions": "intervention_effects",
    "Attractors": "attractor_settings",
    "Energies": None,
    "Controls": None,
    "Limits": None,
    "Methods": None,
    "Versions and hashes": None,
    "How to reproduce": None,
}


def contents(shown: Mapping[str, Table]) -> list[str]:
    """Headings of the sections that the report has."""
    return [title for title, table in SECTIONS.items() if table is None or shown[table].rows]
