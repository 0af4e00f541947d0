"""`elw report`: a warehouse in; research_report.md, research_report.html, raw_results.json and figures/*.svg out.

Every number comes from a named query in sql/reports/, and raw_results.json holds all of them. The same warehouse gives
the same bytes. Nothing is written before everything is rendered, and each file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from markupsafe import Markup

from energy_lens.errors import ElwError, UsageError, did_you_mean
from energy_lens.reports import figures, formatting, tables
from energy_lens.reports.contents import contents
from energy_lens.reports.examples import Illustrated, leading
from energy_lens.reports.methods import methods
from energy_lens.reports.queries import Answer, gather
from energy_lens.reports.templating import environment_of
from energy_lens.reports.versions import hashes, installed
from energy_lens.warehouse.files import whole
from energy_lens.warehouse.locks import claimed_folder

FORMATS = ("md", "html")

_TEMPLATES = Path(__file__).parent / "templates"

#: What they call of `formatting`.
_FILTERS = (
    "count", "plural", "fixed", "percent", "significant", "probability", "noise_count", "code", "listing",
    "capitalised", "slug", "markdown", "prose_as_html", "running_markdown", "running_html", "visible",
)  # fmt: skip


def render(db: Path, output: Path, formats: tuple[str, ...] = FORMATS) -> list[Path]:
    """Write the report of a warehouse's current run into the folder `output`; returns the files in order.

    formats: of the document itself, "md" or "html"; raw_results.json and figures/ are always written.
    Raises UsageError for an unknown format, an output that is no folder, that cannot be written or that another command
    is writing; WarehouseError when the warehouse cannot be opened; ElwError when its run has no statistics or the
    folder cannot be written.
    """
    check_formats(formats)
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file, not a folder: name a folder with --output.")
    with claimed_folder(output, "elw report"):
        answers, examples = gather(db)
        drawn = figures.draw(answers)
        texts = {f"figures/{name}.svg": svg for name, svg in drawn.items()}
        texts["raw_results.json"] = raw_results(answers)
        for chosen in dict.fromkeys(formats):
            texts[f"research_report.{chosen}"] = document(answers, examples, drawn, chosen)
        return write_files(output, texts)


def check_formats(formats: tuple[str, ...]) -> None:
    """Raises UsageError unless every format is known."""
    if unknown := [name for name in formats if name not in FORMATS]:
        near = did_you_mean(unknown[0], FORMATS)
        raise UsageError(f"{unknown[0]!r} is no format of a report{near}: choose {' or '.join(FORMATS)}.")


def document(
    answers: Mapping[str, Answer], examples: Sequence[Illustrated] | None, drawn: Mapping[str, str], chosen: str
) -> str:
    """The report as Markdown or HTML.

    examples: None where the cards of the run are not built.
    drawn: SVG text by figure name; a figure that is not there is left out.
    """
    is_html = chosen == "html"
    environment = environment_of([_TEMPLATES], _FILTERS)
    environment.filters["cell"] = formatting.html_cell if is_html else formatting.markdown_cell
    template = environment.get_template(f"research_report.{chosen}.j2")
    shown = tables.tables(answers)
    return template.render(
        run=answers["run"].rows[0],
        model=tables.model_name(answers["run"].rows[0]["model"]),
        facts=tables.run_facts(answers),
        tables=shown,
        contents=contents(shown),
        examples=examples,
        methods=methods(answers),
        hashes=hashes(answers["versions"].rows[0]),
        installed=installed(),
        commands=tables.commands(answers),
        summary=_summary(answers),
        captions=figures.CAPTIONS,
        figures={name: Markup(figures.inlined(name, svg)) for name, svg in drawn.items()},
    )


def _summary(answers: Mapping[str, Answer]) -> dict[str, Any]:
    """The rows that the report's sentences quote; no number is made here."""
    totals = [row for row in answers["alignment_by_layer"].rows if row["layer"] is None]
    decoder = [row for row in totals if row["gradient"] == "decoder"]
    signals = [row for row in decoder if not row["is_control"]]
    lead = next(iter(leading(signals)), None)
    noise = answers["noise_floor"].rows
    floors = {row["energy"]: row for row in noise if row["counted"] == "all"}
    active = [row for row in noise if row["counted"] == "active" and row["from_tokens"] is None]
    return {
        "signals": signals,
        "controls": [row for row in decoder if row["is_control"]],
        "lead": lead,
        "floors": floors,
        "floor": floors.get(lead["energy"]) if lead else None,
        "active": next(iter(leading(active)), None),
        "n_firing": sum(row["n_firing"] for row in answers["saes"].rows),
        "discrete": [row for row in totals if row["gradient"] == "discrete" and row["score_largest"] is not None],
        "replication": {row["energy"]: row for row in answers["replication"].rows if row["layer"] is None},
        "negative_control": [row for row in answers["null_control"].rows if row["layer"] is None],
        "uncalibrated": [
            row for row in answers["layer_energy"].rows if row["is_uncalibrated"] and row["category"] is None
        ],
        "noise": leading([row for row in noise if not row["is_control"]]),
        "all_noise": noise,
        "ablations": answers["ablations"].rows[0],
        "top": [row for row in answers["top_features"].rows if row["place"] == 1 and not row["is_control"]],
    }


def raw_results(answers: Mapping[str, Answer]) -> str:
    """Every query with its comment, columns, types and rows, as JSON; NaN and infinities are null."""
    queries = [
        {
            "name": answer.name,
            "answers": answer.question,
            "columns": answer.columns,
            "types": answer.types,
            "rows": [[_plain(row[column]) for column in answer.columns] for row in answer.rows],
        }
        for answer in answers.values()
    ]
    return json.dumps({"queries": queries}, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _plain(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return float(value)
        case datetime() | date():
            return value.isoformat()
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


# ------------------------------------------------------------------------------------------------ files


def write_files(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write texts below a folder by relative name: all under temporary names first, then all put in place.

    So a full disk leaves an earlier report as it was. Raises ElwError when the folder cannot be written.
    """
    targets = {folder / name: text for name, text in texts.items()}
    try:
        with _made_folders({target.parent for target in targets}), whole(*targets) as scratches:
            for scratch, text in zip(scratches, targets.values(), strict=True):
                scratch.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ElwError(
            f"The report cannot be written to {folder} ({reason}): make room or name another folder with --output."
        ) from error
    return list(targets)


@contextlib.contextmanager
def _made_folders(folders: set[Path]) -> Iterator[None]:
    """Make folders; on failure take away again those that were made."""
    missing = {parent for folder in folders for parent in (folder, *folder.parents) if not parent.exists()}
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in sorted(missing, reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
