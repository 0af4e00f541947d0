"""The figure of docs/significance.md: results of benchmarks/significance.py in, SVG text out.

python benchmarks/significance_figure.py DIR/significance.json FILE.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from energy_lens.reports.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    STYLE,
    VERMILION,
    WIDTH,
    as_svg,
)

#: test: label, colour, marker.
LOOKS = {
    "tokens": ("tokens as independent", GREY, "s"),
    "contexts": ("contexts as clusters", ORANGE, "D"),
    "interval": ("interval of score", GREEN, "^"),
    "within": ("z", BLUE, "o"),
    "z_documents": ("z_documents", PURPLE, "v"),
    "t_specific": ("t_specific", VERMILION, "P"),
}

#: What `elw` tests is drawn strongly, what it is compared with is not.
STRONG = ("within", "z_documents", "t_specific")

#: The situations of which power is drawn, with their lines and labels.
LINES = {
    ("documents, same category", "nll"): ("-", "nll, shuffled"),
    ("documents, same category", "hopfield"): ((0, (3, 2)), "hopfield, shuffled"),
}

#: Situations in which something is true, though not what every test asks; they come last.
ELSE = (
    "large gradients",
    "atypical: one direction",
    "atypical: own directions",
    "atypical: rows in clusters",
    "document slopes",
)

TITLE = (
    "Share of features rejected by six tests where nothing is true, or something else than they ask, and share of "
    "planted effects that four of them detect"
)


def draw(results: Mapping[str, Any]) -> str:
    """SVG text of both panels."""
    rows = [*results["null"], *results["synthetic"]]
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}):
        figure = Figure(figsize=(WIDTH, 0.32 * len(rows) + 1.5))
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        _null(left, rows)
        _power(right, results["power"])
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=6, columnspacing=1.4, handletextpad=0.3)
        return as_svg(figure, "significance", TITLE)


def _null(panel: Any, rows: Sequence[dict[str, Any]]) -> None:
    """A line of marks for each situation: means over repetitions; what is below 1 % stands at the edge."""
    places = -np.arange(len(rows), dtype=float)
    panel.axvspan(3, 7, color=GREY, alpha=0.22, linewidth=0, zorder=0)
    panel.axvline(5, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    for i, (test, (label, colour, marker)) in enumerate(LOOKS.items()):
        means = [max(100 * np.nanmean(row["tests"][test]["at_5"]), 1.0) for row in rows]
        strong = test in STRONG
        panel.plot(
            means, places + 0.25 - 0.1 * i, linestyle="", marker=marker, color=colour,
            markersize=5.4 if strong else 4, markeredgecolor=PAPER, markeredgewidth=0.4, label=label,
            zorder=4 if strong else 3,
        )  # fmt: skip
    panel.set_yticks(places, [_name(row) for row in rows])
    panel.set_ylim(places[-1] - 0.6, 0.6)
    panel.set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlim(0.9, 112)
    panel.grid(True, axis="both")
    panel.tick_params(axis="x", which="major", length=3)
    panel.set_xlabel("Features with p < 0.05, % (band: 3 to 7 %)")
    n_true = sum(row["situation"] in ELSE for row in rows)
    border = places[-1] + n_true - 0.5
    panel.axhline(border, color=INK, linewidth=0.9, zorder=1)
    panel.set_title("Nothing is true, or something else")


def _name(row: Mapping[str, Any]) -> str:
    if row["energy"] == "synthetic":
        return f"synthetic: {row['situation'].replace(':', ',')}"
    return f"{row['energy']}: {row['situation']}"


def _power(panel: Any, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        style, _ = LINES.get((row["situation"], row["energy"]), (None, ""))
        if style is None:
            continue
        for test in (*STRONG, "interval"):
            _, colour, marker = LOOKS[test]
            panel.plot(
                row["sizes"], [100 * share for share in row["tests"][test]["calibrated"]], color=colour,
                linestyle=style, linewidth=1.3, marker=marker, markersize=4.6, markeredgecolor=PAPER,
                markeredgewidth=0.4, zorder=3,
            )  # fmt: skip
    panel.axhline(5, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    panel.set_ylim(0, 102)
    panel.set_xlim(left=0)
    panel.set_xlabel("Planted effect (score_within)")
    panel.set_ylabel("Detected at a true 5 % level, %")
    panel.set_title("An effect was planted")
    handles = [panel.plot([], [], color=MUTED, linestyle=style, linewidth=1.3)[0] for style, _ in LINES.values()]
    panel.legend(
        handles, [label for _, label in LINES.values()], loc="lower right", bbox_to_anchor=(1, 0.07), handlelength=2.4
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
