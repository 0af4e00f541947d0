"""What a run costs once it is there: finish, report, views and a feature's look-up, beside DuckDB's own sums.

    python benchmarks/analysis.py WAREHOUSE... [--figure docs/images/analysis_cost.svg]
    python benchmarks/grown.py SMALL LARGE --copies 27        # makes a large one of any run

Each is a process of its own, start-up included; peak memory is that of the process. The yardstick is one query of
DuckDB over the same activations: sums of a, a², ag, g, g² of every energy by layer, feature and document. Statistics
are made anew, so the warehouse must be one that may be written to.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from tables import markdown

from energy_lens import Warehouse
from energy_lens.ingest.sae.choosing import shipped_folder
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.statistics.finish import finish
from energy_lens.reports.figures import BLUE, GREY, ORANGE, STYLE, VERMILION, WIDTH, as_svg
from energy_lens.sql import gradient_column

SUMS, FINISH, REPORT = "DuckDB's sums by layer, feature and document", "finish", "`elw report`"

VIEWS = ("layer_energy", "efas", "features", "alignments", "mutual_information", "uncalibrated_layers")


#: What the figure shows: colour and marker.
LOOKS = {FINISH: (BLUE, "o"), REPORT: (ORANGE, "s"), "`SELECT * FROM efas`": (VERMILION, "^"), SUMS: (GREY, "x")}


class Cost(NamedTuple):
    """Of a process."""

    seconds: float
    gigabytes: float  #: peak memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("warehouses", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path, help="write a figure of it to this SVG file")
    parser.add_argument("--only", choices=["finish", "sums"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        (finish_again if arguments.only == "finish" else sums)(arguments.warehouses[0])
        return
    sizes = [activations(db) for db in arguments.warehouses]
    measured = [costs(db) for db in arguments.warehouses]
    looked_up = [look_up(db) for db in arguments.warehouses]
    rows = [["", *(f"{n / 1e6:.1f} M activations" for n in sizes)]]
    rows += [[what, *(f"{of[what].seconds:.1f} s, {of[what].gigabytes:.2f} GB" for of in measured)]
             for what in measured[0]]  # fmt: skip
    rows += [["a feature's activations, inside DuckDB", *(f"{seconds * 1000:.0f} ms" for seconds in looked_up)]]
    print(markdown(rows))
    if arguments.figure:
        arguments.figure.write_text(drawn(sizes, measured), encoding="utf-8")


def drawn(sizes: Sequence[int], measured: Sequence[dict[str, Cost]]) -> str:
    """SVG text: seconds and peak memory against the number of activations."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}):
        figure = Figure(figsize=(WIDTH, 2.6))
        left, right = figure.subplots(1, 2)
        millions = [n / 1e6 for n in sizes]
        for what, (colour, marker) in LOOKS.items():
            of = [costs_of[what] for costs_of in measured]
            label = what.strip("`")
            left.plot(millions, [cost.seconds for cost in of], color=colour, marker=marker, label=label)
            right.plot(millions, [cost.gigabytes for cost in of], color=colour, marker=marker)
        for panel, name in ((left, "Seconds, start-up included"), (right, "Peak memory, GB")):
            panel.set(xlabel="Activations, millions", ylabel=name, xlim=(0, None), ylim=(0, None))
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(LOOKS))
        return as_svg(figure, "analysis_cost", "Time and peak memory of finish, report and a query, by activations")


def costs(db: Path) -> dict[str, Cost]:
    """What is measured of one warehouse."""
    me = [sys.executable, str(Path(__file__))]
    elw = [sys.executable, "-c", "import sys; from energy_lens.cli.main import main; sys.exit(main())"]
    with tempfile.TemporaryDirectory() as scratch:
        result = {
            SUMS: cost([*me, str(db), "--only", "sums"]),
            FINISH: cost([*me, str(db), "--only", "finish"]),
            REPORT: cost([*elw, "report", "--db", str(db), "--output", f"{scratch}/report"]),
        }
        for view in VIEWS:
            query = f"SELECT * FROM {view}"
            result[f"`{query}`"] = cost([*elw, "sql", query, "--db", str(db), "--output", f"{scratch}/{view}.parquet",
                                         "--format", "parquet"])  # fmt: skip
    return result


def cost(command: list[str]) -> Cost:
    """Runs a command to its end. Raises CalledProcessError when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said)
    return Cost(time.perf_counter() - started, usage.ru_maxrss / 2**20)


def activations(db: Path) -> int:
    with Warehouse(db) as warehouse:
        n: int = warehouse.sql("SELECT count(*) FROM activations").value()
    return n


def look_up(db: Path) -> float:
    """Median seconds in which the activations of one of 20 features of the middle layer are read."""
    with Warehouse(db) as warehouse:
        layers = warehouse.sql("SELECT layers FROM current_run").value()
        layer = layers[len(layers) // 2]
        query = "SELECT feature FROM features WHERE layer = $layer ORDER BY hash(feature) LIMIT 20"
        seconds = []
        for (feature,) in warehouse.sql(query, layer=layer).fetchall():
            started = time.perf_counter()
            warehouse.sql(
                "SELECT token_id, activation FROM activations WHERE layer = $layer AND feature = $feature",
                layer=layer, feature=feature,
            ).numpy()  # fmt: skip
            seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]


def finish_again(db: Path) -> None:
    with Warehouse(db) as warehouse:
        run_id, model, layers = warehouse.sql("SELECT run_id, model, layers FROM current_run").fetchall()[0]
    decoders = {layer: load_sae(shipped_folder(model, layer)).W_dec for layer in layers}
    finish(lambda: Warehouse(db, writable=True), run_id, decoders)


def sums(db: Path) -> None:
    with Warehouse(db, restricted=False) as warehouse:
        length, energies = warehouse.sql("SELECT context_length, energies FROM current_run").fetchall()[0]
        columns = [gradient_column(energy) for energy in energies]
        of_energies = "".join(f", sum(activation * {g}), sum({g}), sum({g} * {g})" for g in columns)
        warehouse.sql(
            f"""
            SELECT max(COLUMNS(*)) FROM (
                SELECT a.layer, a.feature, c.document_id, sum(activation), sum(activation * activation){of_energies}
                FROM activations AS a
                JOIN contexts AS c ON c.run_id = a.run_id AND c.context_id = a.token_id // $length
                WHERE a.run_id = (SELECT run_id FROM current_run)
                GROUP BY ALL
            )
            """,
            length=length,
        ).fetchall()


if __name__ == "__main__":
    main()
