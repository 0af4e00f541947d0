"""The command line: options in, one call into the package, an exit code out.

stdout carries data, stderr everything else. Exit codes: 0 ok, 1 failed, 2 usage, 3 the warehouse can't be opened,
130 interrupted. Heavy imports wait inside the commands, so that `elw sql` and `elw --help` start at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from energy_lens.errors import ElwError, UsageError

if TYPE_CHECKING:
    from energy_lens.ingest.sae.figures import Evaluation
    from energy_lens.ingest.training.saes import Progress
    from energy_lens.warehouse.output import Rows

#: As energy_lens.ingest.models has it, which would load torch.
DEFAULT_MODEL = "smollm2-135m"

# Plain help: rich would take longer to load than a query takes to run.
app = typer.Typer(name="elw", rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
sae_app = typer.Typer(help="Train, evaluate, import, export and list sparse autoencoders (SAEs).")
lens_app = typer.Typer(help="Train tuned lenses, for the energy tuned_lens.")
model_app = typer.Typer(help="Fetch language models, and list those at hand.")
efas_app = typer.Typer(help="Put EFAS to the test: a replay of the draft's protocol, and permuted documents.")
app.add_typer(efas_app, name="efas")
app.add_typer(sae_app, name="sae")
app.add_typer(lens_app, name="lens")
app.add_typer(model_app, name="model")


Format = StrEnum("Format", "table csv json jsonl markdown parquet")
TextFormat = StrEnum("TextFormat", "table csv json jsonl markdown")
Dtype = StrEnum("Dtype", "auto float32 bfloat16")
TrainingDtype = StrEnum("TrainingDtype", "float32 bfloat16")
SaeFormat = StrEnum("SaeFormat", "saelens sparsify")

Database = Annotated[
    Path | None,
    typer.Option("--db", metavar="FILE", help="The warehouse; else $ELW_WAREHOUSE, else elw.duckdb here."),
]
ListingFormat = Annotated[TextFormat, typer.Option("--format", "-f", help="How to print it.")]
Paths = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders with UTF-8 text.")]
Model = Annotated[
    str,
    typer.Option("--model", metavar="MODEL", help="Built-in name, Hugging Face name, model folder or GGUF file."),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="N,N,...",
        help="Layers whose output is read; else those of the SAEs given, or 10,12,15,20,25 of the default model.",
    ),
]
Saes = Annotated[
    list[Path] | None,
    typer.Option(
        "--sae", metavar="DIR", help="An SAE's folder, or a folder of such; repeatable; else the shipped ones."
    ),
]
Excludes = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="Leave out files whose name or path matches; repeatable."),
]


# ------------------------------------------------------------------------------------------------ entry


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; every failure is a sentence on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options  # before the command or behind it
    try:
        with contextlib.suppress(ValueError):
            while debug:
                words.remove("--debug")
        command = typer.main.get_command(app)
        with command.make_context("elw", words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as leaving:
        return int(leaving.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _failed("interrupted.", 130, debug)
        if arguments is None:
            os._exit(code)  # files are closed by now; threads that are still at work shall not be waited for
        return code
    except BrokenPipeError:
        _discard_stdout()  # the reader has seen enough
        return 0
    except ElwError as error:
        return _failed(str(error), error.exit_code, debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself is wrong
            failed = getattr(error, "ctx", None)
            page = f"{failed.command_path if failed else 'elw'} --help"
            return _failed(f"{error.format_message().rstrip('.')}: see {page}.", 2, debug)
        if isinstance(error, OSError) and error.strerror:
            _discard_stdout()
            what = error.filename or "the output"
            return _failed(f"{what} cannot be used ({error.strerror}).", 1, debug)
        reason = " ".join(str(error).split())[:200]
        kind = type(error).__name__ + (f" ({reason})" if reason else "")
        return _failed(f"Unexpected {kind}; run again with --debug to see where it came from.", 1, debug)
    return 0


def _failed(sentence: str, exit_code: int, debug: bool) -> int:
    """Say what went wrong; with --debug also where. Returns the exit code."""
    if debug:
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()  # what was written before stands before it
    print(f"elw: {sentence}", file=sys.stderr)
    return exit_code


def _discard_stdout() -> None:
    """Send what is still in stdout's buffer nowhere, or Python would fail on it again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_version(wanted: bool) -> None:
    if wanted:
        from energy_lens.version import __version__

        print(f"elw {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, no_args_is_help=False)
def elw(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from; may also stand behind a command.")
    ] = False,
) -> None:
    """An analytics warehouse for mechanistic interpretability.

    elw ingest runs a language model and its sparse autoencoders over your text and writes token energies, energy
    gradients and feature activations into one DuckDB file; after that every question is SQL.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 the warehouse cannot be opened, 130 interrupted.
    """
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


