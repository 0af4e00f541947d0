"""The program as a process: exit codes, what goes where, signals, pipes, start-up, and options on their way in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

import energy_lens
from energy_lens.cli.app import app
from energy_lens.cli.main import main
from energy_lens.cli.options import DEFAULT_MODEL as OPTION_DEFAULT
from energy_lens.errors import ElwError
from energy_lens.warehouse.database import Warehouse

PACKAGE_PARENT = Path(energy_lens.__file__).parent / ".types"
ELW = [sys.executable, "-c", "import sys; from energy_lens.cli import main; sys.exit(main())"]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{PACKAGE_PARENT}:{os.environ.get('PYTHONPATH', '')}"}

LAG = """
INSERT INTO runs BY NAME SELECT
    1 AS run_id, 'i' AS identity, true AS is_current, TIMESTAMP '2026-01-02' AS created_at, 'm' AS model,
    TIMESTAMP '2026-01-02' AS updated_at, 'a' AS model_sha256, 'b' AS tokenizer_sha256, 512 AS vocabulary_size,
    4 AS n_layers, 32 AS d_model, 128 AS context_length, 4 AS segment_contexts, [1] AS layers, ['nll'] AS energies,
    'float32' AS dtype, 0 AS seed, false AS store_gradients, '{}' AS settings, '0' AS elw_version, 0 AS stats_groups,
    0 AS stats_tokens;
INSERT INTO plan_groups VALUES (1, 0, 'code', 'A', 8, 1000, TIMESTAMP '2026-01-02', NULL);
"""


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse whose statistics lag, so that a query says a line on stderr before it runs."""
    path = tmp_path_factory.mktemp("command") / "elw.duckdb"
    with Warehouse(path, writable=True) as warehouse:
        warehouse.sql(LAG)
    return path


def start(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """elw as a process in which Ctrl-C works, even when this one was started in the background."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*ELW, *map(str, words)],
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **({"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe} | options),
    )


def every_command() -> list[list[str]]:
    """Every command's words, sub-commands included."""

    def below(command: Any, words: list[str]) -> list[list[str]]:
        children = getattr(command, "commands", {})
        return [words] + [found for name, child in children.items() for found in below(child, [*words, name])]

    return below(typer.main.get_command(app), [])


# ------------------------------------------------------------------------------------------------ help and usage


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_and_option_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["Usage: elw", *words]))
    assert err == ""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    assert command.help
    assert all(parameter.help for parameter in command.params if parameter.name != "help")


def test_commands_are_those_that_were_promised() -> None:
    names = {" ".join(words) for words in every_command()}
    assert names >= {"ingest", "sql", "tables", "describe", "runs", "report", "migrate"}
    assert names >= {"sae train", "sae list", "model pull", "model list", "efas test", "efas replay-draft"}
    assert names >= {"intervene", "intervene try", "attractors", "attractors dose"}


def test_commands_are_listed_in_the_order_of_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = [
        line.split()[0] for line in capsys.readouterr().out.partition("Commands:")[2].splitlines() if line.strip()
    ]
    order = ["ingest", "report", "intervene", "attractors", "efas", "sae", "lens", "model"]
    assert [name for name in listed if name in order] == order


