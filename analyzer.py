"""The quick start in Python: texts in, a warehouse and its main tables out.

    from energy_lens import EnergyLensAnalyzer, EnergyLensConfig

    config = EnergyLensConfig(sae_dict_size=2048, energy_layers=[10, 15, 20])
    analyzer = EnergyLensAnalyzer(config)
    results = analyzer.run_comprehensive_analysis({"regex": r"The pattern \\d+ matches digits.", "prose": "Once …"})
    analyzer.generate_research_report(results, "research_report.md")

Everything goes through the same ingest, SQL and report as the command line; a few short texts are far too little for
any test, and the results say so by being NULL. Other texts are another run: results are of the texts that were given,
and those of earlier ones stay in the warehouse (`stored_results`).
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energy_lens.console import spelled
from energy_lens.errors import ElwError, UsageError, require
from energy_lens.warehouse.database import Warehouse, warehouse_path

if TYPE_CHECKING:
    from energy_lens.ingest.pipeline.options import IngestOptions
    from energy_lens.ingest.training.missing import MissingSaes

#: The options of `elw ingest` and of what it calls, and the fields of EnergyLensConfig that stand for them.
FIELDS = {
    "--model": "model_name", "--features": "sae_dict_size", "--layers": "energy_layers", "--sae": "sae_folders",
    "--train-saes": "train_missing_saes", "--sae-tokens": "sae_tokens", "--tokens": "sae_tokens",
    "--train-on": "train_on", "--db": "warehouse", "--seed": "seed", "--energies": "energies", "--lens": "lens",
    "--context": "context_length", "--batch-size": "batch_size", "--dtype": "dtype", "--bos": "bos",
    "--compile": "compile", "--probes": "probes", "--store-gradients": "store_gradients", "--output": "path",
}  # fmt: skip

#: Views whose rows are results.
VIEWS = ("alignments", "layer_energy", "null_control")

#: Bytes of a file's name, as a text's has to be.
LONGEST_NAME = 255

#: Characters of a wrong value that are shown.
SHOWN = 40


@dataclass(frozen=True)
class EnergyLensConfig:
    """What to run; a field that `elw ingest` has as an option means the same there."""

    model_name: str = "smollm2-135m"  #: a built-in name, folder, GGUF file or Hugging Face name
    sae_dict_size: int = 2048  #: features that the SAEs must have
    energy_layers: Sequence[int] | None = None  #: None: the model's default layers
    sae_folders: Sequence[str | Path] = ()  #: none: the SAEs shipped for the model, or registered for it
    train_missing_saes: bool = True  #: for layers without an SAE, train one first, in minutes, and keep it
    sae_tokens: int = 100_000  #: tokens that it is trained on
    warehouse: str | Path = "elw.duckdb"
    seed: int = 0
    train_on: Sequence[str | Path] = ()  #: files and folders of text to train them on; none: these texts and a sample
    energies: Sequence[str] = ("nll", "hopfield")  #: built-in names, or package.module:Class
    lens: str | Path | None = None  #: file of the tuned lens; None: the one shipped for the model
    context_length: int | None = None  #: tokens of a context; None: 128, or the fewer that the model can read
    batch_size: int = 8  #: contexts in a forward pass
    dtype: str = "auto"  #: auto, float32 or bfloat16
    bos: str = "auto"  #: whether a BOS token stands before every context: auto, yes or no
    compile: str = "auto"  #: whether the model's blocks are fused: auto, on or off
    probes: int = 0  #: curvature probes, for attribution_curvature; 3 predict an ablation well
    store_gradients: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for a value of the wrong kind; what is out of range is told before a run."""
        for name in ("sae_dict_size", "sae_tokens", "seed", "batch_size", "probes"):
            object.__setattr__(self, name, _integer(name, getattr(self, name)))
        if self.context_length is not None:
            object.__setattr__(self, "context_length", _integer("context_length", self.context_length))
        if self.energy_layers is not None:
            layers = _listed("energy_layers", self.energy_layers, "layers, as in [10, 15]")
            require(bool(layers), "energy_layers is empty: name at least one layer, or leave it out.")
            object.__setattr__(self, "energy_layers", [_integer("energy_layers", layer) for layer in layers])
        for name in ("sae_folders", "train_on"):
            paths = _listed(name, getattr(self, name), "paths, as in ['folder']")
            object.__setattr__(self, name, [_path(name, path) for path in paths])
        energies = _listed("energies", self.energies, "names, as in ['nll']")
        wrong = [energy for energy in energies if not isinstance(energy, str)]
        require(not wrong and bool(energies), f"energies is {_shown(energies)}; a list of names is expected.")
        object.__setattr__(self, "energies", tuple(energies))
        kinds = (
            ("dtype", str),
            ("bos", str),
            ("compile", str),
            ("train_missing_saes", bool),
            ("store_gradients", bool),
        )
        for name, kind in kinds:
            value, expected = getattr(self, name), "True or False" if kind is bool else "a word"
            require(isinstance(value, kind), f"{name} is {_shown(value)}; {expected} is expected.")
        object.__setattr__(self, "model_name", str(_path("model_name", self.model_name)))
        if self.lens is not None:
            _path("lens", self.lens)
        warehouse_path(_path("warehouse", self.warehouse))

    def ingest_options(self) -> IngestOptions:
        """The same for `ingest.pipeline`. Raises UsageError for what cannot be carried out."""
        from energy_lens.ingest.pipeline.options import IngestOptions

        return IngestOptions(
            db=warehouse_path(self.warehouse),
            model=self.model_name,
            layers=tuple(self.energy_layers) if self.energy_layers else None,
            saes=tuple(_at_home(folder) for folder in self.sae_folders),
            energies=tuple(self.energies),
            lens=None if self.lens is None else _at_home(self.lens),
            context_length=self.context_length,
            batch_size=self.batch_size,
            dtype=self.dtype,
            bos=self.bos,
            compile=self.compile,
            seed=self.seed,
            store_gradients=self.store_gradients,
            probes=self.probes,
            just_these=True,
        )


