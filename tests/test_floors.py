"""The floors of the house: what may import what (docs/architecture.md). Nothing imports upwards, or in a circle.

Imports are read from the source, those inside functions and under TYPE_CHECKING too: a late import hides an arrow from
the interpreter, not from a reader.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: How a statement begins, as opposed to a sentence.
SQL = (
    r"\s*(select\s.*\bfrom\b|with\s+\w+\s+as\s*\(|(delete|insert)\s+(from|into)|update\s+\w+\s+set"
    r"|(create|alter)\s+(table|view))"
)

#: Rooms, the ground first. A room may import rooms of its own floor and of those below.
FLOORS = (
    ("sql", "errors", "console", "version"),
    ("warehouse",),
    (
        "ingest.corpus",
        "ingest.sources",
        "ingest.rows",
        "ingest.hub",
        "ingest.repositories",
        "ingest.texts",
        "ingest.pipes",
        "ingest.own_files",
        "ingest.token_file",
        "ingest.inclusion",
        "ingest.compiled",
        "ingest.token_classes",
        "ingest.shipped",
        "ingest.model",
        "ingest.cluster",
    ),
    ("ingest.contexts",),
    ("ingest.sae",),
    ("ingest.energies",),
    ("ingest.statistics", "ingest.training", "ingest.reading"),
    ("ingest.pipeline",),
    ("analysis", "reports"),
    ("analyzer",),
    ("cli",),
)

#: (room, room that it must not import, why), where floors alone would allow it.
CLOSED_DOORS = (
    ("analysis", "reports", "an analysis writes tables; it never renders"),
    ("reports", "analysis", "a report asks the warehouse, not a model"),
    ("analysis.attractors", "analysis.interventions", "attractors know nothing of patches"),
    ("ingest.statistics", "ingest.training", "formulas fit nothing"),
    ("ingest.training", "ingest.statistics", "what is fitted knows no test"),
    ("ingest.pipeline", "ingest.training", "an ingest fits nothing"),
    ("analysis", "ingest.training", "an analysis fits nothing"),
    ("ingest.statistics", "ingest.reading", "formulas run no model"),
    ("ingest.reading", "ingest.statistics", "what is read is not summed there"),
    ("ingest.reading", "ingest.training", "what is read is not fitted there"),
    ("reports", "ingest", "a report asks the warehouse alone"),
    ("ingest.corpus", "warehouse.database", "the flat files of ingest open no warehouse"),
    ("ingest.sources", "ingest.corpus", "where a text is does not depend on what is made of it"),
    ("ingest.rows", "warehouse", "a table of documents is no warehouse"),
    ("ingest.repositories", "ingest.model", "fetching files does not depend on what is in them"),
    ("ingest.repositories", "warehouse", "the hub is asked without a warehouse"),
    ("ingest.contexts", "warehouse.database", "the flat files of ingest open no warehouse"),
    ("ingest.inclusion", "warehouse", "which tokens count is decided without a warehouse"),
    ("ingest.reading", "warehouse.database", "the flat files of ingest open no warehouse"),
    ("ingest.model", "warehouse.database", "a model knows no table"),
    ("ingest.energies", "warehouse.database", "an energy writes nothing"),
    ("ingest.cluster", "ingest.model", "workers are had for any work, whatever it is"),
    ("ingest.cluster", "warehouse", "workers are had for any work, whatever it is"),
)


def modules() -> dict[str, Path]:
    """Each module of the package by its name below energy_lens; a package's own file by the package's name."""
    skipped = ("tests", "benchmarks", "build", "docs", "notebooks")
    files = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in skipped or any(part.startswith(".") for part in parts):
            continue
        files[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    return files


def imported(path: Path, names: Iterable[str]) -> Iterator[str]:
    """The package's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call):  # import_module("energy_lens.…") and the like
            texts = [word.value for word in node.args if isinstance(word, ast.Constant)]
            targets = [text for text in texts if isinstance(text, str) and text.startswith("energy_lens.")]
        else:
            continue
        for target in targets:
            if target.partition(".")[0] != "energy_lens":
                continue
            inner = target.partition(".")[2]
            while inner and inner not in names:  # a name in a module, not a module
                inner = inner.rpartition(".")[0]
            yield inner  # empty: the package's own face, which hands on what stands near the top


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    """Each module's imports. A package's face hands on what its own files have, which is no arrow."""
    files = modules()
    found = {}
    for name, path in files.items():
        targets = set(imported(path, files)) - {name}
        if path.name == "__init__.py":
            targets = {target for target in targets if name and not target.startswith(f"{name}.")}
        found[name] = targets
    return found


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def floor_of(module: str) -> int:
    """The number of a module's floor; the faces of ingest and of the package itself stand on none."""
    floors = [number for number, rooms in enumerate(FLOORS) if any(within(module, room) for room in rooms)]
    assert len(floors) == 1, f"{module} stands on {len(floors)} floors: name its room in FLOORS and ROOMS"
    return floors[0]


