"""The figure of docs/native-energy.md: what benchmarks/native_study.py made in, SVG text out.

    python benchmarks/native_figure.py WORK FILE.svg

Left: losses of the shipped energy transformer and of the plain transformer beside it, on documents that decide nothing.
Right: the cosine of `native` of features, against how doubling one at single tokens changes E_t before the step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import polars as pl
from matplotlib.figure import Figure
from native_study import EFAS, PATCHES, read

from energy_lens.ingest.shipped import FOLDER, MODEL
from energy_lens.reports.figures import BLUE, GREY, MUTED, STYLE, VERMILION, WIDTH, as_svg

#: File of a loss curve beside the shipped model: label, colour.
CURVES = {"loss.jsonl": ("energy transformer", VERMILION), "beside.loss.jsonl": ("plain transformer", BLUE)}

#: Direction of an edit: label, colour, opacity; the feature itself is drawn last.
ALONG = {
    "isotropic": ("as far along a random direction", GREY, 0.5),
    "feature": ("along the feature", VERMILION, 0.8),
}


def main() -> None:
    work, target = map(Path, sys.argv[1:])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, WIDTH * 0.42), layout="constrained")
        losses, signs = figure.subplots(1, 2)
        for name, (label, colour) in CURVES.items():
            curve = pl.read_ndjson(FOLDER / "energy-transformer-small" / MODEL / name).drop_nulls(
                "select_nats_per_token"
            )
            losses.plot(curve["tokens"] / 1e6, curve["select_nats_per_token"], color=colour, label=label)
        losses.set_xlabel("tokens trained on, millions")
        losses.set_ylabel("loss, nats a token")
        losses.set_title("Learning", loc="left")
        losses.legend(frameon=False)
        scores = read(work / "trained.duckdb", EFAS).filter(energy="native").select("layer", "feature", "cosine")
        patches = read(work / "trained.duckdb", PATCHES).filter(kind="double")
        for direction, (label, colour, alpha) in ALONG.items():
            own = patches.filter(direction=direction).group_by("layer", "feature").agg(pl.col("delta_energy").mean())
            both = own.join(scores, on=["layer", "feature"]).drop_nulls()
            signs.scatter(
                both["cosine"], both["delta_energy"], s=9, color=colour, alpha=alpha, label=label, linewidths=0
            )
        signs.set_yscale("symlog", linthresh=1)
        signs.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for line in (signs.axhline, signs.axvline):
            line(0, color=MUTED, linewidth=0.6)
        signs.set_xlabel("EFAS of native, as cosine")
        signs.set_ylabel("mean change of E when doubled")
        signs.set_title("More of a feature", loc="left")
        signs.legend(frameon=False, fontsize="small", loc="lower left", borderaxespad=0)
        target.write_text(
            as_svg(figure, "native_energy", "What a model trained to descend its own energy shows"), encoding="utf-8"
        )
    print(json.dumps({"features": len(both)}))


if __name__ == "__main__":
    main()