# ------------------------------------------------------------------------------------------------ ingest


@app.command()
def ingest(
    paths: Paths,
    db: Database = None,
    model: Model = DEFAULT_MODEL,
    layers: Layers = None,
    sae: Saes = None,
    energies: Annotated[
        str,
        typer.Option(
            "--energies",
            metavar="NAME,...",
            help="Of nll, logit_lens, tuned_lens, attention, hopfield; or package.module:Class for one of your own.",
        ),
    ] = "nll,hopfield",
    lens: Annotated[
        Path | None,
        typer.Option("--lens", metavar="FILE", help="Maps of the energy tuned_lens; else those shipped for the model."),
    ] = None,
    context: Annotated[int, typer.Option("--context", metavar="T", help="Tokens in a context.")] = 128,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Contexts in a forward pass.")] = 8,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Precision of the model's passes; auto takes the faster one.")
    ] = Dtype.auto,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", metavar="N", help="Stop at the first group end at or after N tokens; a larger N goes on."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the document order and the calibration.")] = 0,
    store_gradients: Annotated[
        bool, typer.Option("--store-gradients", help="Keep every token's gradient vector, which makes a large file.")
    ] = False,
    probes: Annotated[
        int,
        typer.Option(
            "--probes", metavar="N", help="Backward passes for attribution_curvature; 3 predict an ablation well."
        ),
    ] = 0,
    new_run: Annotated[
        bool, typer.Option("--new-run", help="Start afresh although a run with equal settings exists.")
    ] = False,
    exclude: Excludes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on stdout.")] = False,
) -> None:
    """Run a model and its SAEs over text and store what they say.

    Whatever stops it, the same command goes on where it stood; on an unchanged corpus it does nothing.
    """
    from energy_lens.ingest import pipeline
    from energy_lens.warehouse.database import warehouse_path

    options = pipeline.IngestOptions(
        db=warehouse_path(db),
        model=model,
        layers=_numbers(layers, "--layers") if layers is not None else None,
        saes=tuple(sae or ()),
        energies=tuple(_words(energies, "--energies")),
        lens=lens,
        context_length=context,
        batch_size=batch_size,
        dtype=dtype.value,
        max_tokens=max_tokens,
        seed=seed,
        store_gradients=store_gradients,
        probes=probes,
        new_run=new_run,
        exclude=tuple(exclude or ()),
    )
    summary = pipeline.ingest(paths, options)
    if as_json:
        import json

        print(json.dumps(summary.as_dict(), indent=2))
    else:
        _say(str(summary))
    if summary.interrupted:
        raise typer.Exit(130)


# ------------------------------------------------------------------------------------------------ queries


@app.command()
def sql(
    query: Annotated[
        str | None,
        typer.Argument(metavar="QUERY|-", help="SQL; - or nothing reads it from stdin.", show_default=False),
    ] = None,
    db: Database = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="How to write the rows; else by the ending of --output, else table."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to a file, whole or not at all.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="NAME=VALUE",
            help="Value of $NAME: a number, true, false or null if it reads so, else a string; n=\"'42'\" is a string. "
            "Repeatable.",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows", metavar="N", min=0, help="Rows of a table to show, 0 for all; else 40, and all in a file."
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Let the query change the warehouse.")] = False,
) -> None:
    """Run SQL on the warehouse: read-only, without access to files or the network.

    Of several statements all are run, each committed on its own, and the last one's rows are shown.
    """
    from energy_lens.warehouse import query as queries

    request = queries.Query(
        script=queries.read_script(query),
        parameters=queries.parse_parameters(parameter or []),
        format=form.value if form else None,
        output=output,
        rows=rows,
        write=write,
    )
    for note in queries.run(db, request):
        _say(note)


@app.command()
def tables(db: Database = None, form: ListingFormat = TextFormat.table) -> None:
    """List every table, view and macro with what it holds."""
    from energy_lens.warehouse.database import Warehouse
    from energy_lens.warehouse.query import announce_state
    from energy_lens.warehouse.query import tables as catalogue

    with Warehouse(db) as warehouse:
        announce_state(warehouse)
        _print(catalogue(warehouse), form)


