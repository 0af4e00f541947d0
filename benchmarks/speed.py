"""What the machine can do, and what elw and the pipelines that one writes instead make of it, in one run.

    python benchmarks/speed.py [--tokens 18000] [--sizes 20000 200000] [--peers ENVIRONMENT] [--write]

Contenders take turns of some seconds (`turns`), so that all meet the same machine: quote ratios. The limit is that of
the matrix products of the model's own shapes (`products`), timed in turn with the rest. Of elw all after start-up
counts (model, statistics, commits, finish); the pipelines keep their results in memory. ENVIRONMENT is a folder of a
virtual environment with sae-lens, which brings transformer-lens; without it that contender is left out.

--write puts the tables into docs/performance.md, and the figure beside it; what was measured goes to --keep as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from tables import markdown
from turns import BEGIN, in_turns

from energy_lens.ingest.corpus import discover
from energy_lens.ingest.energies.registry import OF_ANY_MODEL
from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL, DTYPES, load_model, locate
from energy_lens.ingest.sae.choosing import shipped_folder
from energy_lens.reports.figures import BLUE, GREY, ORANGE, SKY, STYLE, VERMILION, WIDTH, as_svg

HERE = Path(__file__).parent
CORPUS = HERE.parent / "corpus"
PAGE, FIGURE = HERE.parent / "docs" / "performance.md", HERE.parent / "docs" / "images" / "speed.svg"
BEGINNING, END = "<!-- benchmarks/speed.py -->", "<!-- end -->"

CONTEXT, BATCH = 128, 8

PEER, FROZEN, LENSES = (
    "Hugging Face + SAELens' arithmetic",
    "the same, parameters frozen",
    "transformer-lens + sae-lens, frozen",
)
ELW, COMPILED, FIVE = "`elw ingest`", "`elw ingest --compile on`", "`elw ingest`, five energies"

#: Phases of an ingest, and their colours in the figure.
PHASES = {BEGIN: GREY, "calibration": SKY, "compiling": ORANGE, "stream": BLUE, "finish": VERMILION}

#: Of the contenders that take part in a comparison of pipelines.
AFTER_START = ("compiling", "stream", "finish")


#: What was measured: seconds by phase, what was found and the peak in GB, by contender, by what it was measured for.
Found = dict[str, dict[str, dict[str, Any]]]


def contender(name: str, **options: Any) -> list[str]:
    return [sys.executable, str(HERE / "contenders.py"), name, json.dumps(options)]


# ------------------------------------------------------------------------------------------------ what is measured


class Bench:
    """Measures, with its files in a scratch folder."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path, found: Found) -> None:
        self.arguments, self.scratch, self.found = arguments, scratch, found

    def run(self) -> None:
        corpus, ids = self.corpus(max([self.arguments.tokens, *self.arguments.sizes])), self.ids()
        if "machine" not in self.found:
            say("products of the machine")
            self.measure("machine", {name: contender("products", dtype=name, seconds=1.0) for name in DTYPES})
        if "pipelines" not in self.found:
            self.run_pipelines(corpus, ids)
        if "others" not in self.found:
            self.run_others(corpus)
        if "energies" not in self.found:
            say("energies")
            sets = [("nll",), *(("nll", name) for name in OF_ANY_MODEL if name != "nll"), OF_ANY_MODEL]
            contenders = {}
            for names in sets:
                db = str(self.scratch / f"{'_'.join(names)}.duckdb")
                # Not auto: a stop in the wrong moment would spoil its choice.
                options = {
                    "db": db,
                    "corpus": str(corpus),
                    "energies": names,
                    "compile": "off",
                    "dtype": self.precision,
                }
                contenders[",".join(names)] = contender("ingest", max_tokens=self.arguments.energy_tokens, **options)
            self.measure("energies", contenders)
        for size in self.arguments.sizes:
            if f"size {size}" not in self.found:
                say(f"{size:,} tokens")
                db = str(self.scratch / f"size_{size}.duckdb")
                options = {"db": db, "corpus": str(corpus), "max_tokens": size}
                self.measure(f"size {size}", {"auto": contender("ingest", **options)})

    @property
    def speeds(self) -> dict[str, float]:
        """Tokens a second at most, by precision."""
        return {name: of["found"]["tokens_per_second"] for name, of in self.found["machine"].items()}

    @property
    def precision(self) -> str:
        """The faster one."""
        return max(self.speeds, key=self.speeds.__getitem__)

    @property
    def precisions(self) -> list[str]:
        """Those that are worth it here: a processor without the instructions takes minutes for seconds' work."""
        return [name for name, speed in self.speeds.items() if speed >= 0.5 * max(self.speeds.values())]

    def run_pipelines(self, corpus: Path, ids: Path) -> None:
        say("pipelines")
        contenders = {f"limit {p}": contender("products", dtype=p, seconds=60.0) for p in self.precisions}
        contenders |= {
            PEER: contender("peer", ids=str(ids), frozen=False), FROZEN: contender("peer", ids=str(ids), frozen=True)
        }  # fmt: skip
        if self.arguments.peers:
            contenders[LENSES] = self.lenses(ids)
        for precision in self.precisions:
            for name, options in {
                ELW: {"compile": "off"}, COMPILED: {"compile": "on"},
                FIVE: {"compile": "off", "energies": list(OF_ANY_MODEL)},
            }.items():  # fmt: skip
                db = str(self.scratch / f"{len(contenders)}.duckdb")
                contenders[f"{name}, {precision}"] = contender(
                    "ingest", db=db, corpus=str(corpus), dtype=precision, max_tokens=self.arguments.tokens, **options
                )
        self.measure("pipelines", contenders)

    def run_others(self, corpus: Path) -> None:
        say("interventions and training")
        warehouse = self.scratch / "to_intervene_on.duckdb"
        in_turns({"": contender("ingest", db=str(warehouse), corpus=str(corpus), max_tokens=self.arguments.tokens)})
        others: dict[str, list[str]] = {}
        for precision in self.precisions:
            others[f"limit {precision}"] = contender("products", dtype=precision, seconds=90.0)
            for layer in self.arguments.layers:
                copy = self.scratch / f"patches_{precision}_{layer}.duckdb"
                shutil.copy(warehouse, copy)
                others[f"patches {layer} {precision}"] = contender(
                    "intervene", db=str(copy), layers=[layer], features=["top:25", "random:25"], contexts=8,
                    dtype=precision, controls=["isotropic", "covariance", "decoder"],
                )  # fmt: skip
            others[f"training {precision}"] = contender(
                "train", corpus=str(corpus), folder=str(self.scratch / f"sae_{precision}"), layer=15, dtype=precision,
                tokens=self.arguments.training_tokens,
            )  # fmt: skip
            (self.scratch / f"sae_{precision}").mkdir()
        self.measure("others", others)

    def measure(self, what: str, contenders: Mapping[str, Sequence[str]]) -> None:
        timed = in_turns(contenders, {"HF_HUB_OFFLINE": "1"})
        self.found[what] = {
            name: {"seconds": dict(of.seconds), "found": of.found, "peak": of.peak} for name, of in timed.items()
        }
        if self.arguments.keep:
            self.arguments.keep.write_text(json.dumps(self.found, indent=1))

    def corpus(self, n_tokens: int) -> Path:
        """The sample corpus, so often that it has that many tokens: copies of a text begin at another character."""
        folder = self.scratch / "corpus"
        n_there = sum(len(document.text()) for document in discover([CORPUS]))
        copies = 1 + n_tokens * 5 // n_there
        for copy in range(copies):
            for path in sorted(CORPUS.glob("*/*.txt")):
                target = folder / path.parent.name / f"{copy}_{path.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(path.read_text(encoding="utf-8")[37 * copy :], encoding="utf-8")
        return folder

    def ids(self) -> Path:
        """Token ids of the sample corpus for the pipelines, in full batches."""
        model = load_model(DEFAULT_MODEL)
        ids = [token for document in discover([CORPUS]) for token in model.tokenize(document.text())]
        while len(ids) < self.arguments.tokens:
            ids += ids[7:]
        n = max(1, self.arguments.tokens // (CONTEXT * BATCH)) * CONTEXT * BATCH
        path = self.scratch / "ids.json"
        path.write_text(json.dumps(torch.tensor(ids[:n]).view(-1, BATCH, CONTEXT).tolist()))
        return path

    def lenses(self, ids: Path) -> list[str]:
        saes = {layer: str(shipped_folder(DEFAULT_MODEL, layer)) for layer in DEFAULT_LAYERS}
        options = {"model": str(locate(DEFAULT_MODEL)[0]), "saes": saes, "ids": str(ids)}
        return [str(self.arguments.peers / "bin" / "python"), str(HERE / "lenses_peer.py"), json.dumps(options)]


# ------------------------------------------------------------------------------------------------ what is shown


def tables(found: Found) -> dict[str, str]:
    """Markdown by heading."""
    pipelines, others = found["pipelines"], found["others"]
    limits = {
        name.removeprefix("limit "): of["found"]["tokens_per_second"]
        for name, of in pipelines.items()
        if name.startswith("limit ")
    }
    machine = [["", *found["machine"]]]
    parts = next(iter(found["machine"].values()))["found"]["mflop"]
    for part, mflop in parts.items():
        machine.append(
            [
                f"{part}, {mflop:.0f} MFLOP a token",
                *(f"{of['found']['us'][part]:.0f} us" for of in found["machine"].values()),
            ]
        )
    machine.append(["GFLOP/s", *(f"{of['found']['gflops']:.0f}" for of in found["machine"].values())])
    machine.append(
        ["tokens/s at most", *(f"{of['found']['tokens_per_second']:.0f}" for of in found["machine"].values())]
    )

    speed = {name: of["found"]["tokens"] / sum(of["seconds"].get(phase, 0) for phase in AFTER_START)
             for name, of in pipelines.items() if not name.startswith("limit ")}  # fmt: skip
    rows = [
        [
            "",
            "tokens/s",
            "to the pipeline",
            "to the frozen one",
            "share of the limit",
            "start-up, s",
            "finish",
            "peak memory",
        ]
    ]
    for name, limit in limits.items():
        rows.append(
            [
                f"limit of the products, {name}",
                f"{limit:.0f}",
                f"{limit / speed[PEER]:.2f}",
                f"{limit / speed[FROZEN]:.2f}",
                "",
                "",
                "",
                "",
            ]
        )
    for name, rate in speed.items():
        of = pipelines[name]
        precision = name.rsplit(", ", 1)[-1]
        is_elw = precision in limits
        total = sum(of["seconds"].get(phase, 0) for phase in AFTER_START)
        rows.append([
            name, f"{rate:.0f}", f"{rate / speed[PEER]:.2f}", f"{rate / speed[FROZEN]:.2f}",
            f"{rate / limits.get(precision, limits.get('float32', max(limits.values()))):.0%}",
            f"{of['seconds'][BEGIN] + of['seconds'].get('calibration', 0):.0f}",
            f"{of['seconds'].get('finish', 0) / total:.0%}" if is_elw else "", f"{of['peak']:.2f} GB",
        ])  # fmt: skip

    patches = [["", "a second", "share of the limit of the patches", "of patches and predictions"]]
    for name, of in others.items():
        word, _, precision = name.rpartition(" ")
        if word.startswith("patches "):
            layer = word.removeprefix("patches ")
            products = others[f"limit {precision}"]["found"]
            least = (
                of["found"]["tokens"] * products["patch_token"][layer]
                + of["found"]["looked_at"] * products["patch_loss"]
            )
            predictions = of["found"]["unpatched"] * products["patch_context"][layer]
            seconds = of["seconds"]["patches"]
            name = f"patches of `elw intervene`, layer {layer}, {precision}"
            patches.append([name, f"{of['found']['patches'] / seconds:.1f}", f"{least / seconds:.0%}",
                            f"{(least + predictions) / seconds:.0%}"])  # fmt: skip
        if word == "training":
            rate = of["found"]["tokens"] / of["seconds"]["training"]
            patches.append([f"tokens of `elw sae train`, one layer, one pass, {precision}", f"{rate:.0f}", "", ""])

    energies = [["energies", "precision", "tokens/s relative to nll alone", "to nll and hopfield", "added ms a token"]]
    milliseconds = {
        names: 1e3 * sum(of["seconds"].get(phase, 0) for phase in AFTER_START) / of["found"]["tokens"]
        for names, of in found.get("energies", {}).items()
    }
    for names, spent in milliseconds.items():
        alone, default = milliseconds["nll"], milliseconds["nll,hopfield"]
        precision = found["energies"][names]["found"]["dtype"]
        energies.append([names, precision, f"{alone / spent:.2f}", f"{default / spent:.2f}", f"{spent - alone:.2f}"])

    sizes = [["tokens", "precision", *PHASES, "tokens/s after start-up", "tokens/s with it", "peak memory"]]
    for what, of_size in found.items():
        if what.startswith("size "):
            of = of_size["auto"]
            n, seconds = of["found"]["tokens"], of["seconds"]
            total = sum(seconds.get(phase, 0) for phase in PHASES)
            after = sum(seconds.get(phase, 0) for phase in AFTER_START)
            shares = [f"{seconds.get(phase, 0):.0f} s ({seconds.get(phase, 0) / total:.0%})" for phase in PHASES]
            sizes.append(
                [
                    f"{n:,}",
                    of["found"]["dtype"],
                    *shares,
                    f"{n / after:.0f}",
                    f"{n / total:.0f}",
                    f"{of['peak']:.2f} GB",
                ]
            )
    named = {
        "What the machine can do": machine, "Pipelines, in turns": rows, "Energies": energies,
        "Interventions and training": patches, "By size": sizes,
    }  # fmt: skip
    return {heading: markdown(table) for heading, table in named.items() if len(table) > 1}


def drawn(found: Found) -> str:
    """SVG text: speeds beside the limit, and where the time goes, by size."""
    pipelines = found["pipelines"]
    names = [name for name in pipelines if not name.startswith("limit ")]
    rates = [
        pipelines[n]["found"]["tokens"] / sum(pipelines[n]["seconds"].get(p, 0) for p in AFTER_START) for n in names
    ]
    sizes = {what.removeprefix("size "): of["auto"] for what, of in found.items() if what.startswith("size ")}
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}):
        figure = Figure(figsize=(WIDTH, 3.0))
        left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
        colours = [BLUE if "elw" in name else GREY for name in names]
        left.barh([name.replace("`", "") for name in names], rates, color=colours)
        for name, of in pipelines.items():
            if name.startswith("limit "):
                left.axvline(of["found"]["tokens_per_second"], color=VERMILION, linestyle="--")
        left.invert_yaxis()
        left.set(xlabel="Tokens a second (dashed: the products alone)")
        before = [0.0] * len(sizes)
        for phase, colour in PHASES.items():
            totals = [sum(of["seconds"].get(p, 0) for p in PHASES) for of in sizes.values()]
            shares = [
                100 * of["seconds"].get(phase, 0) / total for of, total in zip(sizes.values(), totals, strict=True)
            ]
            right.barh([f"{int(size):,} tokens" for size in sizes], shares, left=before, color=colour, label=phase)
            before = [a + b for a, b in zip(before, shares, strict=True)]
        right.set(xlabel="Percent of the time", xlim=(0, 100))
        right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return as_svg(
            figure, "speed", "Tokens a second of elw and of the pipelines, and the phases of an ingest by size"
        )


