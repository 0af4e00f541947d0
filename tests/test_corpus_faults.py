"""What a week of use brings into a corpus: elw's own files, files given singly, pipes, closed folders, copies."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.pipeline import IngestOptions, IngestSummary, ingest
from energy_lens.ingest.pipeline.planning import misplaced_texts
from energy_lens.ingest.rows import Columns
from energy_lens.tests.conftest import Tiny
from energy_lens.warehouse.database import Warehouse, ingest_lock


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    """A folder with these files."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def categories(documents: list[Document]) -> dict[str, str]:
    return {document.path: document.category for document in documents}


def run(tiny: Callable[..., Tiny], paths: list[str | Path], db: Path, **more: object) -> IngestSummary:
    model = tiny("llama")
    options = IngestOptions(
        db=db, model=str(model.folder), saes=(model.saes,), energies=("nll",), context_length=32, dtype="float32",
        compile="off", **more,  # type: ignore[arg-type]
    )  # fmt: skip
    return ingest(paths, options)


# ------------------------------------------------------------------------------------------------ elw's own files


def test_a_warehouse_and_what_lies_beside_it_are_never_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under any name, in any folder, given singly too; what only looks alike is text."""
    import duckdb

    root = write(tmp_path / "texts", {"a.txt": "one", "notes.wal": "a wall", "key.lock": "under the mat"})
    monkeypatch.chdir(root)
    for name in ("elw.duckdb", "sub/other.db", "no_suffix"):
        (root / name).parent.mkdir(exist_ok=True)
        with ingest_lock(root / name):
            Warehouse(root / name, writable=True).close()
    write(root, {"elw.duckdb.tmp/duckdb_temp_storage_S32K-0.tmp": b"\0\1", "fake.txt": "12345678DUCK is a bird"})
    with duckdb.connect(root / "open.duckdb") as connection:
        connection.execute("CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1)")
        assert (root / "open.duckdb.wal").exists()
        found = {document.path for document in discover(["."])}
    assert found == {"a.txt", "notes.wal", "key.lock", "fake.txt"}
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "more are left out: elw wrote them." in err
    assert list(categories(discover(["a.txt", "elw.duckdb"]))) == ["a.txt"]
    with pytest.raises(UsageError, match=r"no text in elw\.duckdb"):
        discover(["elw.duckdb"])


def test_looking_at_a_warehouse_leaves_its_lock(tmp_path: Path) -> None:
    """A process that opens and closes a file ends its own locks on it, DuckDB's too, and another could write."""
    db = write(tmp_path, {"a.txt": "one"}) / "elw.duckdb"
    with Warehouse(db, writable=True):
        assert list(categories(discover([tmp_path]))) == ["a.txt"]
        code = "import duckdb, sys; duckdb.connect(sys.argv[1])"
        other = subprocess.run([sys.executable, "-c", code, db], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "lock" in other.stderr


def test_a_report_is_never_text_and_what_lies_beside_it_is(tiny_warehouse: Path, tmp_path: Path) -> None:
    from energy_lens.reports.render import render

    write(tmp_path, {"a.txt": "one", "figures/own.svg": "<svg/>", "research_report.md": "# Mine\n"})
    files = render(tiny_warehouse, tmp_path / "report")
    assert {file.suffix for file in files} == {".md", ".html", ".json", ".svg"}
    write(tmp_path, {"report/thoughts.md": "# Thoughts", "report/figures/legend.txt": "legend"})
    (tmp_path / "renamed.md").write_bytes((tmp_path / "report" / "research_report.md").read_bytes())
    (tmp_path / "figures").rename(tmp_path / "pictures")
    expected = {"a.txt", "pictures/own.svg", "research_report.md", "report/thoughts.md", "report/figures/legend.txt"}
    assert {document.path for document in discover([tmp_path])} == expected
    assert {document.path for document in discover([*files, tmp_path / "a.txt"])} == {"a.txt"}


def test_an_export_is_never_text_and_what_lies_beside_it_is(tiny_warehouse: Path, tmp_path: Path) -> None:
    from energy_lens.reports.exports.saedashboard import export
    from energy_lens.reports.site.render import export_site

    write(tmp_path, {"a.txt": "one", "manifest.json": '{"files": ["a.txt"]}'})
    export_site(tiny_warehouse, tmp_path / "site", ["top:2"])
    export(tiny_warehouse, tmp_path / "deep" / "out", ["top:2"])
    write(tmp_path, {"site/mine.html": "<p>mine</p>", "deep/out/notes.md": "notes", "deep/b.txt": "two"})
    assert (tmp_path / "site" / "features.html").exists()
    expected = {"a.txt", "manifest.json", "site/mine.html", "deep/out/notes.md", "deep/b.txt"}
    assert {document.path for document in discover([tmp_path])} == expected
    assert {document.path for document in discover([tmp_path / "site" / "feature", tmp_path / "a.txt"])} == {"a.txt"}


def test_an_sae_is_never_text(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    import shutil

    write(tmp_path, {"a.txt": "one", "config/cfg.json": "{}"})
    shutil.copytree(tiny("llama").saes, tmp_path / "saes")
    assert set(categories(discover([tmp_path]))) == {"a.txt", "config/cfg.json"}


def test_ingest_of_the_folder_that_it_works_in_finds_nothing_new(
    tiny: Callable[..., Tiny], tmp_path: Path, small_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from energy_lens.reports.render import render

    for path in small_corpus.glob("*/*.txt"):
        write(tmp_path, {f"{path.parent.name}/{path.name}": path.read_bytes()})
    monkeypatch.chdir(tmp_path)
    first = run(tiny, ["."], Path("elw.duckdb"))
    render(Path("elw.duckdb"), Path("report"))
    again = run(tiny, ["."], Path("elw.duckdb"))
    assert (again.new_groups, again.documents) == (0, first.documents)


# ------------------------------------------------------------------------------------------------ files given singly


def test_files_given_singly_share_their_folder_s_category(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "texts", {"a.txt": "one", "b.txt": "two", "deep/c.txt": "three"})
    monkeypatch.chdir(root)
    assert categories(discover(["a.txt", "./b.txt", "deep/c.txt"])) == {
        "a.txt": "texts", "b.txt": "texts", "c.txt": "deep"
    }  # fmt: skip
    assert categories(discover(sorted(root.glob("*.txt")))) == {"a.txt": "texts", "b.txt": "texts"}
    (root / "rows.csv").write_text("text\nfour\n")
    assert categories(discover(["rows.csv"])) == {"rows.csv:1": "rows.csv"}, "a table holds many documents"
    assert categories(discover([root], (), Columns("text")))["rows.csv:1"] == "texts"


def test_notes_on_many_categories_stay_a_line(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    root = write(tmp_path / "texts", {f"category-{i:03}/a.txt": f"some words of the text {i} " * 5 for i in range(60)})
    summary = run(tiny, [root], tmp_path / "elw.duckdb", max_tokens=1)
    (note,) = [note for note in summary.notes if "within-context" in note]
    assert "category-000" in note
    assert "more" in note
    assert "elw sql" in note
    assert len(note) < 250


# ------------------------------------------------------------------------------------------------ pipes


def test_stdin_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With whatever else is given; read once, and had again as often as wanted."""
    root = write(tmp_path / "texts", {"a.txt": "one"})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffgrün\r\n".encode())))
    documents = discover(["-", root])
    assert categories(documents) == {"a.txt": "texts", "stdin": "stdin"}
    assert [documents[1].text() for _ in range(2)] == ["grün\r\n"] * 2
    for content, reason in ((b"", "There is no text in -"), (b"\0", "stdin is a binary file"), (b"\xff", "not UTF-8")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        with pytest.raises(UsageError, match=reason):
            discover(["-"])
    (tmp_path / "-").write_text("a file")
    monkeypatch.chdir(tmp_path)
    assert list(categories(discover([tmp_path / "-"]))) == ["-"]


def test_a_command_s_output_is_one_document(tmp_path: Path) -> None:
    """<(command) is a pipe at /dev/fd/N, of which no second reading has anything."""
    ends = []
    for text in ("first", "second"):
        reader, writer = os.pipe()
        os.write(writer, text.encode())
        os.close(writer)
        ends.append(reader)
    documents = discover([f"/dev/fd/{end}" for end in ends])
    assert [document.text() for document in documents] == ["first", "second"]
    assert {document.category for document in documents} == {"pipe"}
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["sh", "-c", f"printf third > {tmp_path / 'fifo'}"]):
        (document,) = discover([tmp_path / "fifo"])
    assert (document.path, document.category, document.text()) == ("fifo", tmp_path.name, "third")
    with pytest.raises(UsageError, match="null"):
        discover(["/dev/null"])
    with pytest.raises(UsageError, match="binary"):
        discover(["/dev/zero"])


def test_a_text_from_a_pipe_is_ingested_and_known_again(
    tiny: Callable[..., Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, db = tiny("llama"), tmp_path / "elw.duckdb"
    words = ["ingest", "-", "--model", model.folder, "--sae", model.saes, "--energies", "nll", "--context", "32"]
    words += ["--db", db, "--dtype", "float32", "--compile", "off", "--json"]
    counts = []
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon a time there was a queen. " * 20))
        assert main([str(word) for word in words]) == 0
        counts.append(json.loads(capsys.readouterr().out))
    assert counts[0]["new_tokens"] > 100
    assert (counts[1]["new_tokens"], counts[1]["documents"], counts[1]["notes"]) == (0, 1, [])
    with Warehouse(db) as warehouse:
        path, source = warehouse.sql("SELECT path, source FROM documents").fetchone()
    assert path == "stdin"
    assert source.startswith("pipe:stdin?sha256=")


# ------------------------------------------------------------------------------------------------ excluded folders


@pytest.mark.parametrize("pattern", ["closed", "closed/", "closed/*", "clos*", "*/closed", "deep/closed"])
def test_an_excluded_folder_need_not_be_readable(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "deep/closed" if "/closed" in pattern else "closed"
    root = write(tmp_path, {"a.txt": "one", f"{place}/b.txt": "two"})
    scandir = os.scandir

    def denied(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert list(categories(discover([root], [pattern]))) == ["a.txt"]
    assert list(categories(discover([root / "a.txt", root / place], ["closed"]))) == ["a.txt"], "a shell's glob"
    for other in ("closed/*.txt", "close", "b.txt"):
        with pytest.raises(UsageError, match="closed"):
            discover([root], [other])


def test_an_excluded_file_is_not_even_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that may be listed and not entered, nothing says what a name stands for."""
    root = write(tmp_path, {"a.txt": "one", "b.txt": "two"})
    is_file = Path.is_file

    def denied(self: Path) -> bool:
        if self.name == "b.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", denied)
    assert list(categories(discover([root], ["b.txt"]))) == ["a.txt"]
    with pytest.raises(UsageError, match=r"b\.txt cannot be read"):
        discover([root])


def test_links_to_folders_are_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "texts", {"natural/a.txt": "one"})
    for i in range(50):
        (root / f"link-{i}").symlink_to(root / "natural")
    discover([root], ["link-7"])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "and 47 more" in err


# ------------------------------------------------------------------------------------------------ other categories


def test_a_text_that_moved_or_was_copied_to_another_category_is_told(
    tiny: Callable[..., Tiny], tmp_path: Path, small_corpus: Path
) -> None:
    texts = sorted(small_corpus.glob("natural/*.txt"))
    root = write(tmp_path / "texts", {f"b/{i}.txt": path.read_bytes() for i, path in enumerate(texts)})
    db = tmp_path / "elw.duckdb"
    assert not any("categor" in note for note in run(tiny, [root], db).notes if "within-context" not in note)

    (root / "b" / "renamed.txt").hardlink_to(root / "b" / "0.txt")  # a copy in its own category is no news
    assert run(tiny, [root], db).notes == []
    (root / "b").rename(root / "c")
    (moved,) = run(tiny, [root], db).notes
    assert moved.startswith("8 texts are of another category now")
    assert "c/0.txt (of c, in b)" in moved
    assert "--new-run" in moved

    (root / "c").rename(root / "b")
    write(root, {f"{copy}/{i}.txt": path.read_bytes() for copy in "ad" for i, path in enumerate(texts)})
    summary = run(tiny, [root], db)
    assert summary.new_groups == 0
    (copied,) = summary.notes
    assert copied.startswith("16 copies are counted in another category alone")
    assert "(of a, in b)" in copied


def test_copies_in_a_new_corpus_are_told(tmp_path: Path) -> None:
    root = write(tmp_path, {"a/x.txt": "same", "b/x.txt": "same", "b/y.txt": "same", "a/z.txt": "other"})
    documents = {document.sha256: document for document in discover([root])}
    (sentence,) = misplaced_texts(None, documents)
    assert sentence.startswith("2 copies are counted in another category alone")
    assert "b/x.txt (of b, in a) and 1 more" in sentence