@app.command()
def describe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A table, view or macro.")],
    db: Database = None,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Show the columns of a table or view, or the parameters of a macro, and what they mean."""
    from energy_lens.warehouse.database import Warehouse
    from energy_lens.warehouse.query import describe as columns_of

    with Warehouse(db) as warehouse:
        head, columns = columns_of(warehouse, name)
        _say(head)
        _print(columns, form)


@app.command()
def runs(
    db: Database = None,
    use: Annotated[
        int | None,
        typer.Option("--use", metavar="ID", help="Make this run the one that efas and the other views show."),
    ] = None,
    form: ListingFormat = TextFormat.table,
) -> None:
    """List the runs of the warehouse, or choose the current one."""
    from energy_lens.warehouse.database import Warehouse
    from energy_lens.warehouse.query import announce_state, list_runs, use_run

    with Warehouse(db) as warehouse:  # also when one is chosen: no warehouse is made for it
        if use is None:
            announce_state(warehouse)
            _print(list_runs(warehouse), form)
    if use is not None:
        with Warehouse(db, writable=True) as warehouse:
            use_run(warehouse, use)
            _say(f"Run {use} of {warehouse.path} is current now.")


@app.command()
def migrate(db: Database = None) -> None:
    """Bring an older warehouse to this version's tables and views."""
    from energy_lens.warehouse.database import Warehouse

    with Warehouse(db) as warehouse:
        behind = warehouse.behind
    with Warehouse(db, writable=True) as warehouse:
        number = warehouse.sql("SELECT max(number) FROM schema_migrations").value()
        _say(f"{warehouse.path} {'is now' if behind else 'was and is'} at schema {number}, with this version's views.")


# ------------------------------------------------------------------------------------------------ report


@app.command()
def report(
    db: Database = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the report.")] = Path(
        "report"
    ),
    form: Annotated[str, typer.Option("--format", "-f", metavar="FORMAT,...", help="md, html or both.")] = "md,html",
) -> None:
    """Write a report with tables and figures; print the paths of its files."""
    from energy_lens.warehouse.database import warehouse_path

    formats = _words(form, "--format")
    if unknown := [name for name in formats if name not in ("md", "html")]:
        raise UsageError(f"There is no report format {unknown[0]!r}: choose md, html or md,html.")
    from energy_lens.reports.render import render

    for path in render(warehouse_path(db), output, tuple(formats)):
        print(path)


# ------------------------------------------------------------------------------------------------ EFAS