@dataclass
class EnergyLensAnalyzer:
    """Runs texts through a model and its SAEs into a warehouse."""

    config: EnergyLensConfig = field(default_factory=EnergyLensConfig)

    def run_comprehensive_analysis(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """Ingest {name: text} as one document each, all in the category `texts`.

        Layers that have no SAE get one first, trained on the texts and the package's sample, or on the sample alone
        where the texts are few (`ingest.training.missing`); a note in the summary says how good it became.
        Texts that were analysed before, with equal settings, are not read again; others are a run of their own.

        Returns the ingest's summary under `summary`, the run's number under `run_id`, the warehouse's path under
        `warehouse`, and the rows of the views `alignments`, `layer_energy` and `null_control` as lists of dicts.
        Raises UsageError for what is no text or names none, or SAEs of another size than `sae_dict_size`.
        """
        from energy_lens.ingest.pipeline.run import ingest
        from energy_lens.ingest.training.missing import MissingSaes
        from energy_lens.warehouse.database import check_writable

        check_texts(texts)
        with _as_named_here(), tempfile.TemporaryDirectory() as scratch:
            options = self.config.ingest_options()
            how = (
                MissingSaes(self.config.sae_dict_size, self.config.sae_tokens)
                if self.config.train_missing_saes
                else None
            )
            check_writable(options.db)
            folder = Path(scratch) / "texts"
            folder.mkdir()
            for name, text in texts.items():
                (folder / name).write_bytes(text.encode())
            options, notes = self._with_saes(options, how, folder)
            summary = ingest([folder], options)
            summary.notes[:0] = notes
            summary.notes[:] = map(as_named_here, summary.notes)
            return {"summary": summary.as_dict(), **self.stored_results(summary.run_id)}

    def stored_results(self, run_id: int) -> dict[str, Any]:
        """The results of a run that is in the warehouse, without the summary; it becomes the current one.

        Raises UsageError when there is no such run.
        """
        path = warehouse_path(self.config.warehouse)
        _make_current(path, _integer("run_id", run_id))
        results: dict[str, Any] = {"run_id": run_id, "warehouse": str(path)}
        with Warehouse(path) as warehouse:
            for view in VIEWS:
                rows = warehouse.sql(f"SELECT * FROM {view} ORDER BY ALL")  # equal results, in equal order
                results[view] = rows.dicts()
        return results

    def generate_research_report(self, results: Mapping[str, Any], path: str | Path) -> Path:
        """Write the report on the run of `results` as Markdown to `path`, its figures beside it.

        That run becomes the warehouse's current one. Raises UsageError for results that are none, and for a path that
        cannot be written.
        """
        from energy_lens.reports.render import render
        from energy_lens.warehouse.locks import claimed_file

        path = _at_home(_path("path", path))
        is_ours = isinstance(results, Mapping) and {"warehouse", "run_id"} <= set(results)
        require(is_ours, "results are not those of run_comprehensive_analysis or stored_results: give these.")
        with _as_named_here(), claimed_file(path, "generate_research_report"), tempfile.TemporaryDirectory() as scratch:
            db = warehouse_path(results["warehouse"])
            _make_current(db, _integer("run_id", results["run_id"]))
            written = render(db, Path(scratch), ("md",))
            report = next(file for file in written if file.suffix == ".md")
            figures = Path(scratch) / "figures"
            if figures.is_dir():
                shutil.copytree(figures, path.parent / "figures", dirs_exist_ok=True)
            shutil.copyfile(report, path)
        return path

    def _with_saes(
        self, options: IngestOptions, how: MissingSaes | None, texts: Path
    ) -> tuple[IngestOptions, list[str]]:
        """The options with an SAE of the right size for every layer, and sentences on those that were trained."""
        from energy_lens.ingest.corpus import discover
        from energy_lens.ingest.model.window import settle_context_length
        from energy_lens.ingest.sae.choosing import choose_saes
        from energy_lens.ingest.training.missing import complete_saes

        notes: list[str] = []
        if how is not None:
            length = cache(lambda: settle_context_length(options.model, options.context_length))
            text = discover([_at_home(path) for path in self.config.train_on]) if self.config.train_on else None
            folders, notes = complete_saes(
                options.model, options.layers, options.saes, lambda: discover([texts]), text, how, options.dtype,
                options.bos, length,
            )  # fmt: skip
            options = replace(options, saes=folders)
            if notes:
                options = replace(options, context_length=length())  # which was said
        wanted = self.config.sae_dict_size
        for layer, sae in choose_saes(options.model, options.layers, options.saes).items():
            require(
                sae.d_sae == wanted,
                f"The SAE of layer {layer} has {sae.d_sae} features and sae_dict_size is {wanted}: make them equal, or "
                "give other SAEs with sae_folders.",
            )
        return options, notes


def _make_current(path: Path, run_id: int) -> None:
    """Have the views show a run. Raises UsageError when there is none of that number."""
    from energy_lens.warehouse.query import use_run

    with Warehouse(path) as warehouse:
        current = warehouse.run("current_run/facts", run=None).fetchone()
    if current is None or current[0] != run_id:
        with Warehouse(path, writable=True) as warehouse:
            use_run(warehouse, run_id)


# ------------------------------------------------------------------------------------------------ what is given


def check_texts(texts: object) -> None:
    """Raises UsageError unless these are texts by name, each of which can be a file."""
    kind = type(texts).__name__
    if not isinstance(texts, Mapping):
        raise UsageError(f'texts is of type {kind}: give each text a name, as in {{"prose": "Once …"}}.')
    require(bool(texts), "texts is empty: give at least one text.")
    for name, text in texts.items():
        shown = _shown(name)
        require(isinstance(name, str), f"{shown} cannot name a text: use a string.")
        is_plain = bool(name) and Path(name).name == name and not name.startswith(".") and "\0" not in name
        require(is_plain, f"{shown} cannot name a text: use a plain file name.")
        require(_is_unicode(name), f"{shown} cannot name a text: it holds half a surrogate pair.")
        n_bytes = len(name.encode())
        require(n_bytes <= LONGEST_NAME, f"{shown} cannot name a text: it has {n_bytes} bytes of {LONGEST_NAME}.")
        require(isinstance(text, str), f"The text {shown} is of type {type(text).__name__}: give a string.")
        require("\0" not in text, f"The text {shown} holds a NUL character, which no text does: take it out.")
        require(_is_unicode(text), f"The text {shown} holds half a surrogate pair, which is no text: take it out.")
    require(any(text.strip() for text in texts.values()), "All texts are blank: give at least one that is not.")


def _integer(name: str, value: object) -> int:
    """A whole number, be it numpy's. Raises UsageError for anything else."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise UsageError(f"{name} is {_shown(value)}; a whole number is expected.")


def _listed(name: str, value: object, what: str) -> list[Any]:
    """The members of a list or the like. Raises UsageError for one value, or a string, in place of a list."""
    if isinstance(value, str | bytes | os.PathLike | Mapping) or not isinstance(value, Iterable):
        raise UsageError(f"{name} is {_shown(value)}; give a list of {what}.")
    return list(value)


def _path(name: str, value: object) -> str | Path:
    """A path as text or Path. Raises UsageError for what can be none."""
    text = str(value) if isinstance(value, str | Path) else ""
    require(bool(text.strip()), f"{name} is {_shown(value)}; a path or name is expected.")
    require("\0" not in text and _is_unicode(text), f"{name} is {_shown(value)}, which can be no path: name another.")
    assert isinstance(value, str | Path)
    return value


def _at_home(path: str | Path) -> Path:
    """A path with `~` put in full; that of a user who is not there stays as it is, and is not found."""
    return Path(os.path.expanduser(path))


def _is_unicode(text: str) -> bool:
    """Whether a text can be encoded: a half of a surrogate pair is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """A value for a sentence: in one line, and not all of a long one."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


# ------------------------------------------------------------------------------------------------ what is said


def as_named_here(sentence: str) -> str:
    """A sentence with its options named as fields of EnergyLensConfig; a command in brackets stays as it is typed."""
    pieces = re.split(r"(\(elw [^)]*\))", sentence)
    return "".join(
        piece if i % 2 else re.sub(r"(?<![\w-])--[a-z-]+[a-z]", lambda word: FIELDS.get(word[0], word[0]), piece)
        for i, piece in enumerate(pieces)
    )


@contextlib.contextmanager
def _as_named_here() -> Iterator[None]:
    """Inside, what is said and raised names options as they are named in Python."""
    with spelled(as_named_here):
        try:
            yield
        except ElwError as error:
            error.args = (as_named_here(str(error)),)
            raise
