"""The quick start in Python: texts in, a warehouse and its main tables out.

    from energy_lens import EnergyLensAnalyzer, EnergyLensConfig

    config = EnergyLensConfig(sae_dict_size=2048, energy_layers=[10, 15, 20])
    analyzer = EnergyLensAnalyzer(config)
    results = analyzer.run_comprehensive_analysis({"regex": r"The pattern \\d+ matches digits.", "prose": "Once …"})
    analyzer.generate_research_report(results, "research_report.md")

Everything goes through the same ingest, SQL and report as the command line; a few short texts are far too little for
any test, and the results say so by being NULL.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from energy_lens.errors import UsageError
from energy_lens.warehouse.database import Warehouse


@dataclass(frozen=True)
class EnergyLensConfig:
    """What to run."""

    model_name: str = "smollm2-135m"  #: a built-in name, folder, GGUF file or Hugging Face name
    sae_dict_size: int = 2048  #: features that the SAEs must have
    energy_layers: Sequence[int] | None = None  #: None: the model's default layers
    sae_folders: Sequence[str | Path] = ()  #: none: the SAEs shipped for the model, or registered for it
    train_missing_saes: bool = True  #: for layers without an SAE, train one first, in minutes, and keep it
    sae_tokens: int = 100_000  #: tokens that it is trained on
    warehouse: str | Path = "elw.duckdb"
    seed: int = 0


@dataclass
class EnergyLensAnalyzer:
    """Runs texts through a model and its SAEs into a warehouse."""

    config: EnergyLensConfig = field(default_factory=EnergyLensConfig)

    def run_comprehensive_analysis(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """Ingest {name: text} as one document each, all in the category `texts`.

        Layers that have no SAE get one first, trained on the texts and the package's sample, or on the sample alone
        where the texts are few (`ingest.training.missing`); a note in the summary says how good it became.

        Returns the ingest's summary under `summary`, the warehouse's path under `warehouse`, and the rows of the views
        `alignments`, `layer_energy` and `null_control` as lists of dicts.
        Raises UsageError for no text, a name that is no file name, or SAEs of another size than `sae_dict_size`.
        """
        from energy_lens.ingest.corpus import discover
        from energy_lens.ingest.model.window import settle_context_length
        from energy_lens.ingest.pipeline.options import IngestOptions
        from energy_lens.ingest.pipeline.run import ingest
        from energy_lens.ingest.sae.choosing import choose_saes
        from energy_lens.ingest.training.missing import MissingSaes, complete_saes

        config = self.config
        options = IngestOptions(
            db=Path(config.warehouse),
            model=config.model_name,
            layers=tuple(config.energy_layers) if config.energy_layers else None,
            saes=tuple(Path(folder) for folder in config.sae_folders),
            seed=config.seed,
        )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "texts"
            folder.mkdir()
            for name, text in texts.items():
                if not name or Path(name).name != name or name.startswith("."):
                    raise UsageError(f"{name!r} cannot name a text: use a plain file name.")
                (folder / name).write_text(text, encoding="utf-8")
            notes: list[str] = []
            if config.train_missing_saes:
                how = MissingSaes(config.sae_dict_size, config.sae_tokens)
                length = settle_context_length(options.model, options.context_length)
                folders, notes = complete_saes(
                    options.model, options.layers, options.saes, lambda: discover([folder]), how=how,
                    context_length=length,
                )  # fmt: skip
                options = replace(options, saes=folders, context_length=length)
            for layer, sae in choose_saes(options.model, options.layers, options.saes).items():
                if sae.d_sae != config.sae_dict_size:
                    raise UsageError(
                        f"The SAE of layer {layer} has {sae.d_sae} features and sae_dict_size is "
                        f"{config.sae_dict_size}: make them equal, or give other SAEs with sae_folders."
                    )
            summary = ingest([folder], options)
            summary.notes[:0] = notes
        results: dict[str, Any] = {"summary": summary.as_dict(), "warehouse": str(config.warehouse)}
        with Warehouse(config.warehouse) as warehouse:
            for view in ("alignments", "layer_energy", "null_control"):
                rows = warehouse.sql(f"SELECT * FROM {view}")
                results[view] = [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]
        return results

    def generate_research_report(self, results: Mapping[str, Any], path: str | Path) -> Path:
        """Write the report on the warehouse of `results` as Markdown to `path`, its figures beside it."""
        from energy_lens.reports.render import render

        path = Path(path)
        with tempfile.TemporaryDirectory() as scratch:
            written = render(Path(results["warehouse"]), Path(scratch), ("md",))
            report = next(file for file in written if file.suffix == ".md")
            figures = Path(scratch) / "figures"
            if figures.is_dir():
                shutil.copytree(figures, path.parent / "figures", dirs_exist_ok=True)
            shutil.copyfile(report, path)
        return path