@efas_app.command("test")
def efas_test(
    db: Database = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="N,N,...", help="Layers to test; else all of the run.")
    ] = None,
    energy: Annotated[
        str | None, typer.Option("--energy", metavar="NAME,...", help="Energies to test; else all of the run.")
    ] = None,
    category: Annotated[
        str, typer.Option("--category", metavar="NAME", help="A category of documents, or all.")
    ] = "all",
    permutations: Annotated[
        int, typer.Option("--permutations", metavar="N", min=19, help="Random pairings of documents.")
    ] = 1_000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of permutations and sample.")] = 0,
    contexts: Annotated[
        int | None,
        typer.Option(
            "--contexts", metavar="N", min=1, help="Sample of contexts; else all with stored gradients, or 256 anew."
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", min=0, help="Rows of a table to show, strongest first; 0 for all.")
    ] = 40,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Check z by permuting documents: a feature's activations with the gradients of other documents.

    Whatever efas tests is tested again without the normal distribution. Gradients are those stored by ingest
    --store-gradients, or taken anew on a sample of contexts. Nothing is written.
    """
    from energy_lens.analysis import permutation_check as check
    from energy_lens.warehouse.output import Rows

    options = check.PermutationOptions(
        layers=_numbers(layer, "--layer") if layer is not None else None,
        energies=tuple(_words(energy, "--energy")) if energy is not None else None,
        category=category,
        permutations=permutations,
        contexts=contexts,
        seed=seed,
    )
    outcomes = check.check_run(db, options)
    columns = [("layer", "integer"), ("energy", "varchar"), ("feature", "integer"), ("n_active", "bigint")]
    columns += [("n_contexts", "bigint"), ("statistic", "double"), ("z_permutation", "double")]
    columns += [("p_permutation", "double"), ("q_permutation", "double"), ("p_sum", "double")]
    columns += [("z", "double"), ("p_value", "double"), ("q_value", "double")]
    found = sorted((row for outcome in outcomes for row in outcome.rows()), key=lambda row: (row[7], -abs(row[6])))
    shown = found[:rows] if form is TextFormat.table and rows else found
    _print(Rows.of(columns, [[_significant(value) for value in row] for row in shown]), form)
    if len(shown) < len(found):
        _say(f"{len(shown)} of {len(found):,} rows are shown: --rows 0 shows all.")
    for sentence in check.summaries(outcomes):
        _say(sentence)


@efas_app.command("replay-draft")
def efas_replay_draft(
    model: Model = DEFAULT_MODEL,
    sae: Saes = None,
    layers: Layers = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the noise and the permutations.")] = 0,
    repetitions: Annotated[
        int, typer.Option("--repetitions", metavar="N", min=1, help="How often noise is drawn.")
    ] = 20,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Replay the draft's protocol on a model and on noise: what 496 alignments of up to 0.8559 are worth.

    Five short texts; of each text and layer the 20 features whose activation goes most with the energy gradient, from
    |r| = 0.1 on. Noise is drawn several times: means are shown, and standard deviations (_sd). Needs no warehouse.
    """
    from dataclasses import asdict

    from energy_lens.analysis.replay import conclusion, replay
    from energy_lens.ingest.model import loading as models
    from energy_lens.ingest.sae.choosing import choose_saes
    from energy_lens.warehouse.output import Rows

    chosen = _numbers(layers, "--layers") if layers is not None else None
    saes = choose_saes(model, chosen, sae or ())
    arms = replay(models.load_model(model), list(saes.values()), seed, repetitions)
    figures = ["tested", "alignments", "mean_r", "p95_r", "max_r", "survive_t", "survive_permutation"]
    spreads = ["mean_r", "p95_r", "max_r", "survive_permutation"]
    columns = [("arm", "varchar"), ("repetitions", "integer"), *((name, "double") for name in figures)]
    rows = []
    for arm in arms:
        own, spread = asdict(arm.figures), asdict(arm.spread) if arm.spread else {}
        rows.append(
            (
                arm.name,
                arm.repetitions,
                *(_rounded(own[n]) for n in figures),
                *(_rounded(spread.get(n)) for n in spreads),
            )
        )
    _print(Rows.of([*columns, *((f"{name}_sd", "double") for name in spreads)], rows), form)
    for sentence in conclusion(arms):
        _say(sentence)


# ------------------------------------------------------------------------------------------------ interventions


@app.command()
def intervene(
    db: Database = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="N,N,...", help="Layers; else all of the run, or the listed ones.")
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            "--features",
            "--feature",
            metavar="WORD,...",
            help="top:N, random:N (firing as often as the others), LAYER:FEATURE, class:NAME; combined at will.",
        ),
    ] = "top:25,random:25",
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="SCORE",
            help="What top goes by, in size: attribution, score, z, attribution_curvature, mi_excess, density.",
        ),
    ] = "attribution",
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="ablate, scale, clamp or add.")] = "ablate",
    value: Annotated[
        float | None, typer.Option("--value", metavar="X", help="Of scale (factor), clamp (target) and add.")
    ] = None,
    where: Annotated[
        str, typer.Option("--where", metavar="PLACE", help="active: where the feature is; all: all included tokens.")
    ] = "active",
    contexts: Annotated[
        int, typer.Option("--contexts", metavar="N", help="Contexts to measure on, from every category and half.")
    ] = 96,
    probes: Annotated[int, typer.Option("--probes", metavar="N", help="Curvature probes of each kind.")] = 3,
    directions: Annotated[
        int, typer.Option("--directions", metavar="N", help="Random directions beside each feature, as a control.")
    ] = 1,
    hessian: Annotated[
        bool, typer.Option("--hessian", help="Also predict by a Hessian-vector product for each patch; slow.")
    ] = False,
    path: Annotated[
        int,
        typer.Option("--path", metavar="N", help="Also integrate gradients along each path, at N points; slow."),
    ] = 0,
    shift: Annotated[
        int,
        typer.Option(
            "--shift", metavar="N", help="Also read attractors of later layers, at edited and N later tokens; slow."
        ),
    ] = 0,
    dtype: Annotated[TrainingDtype, typer.Option("--dtype", help="Precision of the passes.")] = TrainingDtype.float32,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Patches in a forward pass.")] = 16,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of contexts, random features, directions and probes.")
    ] = 0,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="TEXT", help="Try one feature on this text instead; nothing is stored."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="With --text: length of the continuation.")] = 20,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Rows to show, 0 for all.")] = 20,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Edit single features and measure what it does to the model, beside what every score predicted.

    Effects go to the tables and views interventions, intervention_effects and predictor_validation. Whatever stops it,
    the same command goes on where it stood. --text shows one feature on a text of yours instead.
    """
    from energy_lens.analysis.interventions import Edit
    from energy_lens.warehouse.database import Warehouse, warehouse_path

    edit = Edit(kind, value, where)
    words = tuple(_words(features, "--features"))
    if text is not None:
        from energy_lens.analysis.intervention_example import try_on_text

        example = try_on_text(db, text, words, edit, tokens, dtype.value)
        _print(example.rows(rows), form)
        for sentence in example.sentences():
            _say(sentence)
        return
    from energy_lens.analysis.intervention_run import InterventionOptions, effects, intervene, summaries

    options = InterventionOptions(
        edit=edit, layers=_numbers(layer, "--layer") if layer is not None else None, features=words, by=by,
        contexts=contexts, probes=probes, directions=directions, path_points=path, hessian=hessian, shift=shift,
        dtype=dtype.value,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    done = intervene(warehouse_path(db), options)
    with Warehouse(db) as warehouse:
        found = effects(warehouse, done, rows if form is TextFormat.table else 0)
        _print(found, form)
        for sentence in summaries(warehouse, done):
            _say(sentence)


@app.command()
def attractors(
    db: Database = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="N,N,...", help="Layers; else all of the run.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens of the sample.")] = 4_096,
    perplexity: Annotated[
        float,
        typer.Option("--perplexity", metavar="X", help="Median number of decoder rows that a fixed point is made of."),
    ] = 16.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the sample and the random dictionary.")] = 0,
    patch: Annotated[
        str | None,
        typer.Option(
            "--patch",
            metavar="LAYER:FEATURE",
            help="Find how far this feature must be scaled to change the basin at the next hooked layer instead.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Attractors a layer to show, 0: all.")] = 10,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Let residuals fall to the fixed points of a Hopfield network whose memories are the SAE's decoder rows.

    Attractors, basins, a sweep of β and a random dictionary as a null go to the tables attractors, basins,
    attractor_settings, attractor_sweeps and attractor_descents.
    """
    from energy_lens.analysis import attractor_run
    from energy_lens.warehouse.database import Warehouse, warehouse_path

    if patch is not None:
        from energy_lens.analysis import attractor_shift

        words = patch.split(":")
        if len(words) != 2 or not all(word.isdecimal() for word in words):
            raise UsageError(f"--patch is {patch!r}; say layer and feature, as in 15:656.")
        dose = attractor_shift.DoseOptions(int(words[0]), int(words[1]), min(tokens, 32), seed)
        attractor_shift.critical_doses(warehouse_path(db), dose)
        with Warehouse(db) as warehouse:
            _print(attractor_shift.doses(warehouse, dose), form)
        return
    options = attractor_run.AttractorOptions(
        layers=_numbers(layer, "--layer") if layer is not None else None, tokens=tokens, target=perplexity, seed=seed
    )
    layers = attractor_run.find_attractors(warehouse_path(db), options)
    with Warehouse(db) as warehouse:
        _print(attractor_run.listing(warehouse, layers, rows if form is TextFormat.table else 0), form)
        for sentence in attractor_run.summaries(warehouse, layers):
            _say(sentence)