def say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=18_000, help="of each pipeline")
    parser.add_argument("--sizes", type=int, nargs="*", default=[20_000, 200_000], help="tokens of elw ingest alone")
    parser.add_argument("--energy-tokens", type=int, default=4_096, help="of each set of energies")
    parser.add_argument("--layers", type=int, nargs="*", default=[20], help="of interventions")
    parser.add_argument("--training-tokens", type=int, default=32_768)
    parser.add_argument("--peers", type=Path, help="an environment with sae-lens and transformer-lens")
    parser.add_argument("--keep", type=Path, help="a JSON file for what was measured; what it holds is not done again")
    parser.add_argument("--write", action="store_true", help="put tables and figure into docs/")
    arguments = parser.parse_args()
    found: Found = {}
    if arguments.keep and arguments.keep.exists():
        found = json.loads(arguments.keep.read_text())
    with tempfile.TemporaryDirectory() as scratch:
        Bench(arguments, Path(scratch), found).run()
    shown = tables(found)
    text = "\n\n".join(f"### {heading}\n\n{table}" for heading, table in shown.items())
    capability = torch.backends.cpu.get_cpu_capability()
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads of {platform.machine()} with {capability}"
    text = f"{machine}; layers {', '.join(map(str, DEFAULT_LAYERS))}, {BATCH} contexts of {CONTEXT} tokens.\n\n{text}"
    print(text)
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        first, last = page.index(BEGINNING) + len(BEGINNING), page.index(END)
        PAGE.write_text(f"{page[:first]}\n\n{text}\n\n{page[last:]}", encoding="utf-8")
        FIGURE.write_text(drawn(found), encoding="utf-8")


if __name__ == "__main__":
    main()
