"""Figures: answers of named queries in, SVG out, with selectable text and the same bytes every time.

Distributions are drawn alike throughout: a dot for the median, a thick bar for the quartiles, a thin one from the 5 %
to the 95 % quantile. Colours are of the palette by Okabe and Ito (2008), and no meaning rests on colour alone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energy_lens.reports.bitmaps import with_small_bitmaps
from energy_lens.reports.formatting import count, visible
from energy_lens.reports.queries import Answer, Row

INK, MUTED, GRID, PAPER = "#1b1f24", "#59626d", "#d5dae0", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c96a1",
)  # fmt: skip

#: Colours that the HTML page changes for its dark scheme, and its names for them.
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--rule", PAPER: "--paper", BLUE: "--blue", VERMILION: "--vermilion",
    GREEN: "--green",
}  # fmt: skip

#: Categories beyond these are left to the table: more do not fit side by side.
CATEGORY_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)

#: Layers beyond these get a label every so many.
MAX_TICKS = 12

#: Longer names of categories are cut.
MAX_NAME = 14

#: role: colour, marker, size in points², drawing order. `neither` lies below, being most of them.
ROLES = {
    "neither": (GREY, "o", 7, 1),
    "supports": (BLUE, "^", 15, 3),
    "opposes": (VERMILION, "v", 15, 2),
}

#: The points of a panel with more than this become a bitmap inside the SVG: as vectors 10,000 weigh a megabyte.
MAX_VECTOR_POINTS = 500

#: Interventions whose dose response is drawn, and what is drawn of each: a column and its axis.
MAX_DOSED = 3
DOSE_PANELS = (
    ("kl", "KL of a patch (nats, log scale)"), ("delta_total_size", "|ΔE| of a patch (nats, log scale)"),
)  # fmt: skip

#: Along what: its name, colour and marker.
DOSE_SERIES = {
    "feature": ("features", BLUE, "o"),
    "isotropic": ("isotropic", GREY, "s"),
    "covariance": ("by covariance", VERMILION, "^"),
    "decoder": ("other features", GREEN, "v"),
}

QUANTILES = ("q05", "q25", "median", "q75", "q95")

WIDTH = 7.2  #: inches, the text width of a page

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

#: matplotlib settings of every figure, on top of its defaults.
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "energy-lens",
    "text.parse_math": False,  # names from the warehouse may hold a $
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same widths everywhere
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.04,
}


@dataclass(frozen=True)
class Caption:
    """What a figure shows, in words."""

    query: str  #: name of the query whose rows it shows
    title: str  #: for a reader who cannot see it
    text: str


_BARS = "Dot: median; thick bar: quartiles; thin bar: 5 % to 95 %."

CAPTIONS = {
    "efas_by_layer": Caption(
        "reports/alignment_by_layer",
        "Distribution of EFAS scores by layer and energy",
        "EFAS scores of the features that fire, by layer, with the decoder gradient; each energy has a scale of its "
        f"own. By its size alone no score can be told from noise: the table counts those that pass a test. {_BARS}",
    ),
    "attribution_and_density": Caption(
        "reports/attribution_and_density",
        "Attribution of each feature against its activation density",
        "Attribution against activation density, one mark for each feature of each layer that fires. Supports: "
        "ablation is predicted to raise E; opposes: to lower it; both at a false discovery rate of 5 % across "
        "documents. Neither: the sign cannot be told from noise.",
    ),
    "direction_control": Caption(
        "reports/direction_control",
        "Share of features with a small p of the direction, own rows against reference rows",
        "Share of the tested pairs whose p of the direction is below a level, with the feature's own decoder row "
        "(p_specific) and with another feature's in its place (p_reference). The dashed line is the level itself, "
        "which is what holds where nothing is true.",
    ),
    "energy_by_layer_and_category": Caption(
        "reports/layer_energy",
        "Distribution of energies by layer and category",
        "Energy per token by category (of more than six, the largest), and by layer where it is read at layers. "
        f"{_BARS}",
    ),
    "negative_control": Caption(
        "reports/z_histogram",
        "Histograms of z and of the negative control",
        "The within-context statistic on the true pairing, and with the gradients of another context. The dashed line "
        "is what it follows where nothing is true.",
    ),
    "dose_response": Caption(
        "reports/dose_curves",
        "KL and change of the loss against the dose of an edit, along features and controls",
        "What patches do at each dose, in the mean over them, on logarithmic scales: along the features and along "
        "control directions of the same norm. Thin lines rise by the first and by the second power of the dose; below "
        "the dashed line is less than ten times what rounding does, which enters no exponent. Of more than three "
        "interventions, the latest.",
    ),
}


def draw(answers: Mapping[str, Answer]) -> dict[str, str]:
    """SVG text by figure name; a figure whose query has nothing to show is left out."""
    import warnings

    import matplotlib

    painters: dict[str, Callable[[Sequence[Row]], Any]] = {
        "efas_by_layer": _efas_by_layer,
        "attribution_and_density": _attribution_and_density,
        "energy_by_layer_and_category": _energy_by_layer_and_category,
        "direction_control": _direction_control,
        "negative_control": _negative_control,
        "dose_response": _dose_response,
    }
    drawn = {}
    # Defaults first: a reader's own matplotlibrc must not change the report.
    style = {**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # A name in another script is written as text all the same, in the reader's font.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        for name, paint in painters.items():
            figure = paint(answers[CAPTIONS[name].query.removeprefix("reports/")].rows)
            if figure is not None:
                drawn[name] = as_svg(figure, name, CAPTIONS[name].title)
    return drawn


def inlined(name: str, svg: str) -> str:
    """A figure as an element of an HTML page whose colours follow the page's light or dark scheme."""
    element = re.sub(r"<metadata>.*?</metadata>|<title>.*?</title>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, f"var({variable})")
    return element.replace("<svg", f'<svg role="img" aria-label="{CAPTIONS[name].title}"', 1)


# ------------------------------------------------------------------------------------------------ figures


def _efas_by_layer(rows: Sequence[Row]) -> Any:
    """Distribution of score over the features that fire, by layer; a panel for each energy."""
    rows = [row for row in rows if row["gradient"] == "decoder" and row["layer"] is not None and row["n_firing"]]
    rows = [row for row in rows if row["score_median"] is not None]
    if not rows:
        return None
    energies = _in_order(row["energy"] for row in rows)
    figure, panels = _panels(len(energies), height=2.9)
    for panel, energy in zip(panels, energies, strict=True):
        energy_rows = [row for row in rows if row["energy"] == energy]
        colour = GREEN if energy_rows[0]["is_control"] else BLUE
        for place, row in enumerate(energy_rows):
            _distribution(panel, place, [row[f"score_{q}"] for q in QUANTILES], colour, len(energy_rows))
        panel.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
        panel.set_xlim(-0.6, len(energy_rows) - 0.4)
        _layer_ticks(panel, energy_rows)
        panel.set_title(_title(energy_rows[0]))
        panel.set_ylabel("EFAS score (correlation)")
    return figure


def _layer_ticks(panel: Any, rows: Sequence[Row]) -> None:
    """Layers along x, each with its count of features that align in their own direction, while there is room."""
    roomy = len(rows) <= 8 and any(row["n_tested_specific"] for row in rows)
    places = range(0, len(rows), math.ceil(len(rows) / MAX_TICKS))
    labels = [str(row["layer"]) for row in rows]
    if roomy:
        labels = [f"{row['layer']}\n{count(row['n_specific'])}\nof {count(row['n_tested_specific'])}" for row in rows]
    panel.set_xticks(places, [labels[place] for place in places])
    panel.set_xlabel("Layer; features with q_specific < 0.05" if roomy else "Layer")


def _attribution_and_density(rows: Sequence[Row]) -> Any:
    """Every feature that fires: what ablating it is predicted to cost, against how often it fires."""
    rows = [row for row in rows if row["attribution"] is not None]
    if not rows:
        return None
    energies = _in_order(row["energy"] for row in rows)
    figure, panels = _panels(len(energies), height=3.6, columns=1)
    for panel, energy in zip(panels, energies, strict=True):
        energy_rows = [row for row in rows if row["energy"] == energy]
        for role, (colour, marker, size, order) in ROLES.items():
            points = [row for row in energy_rows if row["role"] == role]
            panel.scatter(
                [row["density"] for row in points],
                [row["attribution"] for row in points],
                s=size, c=colour, marker=marker, linewidths=0, alpha=0.45 if role == "neither" else 0.9,
                zorder=order, rasterized=len(energy_rows) > MAX_VECTOR_POINTS, label=f"{role} ({count(len(points))})",
            )  # fmt: skip
        magnitudes = sorted(abs(row["attribution"]) for row in energy_rows if row["attribution"])
        panel.set_xscale("log")
        densities = [row["density"] for row in energy_rows]
        _label_log_axis(panel.xaxis, lambda value: f"{100 * value:g} %", dense=max(densities) < 10 * min(densities))
        if magnitudes:
            # Linear up to the median: half of the features would else crowd into decades of no interest.
            threshold = 10 ** math.floor(math.log10(magnitudes[len(magnitudes) // 2]))
            panel.set_yscale("symlog", linthresh=threshold, linscale=0.6)
            panel.set_ylim(-2.5 * magnitudes[-1], 2.5 * magnitudes[-1])
            panel.yaxis.set_major_formatter(lambda value, _: _power(value))
        panel.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
        panel.tick_params(axis="x", which="major", length=3)
        panel.set_title(visible(energy))
        panel.set_xlabel("Activation density (share of included tokens at which the feature fires, log scale)")
        what = "Attribution with curvature" if energy_rows[0]["has_curvature"] else "Attribution Σ a·g"
        panel.set_ylabel(f"{what} ({visible(energy_rows[0]['units'])},\nsymmetric log scale)")
        handles, labels = panel.get_legend_handles_labels()
        panel.legend(
            handles[1:] + handles[:1], labels[1:] + labels[:1], loc="lower right", bbox_to_anchor=(1, 1), ncols=3,
            borderaxespad=0.1, handletextpad=0.1, columnspacing=1.2,
        )  # fmt: skip
    return figure


def _energy_by_layer_and_category(rows: Sequence[Row]) -> Any:
    """Distribution of each energy over tokens: by category, and by layer where it is read at layers."""
    rows = [row for row in rows if row["category"] is not None]
    if not rows:
        return None
    categories = _largest_categories(rows)
    energies = _in_order(row["energy"] for row in rows)
    shares = [1.0 if _is_output(rows, energy) else 1.7 for energy in energies]
    figure, panels = _panels(len(energies), height=2.9, shares=shares)
    for panel, energy in zip(panels, energies, strict=True):
        energy_rows = [row for row in rows if row["energy"] == energy and row["category"] in categories]
        sign = _log_sign(energy_rows)
        layers = sorted({row["layer"] for row in energy_rows if row["layer"] is not None})
        for row in energy_rows:
            place = categories.index(row["category"])
            if layers:
                offset = (place - (len(categories) - 1) / 2) * min(0.2, 0.8 / len(categories))
                x = layers.index(row["layer"]) + offset
            else:
                x = place
            quantiles = [sign * row[q] if sign else row[q] for q in QUANTILES]
            _distribution(panel, x, quantiles, CATEGORY_COLOURS[place], len(energy_rows))
        if sign:
            panel.set_yscale("log")
            _label_log_axis(panel.yaxis, _grouped, dense=True)
        else:
            panel.yaxis.set_major_formatter(lambda value, _: _grouped(value))
        scale = ",\nlog scale" if sign else ""
        panel.set_ylabel(f"{'−' if sign == -1 else ''}E ({visible(energy_rows[0]['units'])}{scale})")
        panel.set_title(f"{visible(energy)}, by layer" if layers else f"{visible(energy)}, the model's output")
        if layers:
            places = range(0, len(layers), math.ceil(len(layers) / MAX_TICKS))
            panel.set_xticks(places, [str(layers[place]) for place in places])
            panel.set_xlabel("Layer")
            panel.set_xlim(-0.6, len(layers) - 0.4)
        else:
            names = [visible(category, MAX_NAME) for category in categories]
            crowded = sum(map(len, names)) > 36
            panel.set_xticks(
                range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center"
            )
            panel.set_xlabel("Category")
            panel.set_xlim(-0.6, len(categories) - 0.4)
        _mark_uniform_guess(panel, energy_rows)
    if any(row["layer"] is not None for row in rows):
        _category_legend(figure, categories)
    return figure


def _mark_uniform_guess(panel: Any, rows: Sequence[Row]) -> None:
    guess = rows[0]["uniform_guess"] if rows else None
    if guess is None:
        return
    panel.axhline(guess, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    panel.annotate(
        "uniform guess, ln V", (1, guess), (0, 2), xycoords=panel.get_yaxis_transform(), textcoords="offset points",
        ha="right", va="bottom", fontsize=7.5, color=MUTED, zorder=6,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
    )  # fmt: skip
    low, high = panel.get_ylim()
    panel.set_ylim(low, max(high, guess * 1.1))


def _category_legend(figure: Any, categories: Sequence[str]) -> None:
    """Above the panels, for the categories that share a layer."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour) for colour in CATEGORY_COLOURS[: len(categories)]]
    _legend_above(figure, handles, [visible(category, MAX_NAME) for category in categories])


def _legend_above(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    figure.legend(
        handles, labels, loc="outside upper right", ncols=min(6, len(labels)), columnspacing=1.4, borderaxespad=0,
        handlelength=1.2, handleheight=0.6,
    )  # fmt: skip


def _direction_control(rows: Sequence[Row]) -> Any:
    """Share of pairs with p below each level, own rows and reference rows; a panel for each energy."""
    if not rows:
        return None
    energies = _in_order(row["energy"] for row in rows)
    figure, panels = _panels(len(energies), height=2.9)
    for panel, energy in zip(panels, energies, strict=True):
        energy_rows = [row for row in rows if row["energy"] == energy]
        n_tested = energy_rows[0]["n_tested"]
        for column, colour, width, label in (
            ("n_own", BLUE, 1.8, "own row (p_specific)"),
            ("n_reference", GREY, 1.8, "reference row (p_reference)"),
        ):
            shown = [(row["level"], row[column] / n_tested) for row in energy_rows if row[column]]
            panel.plot(*zip(*shown, strict=True), color=colour, linewidth=width, label=label, zorder=3)
        levels = [row["level"] for row in energy_rows]
        panel.plot(levels, levels, color=INK, linewidth=1, linestyle=(0, (4, 2)), label="the level", zorder=2)
        panel.axvline(0.05, color=MUTED, linewidth=0.8, zorder=1)
        panel.annotate(
            "0.05", (0.05, 0), (-2, 3), xycoords=panel.get_xaxis_transform(), textcoords="offset points", ha="right",
            fontsize=7.5, color=MUTED,
        )  # fmt: skip
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlim(levels[0], 1)
        panel.set_ylim(0.7 / n_tested, 1.15)
        panel.xaxis.set_major_formatter(lambda value, _: _power(value))
        panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        panel.tick_params(axis="x", which="major", length=3)
        panel.set_title(_title(energy_rows[0]))
        panel.set_xlabel(f"Level of p, {count(n_tested)} tested (layer, feature) pairs")
        panel.set_ylabel("Pairs below it")
    _legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def _negative_control(rows: Sequence[Row]) -> Any:
    """z of the true pairing and of the negative control, with the standard normal; a panel for each energy."""
    if not rows:
        return None
    energies = _in_order(row["energy"] for row in rows)
    figure, panels = _panels(len(energies), height=2.7)
    for panel, energy in zip(panels, energies, strict=True):
        energy_rows = [row for row in rows if row["energy"] == energy]
        width = energy_rows[0]["bin_high"] - energy_rows[0]["bin_low"]
        # An empty bin at either end lets the outlines come down to zero.
        first, last = energy_rows[0]["bin_low"] - width, energy_rows[-1]["bin_high"] + width
        n_bins = round((last - first) / width)
        edges = [first + i * width for i in range(n_bins + 1)]
        heights = {column: [0.0] * n_bins for column in ("n_negative_control", "n_true_pairing")}
        for row in energy_rows:
            for column, values in heights.items():
                values[round((row["bin_low"] - first) / width)] = row[column] / (row["n_tested"] * width)
        control, true = heights["n_negative_control"], heights["n_true_pairing"]
        panel.stairs(control, edges, fill=True, color=GREY, alpha=0.45, linewidth=0, label="negative control (z_null)")
        panel.stairs(true, edges, color=BLUE, linewidth=1.5, baseline=None, label="true pairing (z)")
        low, high = min(first, -4.0), max(last, 4.0)
        grid = [low + i * (high - low) / 400 for i in range(401)]
        panel.plot(
            grid, [math.exp(-z * z / 2) / math.sqrt(2 * math.pi) for z in grid], color=INK, linewidth=1,
            linestyle=(0, (4, 2)), label="standard normal",
        )  # fmt: skip
        panel.set_xlim(low, high)
        panel.set_ylim(0, 1.08 * max(0.4, *control, *true))
        panel.tick_params(axis="x", which="major", length=3)
        panel.set_title(_title(energy_rows[0]))
        panel.set_xlabel(f"z of {count(energy_rows[0]['n_tested'])} tested (layer, feature) pairs")
        panel.set_ylabel("Density")
    _legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def _dose_response(rows: Sequence[Row]) -> Any:
    """Mean KL and |ΔE| of patches at each dose, along features and controls; a line of panels for an intervention."""
    if not any(row["dose"] > 0 for row in rows):
        return None
    shown = sorted({row["intervention_id"] for row in rows})[-MAX_DOSED:]
    figure, panels = _panels(2 * len(shown), height=3.0)
    for line, intervention in enumerate(shown):
        own = [row for row in rows if row["intervention_id"] == intervention]
        rounding = next((row for row in own if row["dose"] == 0), None)
        edit = own[0]["kind"] if own[0]["value"] is None else f"{own[0]['kind']} {own[0]['value']:g}"
        for panel, (column, label) in zip(panels[2 * line :], DOSE_PANELS, strict=False):
            for along, (name, colour, marker) in DOSE_SERIES.items():
                curve = [(row["dose"], row[column]) for row in own if row["along"] == along and row["dose"] > 0]
                curve = [(dose, size) for dose, size in curve if size > 0]
                if curve:
                    panel.plot(
                        *zip(*curve, strict=True), color=colour, marker=marker, markersize=4.5,
                        linewidth=2 if along == "feature" else 1.3, label=name, zorder=4 if along == "feature" else 3,
                    )  # fmt: skip
            if rounding is not None and rounding[column] > 0:
                panel.axhline(10 * rounding[column], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            panel.set_xscale("log")
            panel.set_yscale("log")
            _rising_lines(panel)
            doses = sorted({row["dose"] for row in own if row["dose"] > 0})
            panel.set_xticks(doses[:: math.ceil(len(doses) / MAX_TICKS)])
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panel.yaxis.set_major_formatter(lambda value, _: _power(value))
            panel.minorticks_off()
            panel.tick_params(axis="x", which="major", length=3)
            panel.set_title(f"{visible(edit)}, layer {own[0]['layer']}")
            panel.set_xlabel("Dose (log scale)")
            panel.set_ylabel(label)
    _legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def _rising_lines(panel: Any) -> None:
    """The first and the second power of x, through the largest value drawn; the axes stay as they are."""
    limits = panel.get_xlim(), panel.get_ylim()
    drawn = [line.get_xydata() for line in panel.get_lines() if line.get_label()[0] != "_"]
    x, y = max((tuple(points[-1]) for points in drawn if len(points)), key=lambda point: point[1], default=(1.0, 1.0))
    low = limits[0][0]
    for power in (1, 2):
        panel.plot([low, x], [y * (low / x) ** power, y], color=GREY, linewidth=0.6, zorder=1)
    panel.set_xlim(limits[0])
    panel.set_ylim(limits[1])


# ------------------------------------------------------------------------------------------------ parts


def _panels(n: int, height: float, columns: int = 2, shares: Sequence[float] | None = None) -> tuple[Any, list[Any]]:
    """A figure of the page's width with n panels, at most `columns` in a line; height is that of a line, in inches.

    shares: relative widths of the panels where they fit in one line.
    """
    from matplotlib.figure import Figure

    columns = min(n, columns)
    lines = math.ceil(n / columns)
    ratios = list(shares) if shares and lines == 1 else None
    figure = Figure(figsize=(WIDTH, height * lines))
    grid = figure.subplots(lines, columns, squeeze=False, width_ratios=ratios)
    panels = list(grid.flat)
    for unused in panels[n:]:
        unused.set_visible(False)
    return figure, panels[:n]


def _distribution(panel: Any, x: float, quantiles: Sequence[float], colour: str, n_bars: int) -> None:
    """5 %, 25 %, 50 %, 75 % and 95 % quantiles as a thin bar, a thick bar and a dot; one of n_bars in its panel."""
    q05, q25, median, q75, q95 = quantiles
    width = min(5.0, 160 / n_bars)  # points; a panel is at least 160 wide
    panel.plot([x, x], [q05, q95], color=colour, linewidth=0.26 * width, solid_capstyle="butt", zorder=3)
    panel.plot([x, x], [q25, q75], color=colour, linewidth=width, solid_capstyle="butt", zorder=4)
    panel.plot([x], [median], marker="o", markersize=0.84 * width, color=PAPER, markeredgecolor=colour, zorder=5)


def _grouped(value: float) -> str:
    """A tick of a linear or logarithmic axis: −1,500 or 0.02."""
    return f"{value:,.6g}".replace("-", "−")


def _power(value: float) -> str:
    """A tick of a logarithmic axis: −100, 0.1, 10⁶ from a hundred thousand on, or 10⁻⁴ from a thousandth down."""
    if value == 0 or 1.5e-3 < abs(value) < 1e5:
        return _grouped(value)
    exponent = str(round(math.log10(abs(value)))).translate(_SUPERSCRIPT)
    return f"{'−' if value < 0 else ''}10{exponent}"


def _label_log_axis(axis: Any, label: Callable[[float], str], dense: bool) -> None:
    """Ticks of a logarithmic axis: labels as given, at 1, 2 and 5 of each decade where dense, and no others."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if dense:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: label(value))
    axis.set_minor_formatter(NullFormatter())


def _title(row: Row) -> str:
    """The energy of a row, and whether it is the positive control."""
    return f"{visible(row['energy'])} (positive control)" if row["is_control"] else visible(row["energy"])


def _in_order(values: Any) -> list[str]:
    """Distinct values in the order of their first appearance."""
    return list(dict.fromkeys(values))


def _is_output(rows: Sequence[Row], energy: str) -> bool:
    return all(row["layer"] is None for row in rows if row["energy"] == energy)


def _largest_categories(rows: Sequence[Row]) -> list[str]:
    """As many of the categories with the most tokens as there are colours, in alphabetical order."""
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row["category"]] = max(sizes.get(row["category"], 0), row["n_tokens"])
    largest = sorted(sizes, key=lambda category: (-sizes[category], category))[: len(CATEGORY_COLOURS)]
    return sorted(largest)


def _log_sign(rows: Sequence[Row]) -> int:
    """−1 or 1 where all quantiles have that sign and span more than a decade, so that logarithms serve; else 0."""
    values = [row[q] for row in rows for q in ("q05", "q95")]
    for sign in (-1, 1):
        if values and all(sign * value > 0 for value in values):
            magnitudes = [abs(value) for value in values]
            return sign if max(magnitudes) > 10 * min(magnitudes) and not rows[0]["uniform_guess"] else 0
    return 0


def as_svg(figure: Any, name: str, title: str) -> str:
    """The figure as SVG text, with identifiers of its own so that several fit into one page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=220, metadata={"Date": None, "Creator": None, "Title": title})
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", buffer.getvalue())
    # Verdana is of the same widths, where DejaVu Sans is not at hand.
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return with_small_bitmaps("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")