# ------------------------------------------------------------------------------------------------ SAEs


@sae_app.command("train")
def sae_train(
    paths: Paths,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for one folder a layer, or one a k and layer."),
    ],
    model: Model = DEFAULT_MODEL,
    layers: Layers = None,
    features: Annotated[
        int | None, typer.Option("--features", metavar="N", help="Features; 2048 unless given.")
    ] = None,
    k: Annotated[
        str | None,
        typer.Option("--k", metavar="N,...", help="Active features a token; 8 unless given. One SAE a layer for each."),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option("--architecture", metavar="NAME", help="topk, or batchtopk, which is saved as jumprelu."),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", metavar="NAME", help="adam, or lbfgs: Adam, then L-BFGS as a polish.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="Distinct tokens to train on; 2,000,000 unless given.")
    ] = None,
    passes: Annotated[
        int | None, typer.Option("--passes", metavar="N", help="Times that each token is trained on.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", metavar="N", help="Tokens a step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="X", help="Adam's, at its highest.")
    ] = None,
    context: Annotated[int | None, typer.Option("--context", metavar="T", help="Tokens in a context.")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of weights and token order.")] = 0,
    dtype: Annotated[
        TrainingDtype, typer.Option("--dtype", help="Precision of the model's forward pass.")
    ] = TrainingDtype.bfloat16,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16.")] = False,
    exclude: Excludes = None,
) -> None:
    """Train SAEs for every layer in one pass of the model over a corpus.

    Whatever stops it, the same command goes on from the last round.
    """
    import shutil

    import torch

    from energy_lens.ingest.corpus import discover
    from energy_lens.ingest.model import loading as models
    from energy_lens.ingest.sae.saving import save_sae
    from energy_lens.ingest.training.saes import TrainingConfig, train_saes

    chosen = _layers_to_train(layers, model)
    given = {
        "d_sae": features, "ks": None if k is None else _numbers(k, "--k"), "architecture": architecture,
        "optimizer": optimizer, "tokens": tokens, "passes": passes, "batch_size": batch_size,
        "learning_rate": learning_rate, "context_length": context,
    }  # fmt: skip
    config = TrainingConfig(seed=seed, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    parents = [output] if len(config.ks) == 1 else [output / f"k_{own}" for own in config.ks]
    places = [parent / f"layer_{layer}" for parent in parents for layer in chosen]
    if taken := [folder for folder in places if folder.exists()]:
        raise UsageError(f"{taken[0]} exists already: choose another --output, or remove it.")
    documents = discover(paths, tuple(exclude or ()))
    scratch = output / ".training"
    try:
        scratch.mkdir(parents=True, exist_ok=True)  # now: what cannot be written shall not cost an hour first
    except OSError as error:
        raise UsageError(f"{output} cannot be made ({error.strerror}): choose another --output.") from error
    language_model = models.load_model(model, getattr(torch, dtype.value))
    with _TrainingBar() as bar:
        saes = train_saes(language_model, documents, chosen, config, scratch, bar.update)
    for sae, place in zip(saes, places, strict=True):
        save_sae(sae, place, torch.float16 if half else torch.float32)
        print(place)
    shutil.rmtree(scratch)


def _layers_to_train(layers: str | None, model: str) -> tuple[int, ...]:
    """The layers given, or the default ones of the default model."""
    from energy_lens.ingest.model import loading as models

    if layers is None and model != models.DEFAULT_MODEL:
        raise UsageError(f"Name the layers of {model} to train on, as in --layers 6,8.")
    return models.DEFAULT_LAYERS if layers is None else _numbers(layers, "--layers")


class _TrainingBar:
    """A progress bar with each SAE's fraction of variance unexplained (FVU) and share of dead features."""

    def __init__(self) -> None:
        from tqdm import tqdm

        every = 0.5 if sys.stderr.isatty() else 30
        form = "{desc} {percentage:.1f}% [{elapsed}<{remaining}]{postfix}"
        self._bar = tqdm(total=1.0, desc="Train", bar_format=form, mininterval=every, file=sys.stderr)

    def update(self, progress: Progress) -> None:
        begun = {place: fvu for place, fvu in progress.fvu.items() if not math.isnan(fvu)}
        figures = [f"{layer}/{k}: {fvu:.3f} {progress.dead_share[layer, k]:.0%}" for (layer, k), fvu in begun.items()]
        shown = [progress.note] * bool(progress.note) + ["layer/k: FVU dead"] * bool(figures) + figures
        self._bar.set_postfix_str(" · ".join(shown), refresh=False)
        self._bar.update(progress.share - self._bar.n)

    def __enter__(self) -> _TrainingBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


@sae_app.command("evaluate")
def sae_evaluate(
    paths: Paths,
    sae: Saes = None,
    model: Model = DEFAULT_MODEL,
    layers: Layers = None,
    max_tokens: Annotated[
        int,
        typer.Option("--max-tokens", metavar="N", min=0, help="Tokens of a sample, balanced over categories; 0: all."),
    ] = 50_000,
    context: Annotated[int, typer.Option("--context", metavar="T", help="Tokens in a context.")] = 128,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Contexts in a forward pass.")] = 8,
    dtype: Annotated[
        TrainingDtype, typer.Option("--dtype", help="Precision of the model's passes.")
    ] = TrainingDtype.float32,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the sample.")] = 0,
    ce_tokens: Annotated[
        int,
        typer.Option("--ce-tokens", metavar="N", min=0, help="Tokens of the sample whose losses are measured; 0: all."),
    ] = 16_000,
    no_ce: Annotated[
        bool, typer.Option("--no-ce", help="Leave out the model's loss with and without the SAE, most of the work.")
    ] = False,
    save: Annotated[bool, typer.Option("--save", help="Keep the figures in the cfg.json of each --sae.")] = False,
    db: Annotated[
        Path | None,
        typer.Option("--db", metavar="FILE", help="A warehouse: store the figures with its runs that use these SAEs."),
    ] = None,
    exclude: Excludes = None,
    form: ListingFormat = TextFormat.table,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures, and what they were measured on, as JSON.")
    ] = False,
) -> None:
    """Measure how much SAEs leave out of text they never saw, and what that costs the model.

    FVU, cosine, L0 and dead features over included tokens; the model's loss with their residuals replaced by the SAE's
    reconstruction, by zero and by the mean. By category, pooled (all) and as the mean over categories (macro).
    """
    from energy_lens.ingest.corpus import discover
    from energy_lens.ingest.model import loading as models
    from energy_lens.ingest.sae import evaluation as sae_evaluation
    from energy_lens.ingest.sae.choosing import choose_saes, load_saes
    from energy_lens.ingest.sae.saving import save_evaluation
    from energy_lens.warehouse import quality
    from energy_lens.warehouse.database import Warehouse

    if save and not sae:
        raise UsageError("--save changes the folders given with --sae, and none was given: name them.")
    options = sae_evaluation.EvaluationOptions(
        max_tokens or None, context, batch_size, seed, ce=not no_ce, ce_tokens=ce_tokens or None
    )
    chosen = _numbers(layers, "--layers") if layers is not None else None
    documents = discover(paths, tuple(exclude or ()))
    if sae:
        saes = load_saes(sae, chosen)
    else:
        saes = list(choose_saes(model, chosen).values())
    language_model = models.load_model(model, models.DTYPES[dtype.value])
    if db is not None:
        with Warehouse(db) as warehouse:  # before the work; and no warehouse is made for it
            used = [entry for entry in saes if quality.runs_of(warehouse, entry.sha256, language_model.sha256)]
            if not used:
                raise UsageError(f"No run of {db} uses any of these SAEs on {model}: leave out --db, or name another.")
    evaluations = sae_evaluation.evaluate(language_model, saes, documents, options)
    for note, own in _grouped((note, entry.layer) for entry in evaluations for note in entry.notes).items():
        _say(f"Layer {', '.join(map(str, own))}: {note}")
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(entry) for entry in evaluations], indent=2))
    else:
        _print(_figures(evaluations), form)
    for evaluation in evaluations:
        if save:
            _say(f"Saved with the SAE in {save_evaluation(evaluation)}.")
        if db is not None:
            with Warehouse(db, writable=True) as warehouse:
                runs = quality.store_evaluation(
                    warehouse, evaluation.sae_sha256, language_model.sha256, evaluation.as_dict()
                )
            where = f"with run {', '.join(map(str, runs))} of {db}" if runs else f"nowhere: no run of {db} uses it"
            _say(f"The figures of {evaluation.source} are stored {where}.")