@pytest.mark.parametrize(
    ("group", "option", "command"), [("intervene", "--by", "try"), ("attractors", "--patch", "dose")]
)
def test_a_group_that_is_a_command_shows_its_options_and_its_commands(
    group: str, option: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([group, "--help"]) == 0
    options, _, commands = capsys.readouterr().out.partition("Commands:")
    assert option in options
    assert command in commands.split()


def test_no_command_shows_the_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: elw")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"elw {energy_lens.__version__}\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["sql", "--nonsense"], "No such option"),
        (["sql", "SELECT 1", "--format", "xml"], "xml"),
        (["sql", "SELECT 1", "--rows", "-1"], "--rows"),
        (["describe"], "NAME"),
        (["ingest"], "PATH"),
        (["ingest", "x", "--max-tokens", "many"], "--max-tokens"),
        (["ingest", "x", "--dtype", "float16"], "float16"),
        (["runs", "--use", "first"], "--use"),
        (["sae", "train", "x"], "--output"),
    ],
)
def test_wrong_usage_is_one_sentence(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("elw: ")
    assert reason in err
    assert "--help" in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------------------------------------ errors


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ElwError("It failed: do this."), 1, "elw: It failed: do this.\n"),
        (KeyboardInterrupt(), 130, "elw: interrupted.\n"),
        (typer.Abort(), 130, "elw: interrupted.\n"),
        (
            OSError(28, "No space left on device", "x"),
            1,
            "elw: x cannot be used (No space left on device): make room and run the command again.\n",
        ),
        (PermissionError(13, "Permission denied", "x"), 1, "elw: x cannot be used (Permission denied).\n"),
        (ValueError("two\nlines"), 1, "elw: Unexpected ValueError (two lines); run again with --debug"),
        (AssertionError(), 1, "elw: Unexpected AssertionError; run again with --debug"),
    ],
)
def test_every_error_is_one_sentence(
    error: BaseException, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from energy_lens.warehouse import query

    monkeypatch.setattr(query, "run", failing(error))
    assert main(["sql", "SELECT 1"]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(sentence)
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["--debug", "describe", "nothing"], ["describe", "nothing", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    words: list[str], db: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ELW_WAREHOUSE", str(db))
    assert main(["describe", "nothing"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("elw: There is no table")


# ------------------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "table", "markdown"])
def test_closed_pipe_is_silence(db: Path, form: str) -> None:
    process = start(
        "sql", "SELECT range, repeat('x', 100) AS x FROM range(3_000_000)", "--db", db, "--format", form, "--rows", "0"
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0
    lines = process.stderr.read().splitlines()
    assert [line for line in lines if not line.startswith("The statistics of run 1")] == []


def test_interrupt_is_exit_code_130_and_one_line(db: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    query = "SELECT count(*) FROM range(100_000_000_000_000)"
    process = start("sql", query, "--db", db, "--output", target)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("The statistics")  # from here on the query is under way
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (out, err, process.returncode) == ("", "elw: interrupted.\n", 130)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["parquet", "csv", "json", "table"])
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_asked_to_end_leaves_nothing(
    db: Path, tmp_path: Path, sign: signal.Signals, form: str
) -> None:
    """In the middle of a file, and what was there stays."""
    target = tmp_path / "out"
    target.write_text("old")
    query = "SELECT range, md5(range::VARCHAR) AS x FROM range(1_000_000_000)"
    handler = signal.signal(sign, signal.SIG_DFL)  # under nohup it would be ignored, and stay so in what is started
    try:
        process = start("sql", query, "--db", db, "--output", target, "--format", form)
    finally:
        signal.signal(sign, handler)
    written = 0
    while written < 100_000 and process.poll() is None:
        time.sleep(0.05)
        written = max((path.stat().st_size for path in tmp_path.glob(".out.*.tmp")), default=0)
    process.send_signal(sign)
    process.send_signal(sign)  # as a terminal does that closes
    out, err = process.communicate()
    assert (out, err.splitlines()[-1]) == ("", f"elw: ended by {sign.name}.")
    assert process.returncode == 128 + sign
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert target.read_text() == "old"


def test_a_signal_that_the_caller_ignores_or_handles_stays_so(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nohup ignores SIGHUP, and a program that calls main() may have handlers of its own."""
    from energy_lens.warehouse import query

    received = []
    old = [signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGHUP)]

    def both(*_: Any) -> list[str]:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    monkeypatch.setattr(query, "run", both)
    try:
        signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert main(["sql", "SELECT 1", "--db", str(db)]) == 0
        assert received == [signal.SIGTERM]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert main(["sql", "SELECT 1", "--db", str(db)]) == 128 + signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        for sign, handler in zip((signal.SIGTERM, signal.SIGHUP), old, strict=True):
            signal.signal(sign, handler)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("query", ["SELECT 1", "FROM range(1_000_000)"])
def test_full_disk_behind_stdout_is_a_sentence(db: Path, query: str) -> None:
    with open("/dev/full", "w") as full:
        process = start("sql", query, "--db", db, "--format", "csv", stdout=full)
        _, err = process.communicate()
    assert process.returncode == 1
    said = "the output cannot be used (No space left on device): make room and run the command again."
    assert err.splitlines()[-1] == f"elw: {said}"


def test_any_character_goes_through_a_pipe(db: Path) -> None:
    environment = ENVIRONMENT | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}
    command = [*ELW, "sql", "SELECT chr(8364) || '語' || chr(128512) AS x", "--db", str(db), "--format", "csv"]
    outcome = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert outcome.stdout.decode() == "x\n€語😀\n"


LOADED = """
import sys
from energy_lens.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "polars", "scipy", "matplotlib", "transformers", "numpy", "rich", "tqdm"} & set(sys.modules)
print(sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [["--help"], ["sql", "--help"], ["sql", "SELECT 1"], ["tables"], ["describe", "efas"], ["runs"]],
    ids=" ".join,
)
def test_queries_load_nothing_heavy(db: Path, words: list[str]) -> None:
    environment = ENVIRONMENT | {"ELW_WAREHOUSE": str(db)}
    command = [sys.executable, "-c", LOADED, *words]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert outcome.stderr.splitlines()[-1] == "[]"


# ------------------------------------------------------------------------------------------------ options


def test_ingest_hands_its_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from energy_lens.ingest import pipeline

    seen: list[Any] = []
    summary = pipeline.IngestSummary(
        db="x", run_id=1, model="m", dtype="float32", documents=2, tokens=10, planned_tokens=20, new_tokens=10,
        new_groups=1, seconds=1.0, tokens_per_second=10.0, finish_seconds=0.1,
    )  # fmt: skip

    def ingest(paths: Any, options: Any) -> Any:
        seen.append((paths, options))
        return summary

    monkeypatch.setattr(pipeline, "ingest", ingest)
    monkeypatch.setenv("ELW_WAREHOUSE", str(tmp_path / "own.duckdb"))
    assert main(["ingest", "corpus"]) == 0
    paths, options = seen.pop()
    assert [str(path) for path in paths] == ["corpus"]
    assert options == pipeline.IngestOptions(db=tmp_path / "own.duckdb")
    assert capsys.readouterr() == ("", f"{summary}\n")

    words = [
        "ingest",
        "a",
        "b",
        "--db",
        "x.duckdb",
        "--model",
        "gpt2",
        "--layers",
        "6, 8,6",
        "--sae",
        "s",
        "--sae",
        "t",
    ]
    words += ["--energies", "nll", "--context", "64", "--batch-size", "4", "--dtype", "bfloat16", "--max-tokens", "99"]
    words += ["--seed", "3", "--store-gradients", "--new-run", "--exclude", "*.png", "--exclude", "x/*", "--json"]
    assert main(words) == 0
    paths, options = seen.pop()
    assert [str(path) for path in paths] == ["a", "b"]
    assert options == pipeline.IngestOptions(
        db=Path("x.duckdb"), model="gpt2", layers=(6, 8), saes=(Path("s"), Path("t")), energies=("nll",),
        context_length=64, batch_size=4, dtype="bfloat16", max_tokens=99, seed=3, store_gradients=True, new_run=True,
        exclude=("*.png", "x/*"),
    )  # fmt: skip
    assert json.loads(capsys.readouterr().out) == summary.as_dict()

    summary.interrupted = True
    assert main(["ingest", "corpus", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["interrupted"] is True


@pytest.mark.parametrize(
    "words",
    [
        ["nowhere"],
        ["corpus", "--layers", "1,x"],
        ["corpus", "--layers", ""],
        ["corpus", "--energies", ","],
        ["corpus", "--context", "1"],
        ["corpus", "--seed", "-1"],
        ["corpus", "--max-tokens", "0"],
    ],
)
def test_wrong_ingest_is_one_sentence(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    assert main(["ingest", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_report_prints_the_paths_that_it_wrote(
    db: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from energy_lens.reports import render as renderer

    seen: list[Any] = []

    def render(*arguments: Any) -> list[Path]:
        seen.append(arguments)
        return [Path("out/research_report.md"), Path("out/raw_results.json")]

    monkeypatch.setattr(renderer, "render", render)
    assert main(["report", "--db", str(db), "--output", "out", "--format", "md"]) == 0
    assert main(["report", "--db", str(db)]) == 0
    assert seen == [(db, Path("out"), ("md",)), (db, Path("report"), ("md", "html"))]
    assert capsys.readouterr().out.splitlines()[:2] == ["out/research_report.md", "out/raw_results.json"]
    for form in ("pdf", ","):
        assert main(["report", "--db", str(db), "--format", form]) == 2


# ------------------------------------------------------------------------------------------------ SAEs and models


def test_trained_saes_are_saved_by_layer(
    tiny: Any, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from energy_lens.ingest.cluster import Cluster
    from energy_lens.ingest.sae.formats import load_sae
    from energy_lens.ingest.training import saes as sae_training

    model = tiny("llama")
    seen: list[Any] = []
    clusters: list[Cluster | None] = []

    def train(
        language_model: Any, documents: Any, layers: Any, config: Any, folder: Any, on_progress: Any, cluster: Any
    ) -> Any:
        clusters.append(cluster)
        seen.append((str(language_model.dtype), len(documents), tuple(layers), config))
        assert folder.is_dir()
        places = [(layer, config.ks[0]) for layer in layers]
        on_progress(sae_training.Progress(1.0, 10, 1.0, dict.fromkeys(places, 0.25), dict.fromkeys(places, 0.5)))
        return [load_sae(model.saes / f"layer_{layer}") for layer in layers]

    monkeypatch.setattr(sae_training, "train_saes", train)
    words = ["sae", "train", str(small_corpus), "--model", str(model.folder), "--layers", "1,2", "--exclude", "code/*"]
    words += ["--dtype", "bfloat16"]
    assert main([*words, "--output", str(tmp_path / "half"), "--half", "--features", "64", "--k", "4"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "half" / f"layer_{layer}") for layer in (1, 2)]
    assert "1/4: 0.250 50%" in err
    assert seen == [("torch.bfloat16", 8, (1, 2), sae_training.TrainingConfig(d_sae=64, ks=(4,)))]
    assert not (tmp_path / "half" / ".training").exists()
    saved = load_sae(tmp_path / "half" / "layer_2")
    original = load_sae(model.saes / "layer_2")
    assert (saved.W_dec - original.W_dec).abs().max() < 1e-3
    assert json.loads((tmp_path / "half" / "layer_2" / "cfg.json").read_text())["dtype"] == "float16"

    assert main([*words, "--output", str(tmp_path / "shared"), "--ray", "--workers", "3", "--k", "4"]) == 0
    assert clusters == [None, Cluster(workers=3)]

    assert main([*words, "--output", str(tmp_path / "half")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["sae", "train", str(small_corpus), "--model", "gpt2", "--output", str(tmp_path / "x")]) == 2
    assert "--layers" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*words, "--output", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_help_tells_the_trainer_s_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL
    from energy_lens.ingest.training.saes import TrainingConfig

    assert main(["sae", "train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    config = TrainingConfig()
    for said in (f"{config.d_sae} unless given", f"{config.ks[0]} unless given", f"{config.tokens:,} unless given"):
        assert said in text
    assert ",".join(map(str, DEFAULT_LAYERS)) in text
    assert OPTION_DEFAULT == DEFAULT_MODEL


def test_saes_are_listed_with_their_figures(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from energy_lens.ingest.sae import choosing

    saes = tiny("llama").saes
    monkeypatch.setattr(choosing, "shipped_folder", lambda _, layer: saes / f"layer_{layer}")
    monkeypatch.setattr(choosing, "shipped_layers", lambda model: [1, 2] if model == "mine" else [])
    assert main(["sae", "list", "--model", "mine", "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["layer"], row["features"], row["k"]) for row in rows] == [(1, 64, 4), (2, 64, 4)]
    assert {"fvu", "l0", "cosine", "dead_share"} <= set(rows[0])
    assert main(["sae", "list", "--model", "other"]) == 2
    assert "elw sae train" in capsys.readouterr().err


def test_models_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ELW_CACHE", str(tmp_path))
    converted = tmp_path / "models" / "gguf-0123456789ab"
    converted.mkdir(parents=True)
    (converted / "model.safetensors").write_bytes(bytes(2_500_000))
    assert main(["model", "list", "--format", "jsonl"]) == 0
    built_in, own, shipped = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (built_in["model"], built_in["cached"], built_in["folder"]) == (OPTION_DEFAULT, False, None)
    assert (shipped["model"], shipped["source"], shipped["cached"]) == ("energy-transformer-small", "shipped", True)
    assert (own["model"], own["cached"], own["megabytes"]) == (converted.name, True, 2.5)


def test_pulled_model_is_printed_as_a_folder(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny("llama").folder
    assert main(["model", "pull", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert main(["model", "pull", "./nowhere"]) == 2
    assert "does not exist" in capsys.readouterr().err
