"""`elw model`: a name in, the folder of fetched weights out, or what works with that model; models listed."""

from __future__ import annotations

from typing import Annotated

import typer

from energy_lens.cli.app import model_app
from energy_lens.cli.listing import print_line, print_rows
from energy_lens.cli.options import DEFAULT_MODEL, ListingFormat, Precision, TextFormat, examples, numbers
from energy_lens.console import say
from energy_lens.errors import ElwError


@model_app.command("pull", epilog=examples("elw model pull smollm2-135m"))
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
    print_line(folder)


@model_app.command("check", epilog=examples("elw model check my-model/ --layers 3,6,9"))
def model_check(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="Built-in name, Hugging Face name, model folder or GGUF file.")
    ] = DEFAULT_MODEL,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", metavar="N,N,...", help="Layers to look at; else the first, the middle one, the last but one."
        ),
    ] = None,
    dtype: Annotated[
        Precision, typer.Option("--dtype", help="Precision of the passes; differences of energies need float32.")
    ] = Precision.float32,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=8, help="Tokens of each of the two contexts that are read.")
    ] = 32,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Prove a model on the spot: what of it works with this program, and what does not.

    Logits and losses against the model's own, the residual stream, padding, passes from the middle on, every energy's
    gradient against differences of that energy; then what one should know: parts, positions, BOS, speed. Exit code 0
    when all that applies holds, else 1.
    """
    from energy_lens.analysis.model_check.finding import Outcome
    from energy_lens.analysis.model_check.run import check_by_name, finding_rows
    from energy_lens.ingest.model.loading import DTYPES

    chosen = numbers(layers, "--layers") if layers is not None else None
    findings = list(check_by_name(name, chosen, DTYPES[dtype.value], tokens))
    print_rows(finding_rows(findings), form)
    outcomes = [finding.outcome for finding in findings]
    if failed := [finding.check for finding in findings if finding.outcome is Outcome.FAILED]:
        compared = len(failed) + outcomes.count(Outcome.PASSED)
        raise ElwError(f"{name} fails {len(failed)} of {compared} checks ({', '.join(failed)}): see the notes above.")
    without = [finding.check for finding in findings if finding.outcome is Outcome.INAPPLICABLE]
    rest = f"; not to be had: {', '.join(without)}" if without else ""
    say(f"{name} passes all {outcomes.count(Outcome.PASSED)} checks that apply{rest}.")


@model_app.command("list", epilog=examples("elw model list"))
def model_list(form: ListingFormat = TextFormat.table) -> None:
    """List the built-in and shipped models, and the converted GGUF files in the cache."""
    from energy_lens.ingest.model.loading import PACKAGED_MODELS, cache_folder, locate, shipped_models
    from energy_lens.warehouse.output import Rows

    cache = cache_folder() / "models"
    built_in = {f"{name}-{packaged.sha256[:12]}": name for name, packaged in PACKAGED_MODELS.items()}
    converted = {path.name: path.name for path in sorted(cache.glob("gguf-*"))}
    rows = []
    for copy, name in (built_in | converted).items():
        files = [path for path in (cache / copy).glob("*") if path.is_file()]
        size = round(sum(path.stat().st_size for path in files) / 1e6, 1) if files else None
        source = "built in" if copy in built_in else "GGUF file"
        rows.append((name, source, bool(files), size, str(cache / copy) if files else None))
    for name in shipped_models():
        folder = locate(name)[0]
        size = round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6, 1)
        rows.append((name, "shipped", True, size, str(folder)))
    columns = [("model", "varchar"), ("source", "varchar"), ("cached", "boolean"), ("megabytes", "double")]
    print_rows(Rows.of([*columns, ("folder", "varchar")], rows), form)