def _grouped(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """{text: its numbers}, in order and without repetition."""
    groups: dict[str, list[int]] = {}
    for text, number in pairs:
        if number not in groups.setdefault(text, []):
            groups[text].append(number)
    return groups


def _figures(evaluations: Sequence[Evaluation]) -> Rows:
    """One row for each SAE and category, then its macro average and all tokens together."""
    from energy_lens.warehouse.output import Rows

    figures = ["l0", "fvu", "cosine", "dead_share", "dense_share", "ce_clean", "delta_ce"]
    figures += ["ce_recovered_zero", "ce_recovered_mean"]
    columns = [("layer", "integer"), ("category", "varchar"), ("n_tokens", "bigint")]
    columns += [(name, "double") for name in figures] + [("folder", "varchar")]
    rows = [
        (entry.layer, category, own.n_tokens, *(_rounded(getattr(own, name)) for name in figures), entry.source)
        for entry in evaluations
        for category, own in [*entry.categories.items(), ("macro", entry.macro), ("all", entry.all)]
    ]
    return Rows.of(columns, rows)


@sae_app.command("import")
def sae_import(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An SAE's folder, of SAELens or sparsify.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The model it was trained on.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the copy; else in the cache.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", metavar="N", help="Block whose output it reads, if the files do not say.")
    ] = None,
    activation_scale: Annotated[
        float | None,
        typer.Option("--activation-scale", metavar="X", help="Factor on its input, for expected_average_only_in."),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option("--calibrate", metavar="PATH", help="Text to measure the median norm on; repeatable."),
    ] = None,
) -> None:
    """Register an SAE for a model: check it, write a copy in SAELens v6 format, print its folder."""
    from energy_lens.ingest.sae.registry import import_sae as register

    print(register(folder, model, output, layer, activation_scale, tuple(calibrate or ())))


