"""`elw model`: a name in, the folder of fetched weights out; models listed."""

from __future__ import annotations

from typing import Annotated

import typer

from energy_lens.cli.app import model_app
from energy_lens.cli.listing import print_rows
from energy_lens.cli.options import DEFAULT_MODEL, ListingFormat, TextFormat


@model_app.command("pull")
def model_pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Built-in name, Hugging Face name (owner/name or owner/name@revision) or GGUF file."
        ),
    ] = DEFAULT_MODEL,
) -> None:
    """Fetch a model, or convert a GGUF file, once; print the folder of its weights."""
    from energy_lens.ingest.model.loading import locate

    folder, _ = locate(name)
    print(folder)


@model_app.command("list")
def model_list(form: ListingFormat = TextFormat.table) -> None:
    """List the built-in models and the converted GGUF files in the cache."""
    from energy_lens.ingest.model.loading import PACKAGED_MODELS, cache_folder
    from energy_lens.warehouse.output import Rows

    cache = cache_folder() / "models"
    built_in = {f"{name}-{packaged.sha256[:12]}": name for name, packaged in PACKAGED_MODELS.items()}
    converted = {path.name: path.name for path in sorted(cache.glob("gguf-*"))}
    rows = []
    for folder, name in (built_in | converted).items():
        files = [path for path in (cache / folder).glob("*") if path.is_file()]
        size = round(sum(path.stat().st_size for path in files) / 1e6, 1) if files else None
        source = "built in" if folder in built_in else "GGUF file"
        rows.append((name, source, bool(files), size, str(cache / folder) if files else None))
    columns = [("model", "varchar"), ("source", "varchar"), ("cached", "boolean"), ("megabytes", "double")]
    print_rows(Rows.of([*columns, ("folder", "varchar")], rows), form)