def test_every_module_has_a_floor(arrows: Mapping[str, set[str]]) -> None:
    for module in arrows:
        if module not in ("", "ingest"):
            floor_of(module)
    rooms = [room for floor in FLOORS for room in floor]
    assert [room for room in rooms if not any(within(module, room) for module in arrows)] == []


def test_nothing_imports_upwards(arrows: Mapping[str, set[str]]) -> None:
    upwards = [
        f"{module} -> {target}"
        for module, targets in arrows.items()
        for target in targets
        if module not in ("", "ingest") and floor_of(target) > floor_of(module)
    ]
    assert upwards == []


def test_there_is_no_circle_at_any_level(arrows: Mapping[str, set[str]]) -> None:
    """Neither between files nor between folders, however deep one looks."""
    depth = max(name.count(".") for name in arrows) + 1
    for level in range(1, depth + 1):
        rooms: dict[str, set[str]] = defaultdict(set)
        for module, targets in arrows.items():
            room = ".".join(module.split(".")[:level])
            for target in targets:
                other = ".".join(target.split(".")[:level])
                if other != room:
                    rooms[room].add(other)
        try:
            TopologicalSorter(rooms).prepare()
        except CycleError as error:
            pytest.fail(f"a circle at level {level}: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(("room", "other", "why"), CLOSED_DOORS, ids=lambda value: str(value)[:30])
def test_closed_doors_stay_closed(room: str, other: str, why: str, arrows: Mapping[str, set[str]]) -> None:
    through = [
        f"{module} -> {target}"
        for module, targets in arrows.items()
        for target in targets
        if within(module, room) and within(target, other)
    ]
    assert through == [], why


def test_no_file_goes_through_a_face_that_it_is_behind(arrows: Mapping[str, set[str]]) -> None:
    """A package's face imports its files: one that imported the face, or that of the whole package, closed a circle."""
    circles = [
        f"{module} -> {target or 'energy_lens'}"
        for module, targets in arrows.items()
        for target in targets
        if target != module and (not target or module.startswith(f"{target}."))
    ]
    assert circles == []


def test_the_ground_floor_imports_nothing_of_the_package(arrows: Mapping[str, set[str]]) -> None:
    assert {room: arrows[room] for room in ("errors", "console", "version")} == {
        "errors": set(), "console": set(), "version": set()
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("energy_lens", ("torch", "polars", "duckdb", "numpy")),
        ("energy_lens.cli", ("torch", "polars", "duckdb", "numpy", "transformers", "matplotlib", "tqdm")),
        ("energy_lens.warehouse.query", ("torch", "polars", "transformers", "scipy")),
        *((f"energy_lens.{name}", ("torch", "transformers")) for name in modules() if name.startswith("warehouse.")),
        ("energy_lens.ingest.pipeline", ("transformers",)),
        ("energy_lens.reports.render", ("torch", "transformers")),
        *(
            (f"energy_lens.reports.cards.{name}", ("torch", "polars", "transformers", "scipy", "wcwidth"))
            for name in ("terminal", "terminal_contexts", "contexts", "listing", "as_json")
        ),
    ],
)
def test_what_must_not_load_does_not(module: str, heavy: tuple[str, ...]) -> None:
    """A query starts in a fraction of a second because nothing on its way loads what takes seconds."""
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_holds_no_sql_and_no_arrays() -> None:
    for path in (ROOT / "cli").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {name.split(".")[0] for name in names} & {"torch", "numpy", "polars", "duckdb"}, path
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [text for text in texts if re.match(SQL, text, re.IGNORECASE)], path