@sae_app.command("export")
def sae_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An SAE's folder, in any format that can be read.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write; sparsify's is layers.N in it."),
    ],
    form: Annotated[SaeFormat, typer.Option("--format", "-f", help="Format to write.")] = SaeFormat.saelens,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16.")] = False,
) -> None:
    """Write an SAE in another format; print its folder."""
    from energy_lens.ingest.sae.registry import export_sae as export

    print(export(folder, form.value, output, half))


@sae_app.command("list")
def sae_list(model: Model = DEFAULT_MODEL, form: ListingFormat = TextFormat.table) -> None:
    """List a model's SAEs, those of the package and the registered ones, with their figures on held-out documents."""
    from energy_lens.ingest.sae.choosing import listed
    from energy_lens.warehouse.output import Rows

    figures = ("l0", "fvu", "cosine", "dead_share")
    saes = listed(model)
    if not saes:
        raise UsageError(
            f"No SAE comes with the package for {model}, and none is registered: train one with elw sae train, or "
            "register one with elw sae import."
        )
    columns = [("layer", "integer"), ("source", "varchar"), ("architecture", "varchar"), ("features", "integer")]
    columns += [("k", "integer"), ("norm_median", "double"), *((name, "double") for name in figures)]
    rows = [
        (
            sae.layer,
            source,
            sae.architecture,
            sae.d_sae,
            sae.k,
            _rounded(sae.norm_median),
            *(_rounded(sae.metadata.get(name)) for name in figures),
            sae.metadata.get("trained_tokens"),
            sae.source,
        )
        for source, sae in saes
    ]
    _print(Rows.of([*columns, ("trained_tokens", "bigint"), ("folder", "varchar")], rows), form)


