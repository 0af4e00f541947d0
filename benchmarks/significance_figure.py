"""The figure of docs/significance.md: results of benchmarks/significance.py in, SVG text out.

python benchmarks/significance_figure.py DIR/significance.json FILE.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from energy_lens.reports.figures import BLUE, GREEN, GREY, INK, MUTED, ORANGE, PAPER, STYLE, VERMILION, WIDTH, as_svg

#: test: label, colour, marker.
LOOKS = {
    "tokens": ("tokens as independent", VERMILION, "s"),
    "contexts": ("contexts as clusters", ORANGE, "D"),
    "documents": ("documents as clusters", GREEN, "^"),
    "within": ("within contexts (z, q)", BLUE, "o"),
}

#: The shuffle into which the second panel's effects were planted, and the lines of its energies.
PLANTED_INTO = "documents, same category"
LINES = {"logit_lens": "-", "nll": (0, (3, 2))}

TITLE = "Share of features rejected by four tests where nothing is true, and share of planted effects they detect"


def draw(results: Mapping[str, Any]) -> str:
    """SVG text of both panels."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}):
        figure = Figure(figsize=(WIDTH, 4.5))
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _null(left, results["null"])
        _power(right, results["power"])
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, columnspacing=1.6, handletextpad=0.4)
        return as_svg(figure, "significance", TITLE)


def _null(panel: Any, rows: list[dict[str, Any]]) -> None:
    """A line of marks for each situation: the mean over repetitions, with a bar of one standard deviation each way."""
    places = -np.arange(len(rows), dtype=float)
    panel.axvspan(3, 7, color=GREY, alpha=0.22, linewidth=0, zorder=0)
    panel.axvline(5, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    for i, (test, (label, colour, marker)) in enumerate(LOOKS.items()):
        shares = [100 * np.array(row["tests"][test]["at_5"]) for row in rows]
        means, deviations = [of_row.mean() for of_row in shares], [of_row.std(ddof=1) for of_row in shares]
        panel.errorbar(
            means, places + 0.24 - 0.16 * i, xerr=deviations, fmt=marker, color=colour, markersize=4.6,
            markeredgecolor=PAPER, markeredgewidth=0.4, elinewidth=1, label=label, zorder=3,
        )  # fmt: skip
    panel.set_yticks(places, [_name(row) for row in rows])
    panel.set_ylim(places[-1] - 0.6, 0.6)
    panel.set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlim(1.0, 110)
    panel.grid(False, axis="y")
    panel.grid(True, axis="x")
    panel.tick_params(axis="x", which="major", length=3)
    panel.set_xlabel("Features with p < 0.05, % (band: 3 to 7 %)")
    panel.set_title("Shuffled, or noise: nothing is true")


def _name(row: Mapping[str, Any]) -> str:
    if row["energy"] == "noise":
        return str(row["situation"].replace(": ", ":\n"))
    return f"{row['situation']},\n{row['energy']}"


def _power(panel: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["situation"] != PLANTED_INTO:
            continue
        for test, (_, colour, marker) in LOOKS.items():
            panel.plot(
                row["sizes"], [100 * share for share in row["tests"][test]["calibrated"]], color=colour,
                linestyle=LINES[row["energy"]], linewidth=1.3, marker=marker, markersize=4.2, markeredgecolor=PAPER,
                markeredgewidth=0.4, zorder=3,
            )  # fmt: skip
    panel.axhline(5, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    panel.set_ylim(0, 102)
    panel.set_xlim(left=0)
    panel.set_xlabel("Planted effect (score_within)")
    panel.set_ylabel("Detected at a true 5 % level, %")
    panel.set_title("An effect was planted")
    handles = [panel.plot([], [], color=MUTED, linestyle=style, linewidth=1.3)[0] for style in LINES.values()]
    panel.legend(handles, list(LINES), loc="center right", handlelength=2.4)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