# ------------------------------------------------------------------------------------------------ lenses


@lens_app.command("train")
def lens_train(
    paths: Paths,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File for the maps, .safetensors.")],
    model: Model = DEFAULT_MODEL,
    layers: Layers = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Training tokens.")] = 131_072,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the token order.")] = 0,
    dtype: Annotated[
        TrainingDtype, typer.Option("--dtype", help="Precision of the model's passes.")
    ] = TrainingDtype.bfloat16,
    half: Annotated[bool, typer.Option("--half", help="Store the maps in float16.")] = False,
    exclude: Excludes = None,
    form: ListingFormat = TextFormat.table,
) -> None:
    """Fit each layer's tuned lens on the training documents of a corpus, and measure it on held-out ones."""
    import torch
    from tqdm import tqdm

    from energy_lens.ingest.corpus import discover
    from energy_lens.ingest.energies.translators import save_translators
    from energy_lens.ingest.model.loading import load_model
    from energy_lens.ingest.training.lenses import FitOptions, fit_translators

    options = FitOptions(tokens=tokens, seed=seed)
    chosen = _layers_to_train(layers, model)
    if output.exists():
        raise UsageError(f"{output} exists already: choose another --output, or remove it.")
    documents = discover(paths, tuple(exclude or ()))
    language_model = load_model(model, getattr(torch, dtype.value))
    every = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=1.0, bar_format="{desc}{percentage:.1f}% [{elapsed}<{remaining}]", mininterval=every) as bar:

        def show(what: str, share: float) -> None:
            if what != bar.desc.removesuffix(": "):
                bar.reset()
                bar.set_description(what)
            bar.update(share - bar.n)

        translators = fit_translators(language_model, documents, chosen, options, show)
    save_translators(translators, output, torch.float16 if half else torch.float32)
    if held_out := translators.metadata.get("held_out"):
        _say(f"On {held_out['tokens']:,} tokens of documents that were held out, in nats:")
        _print(_lens_figures(held_out), form)
    else:
        _say("No document was held out, so nothing was measured: that needs 3 documents in a category.")


def _lens_figures(held_out: Mapping[str, Any]) -> Rows:
    """A row a layer: losses and divergences on held-out tokens, in nats."""
    from energy_lens.warehouse.output import Rows

    names = ["logit_lens_loss", "tuned_lens_loss", "logit_lens_kl", "tuned_lens_kl"]
    columns = [("layer", "integer"), *((name, "double") for name in names), ("output_loss", "double")]
    rows = [
        [int(layer), *(_rounded(own[name]) for name in names), _rounded(held_out["output_loss"])]
        for layer, own in held_out["layers"].items()
    ]
    return Rows.of(columns, rows)


# ------------------------------------------------------------------------------------------------ models


@model_app.command("pull")
def model_pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Built-in name, Hugging Face name or GGUF file.")
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
    _print(Rows.of([*columns, ("folder", "varchar")], rows), form)


# ------------------------------------------------------------------------------------------------ words and rows


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _print(rows: Rows, form: TextFormat) -> None:
    """A listing, all of it."""
    from energy_lens.warehouse.query import print_listing

    for note in print_listing(rows, form.value):
        _say(note)


def _words(text: str, option: str) -> list[str]:
    """The words of a list with commas."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"{option} is empty: name at least one.")
    return words


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """The numbers of a list with commas, without repetition."""
    try:
        return tuple(dict.fromkeys(int(word) for word in _words(text, option)))
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}: numbers with commas between are expected, as in 10,12.") from error


def _significant(value: float | str) -> float | str:
    """A number to six digits, whatever its size."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if isinstance(value, int | float) and not math.isnan(value) else None


if __name__ == "__main__":
    sys.exit(main())
