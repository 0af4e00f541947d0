"""Tables in, documents out: each row a text, wherever it stands, and hostile rows are named."""

from __future__ import annotations

import gzip
import json
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_lens.cli.main import main
from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest import rows
from energy_lens.ingest.contexts import TokenSource
from energy_lens.ingest.corpus import Document, discover, texts
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.rows import Columns
from energy_lens.ingest.sources import source_at
from energy_lens.ingest.token_file import TokenFile
from energy_lens.warehouse.database import Warehouse

Rows = Sequence[Mapping[str, Any]]

ROWS: Rows = [
    {"text": 'one, "two"\nthree', "topic": "a", "name": "first"},
    {"text": "é 中文 😀\r\n", "topic": "b", "name": "second"},
    {"text": "  ", "topic": "b", "name": "third"},
    {"text": None, "topic": "a", "name": "fourth"},
    {"text": "last", "topic": None, "name": "fifth"},
]


def written(path: Path, of_rows: Rows) -> Path:
    """A table with these rows, in the kind and compression that its suffix says, by DuckDB's own writers."""
    plain = path.with_name("plain.jsonl")
    plain.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_rows), encoding="utf-8")
    if ".jsonl" in path.name and not path.name.endswith((".gz", ".zst")):
        return plain.rename(path)
    kind = "parquet" if path.suffix == ".parquet" else "csv" if ".csv" in path.name or ".tsv" in path.name else "json"
    options = [f"FORMAT {kind}"]
    if kind == "csv":
        options += ["HEADER", "DELIMITER '\t'" if ".tsv" in path.name else "DELIMITER ','"]
    if path.suffix in (".gz", ".zst"):
        options.append(f"COMPRESSION {rows.COMPRESSIONS[path.suffix]}")
    with duckdb.connect() as connection:
        columns = ", ".join(f"json ->> '/{name}' AS \"{name}\"" for name in of_rows[0])
        read = f"read_json_objects('{plain}', format = 'newline_delimited', maximum_object_size = 134217728)"
        connection.execute(f"COPY (SELECT {columns} FROM {read}) TO '{path}' ({', '.join(options)})")
    plain.unlink()
    return path


def facts(documents: list[Document]) -> list[tuple[str, str, str]]:
    """(name, category, text) of each document, in order."""
    by_document = {document: "".join(pieces) for document, pieces in texts(documents)}
    return [(document.path, document.category, by_document[document]) for document in documents]


def refusal(path: Path | str, columns: Columns | None = None) -> str:
    """The sentence with which a table is refused; one line, ending in a full stop or a question mark."""
    with pytest.raises(UsageError) as caught:
        discover([path], (), columns)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


# ------------------------------------------------------------------------------------------------ what is read

KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "ndjson.gz", "csv", "csv.gz", "csv.zst", "tsv", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_is_a_document(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named file:row, its text to the letter, in the order of the file; what has no text is counted and named."""
    name = f"data.{kind}"
    documents = discover([written(tmp_path / name, ROWS)])
    assert facts(documents) == [(f"{name}:{n}", name, ROWS[n - 1]["text"]) for n in (1, 2, 5)]
    assert f"2 rows of {tmp_path / name} have no text and are left out: rows 3, 4." in capsys.readouterr().err
    assert [document.n_bytes for document in documents] == [len(ROWS[n]["text"].encode()) for n in (0, 1, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_category_and_name(kind: str, tmp_path: Path) -> None:
    """A row has its own category and name; without a category it has its file's."""
    path = written(tmp_path / f"data.{kind}", ROWS)
    documents = discover([path], (), Columns("text", "topic", "name"))
    assert [d[:2] for d in facts(documents)] == [("first", "a"), ("second", "b"), ("fifth", path.name)]
    titles = discover([path], (), Columns("name"))
    assert [text for *_, text in facts(titles)] == [row["name"] for row in ROWS]


@pytest.mark.parametrize("kind", ["jsonl", "csv.gz", "parquet"])
def test_a_source_is_found_again(kind: str, tmp_path: Path) -> None:
    """What is stored of a row brings its text back, whatever its file and column are called; in any order."""
    path = tmp_path / f"é #c%20=&.{kind}"
    written(path, [{"text": f"text {i}", "my &text#": f"my {i}"} for i in range(300)])
    for column, says in (("text", "text"), ("my &text#", "my")):
        documents = discover([path], (), Columns(column))
        for document in documents:
            assert source_at(document.source.location) == document.source
            assert document.source.location.startswith("rows:/")
        assert documents[41].text() == f"{says} 41"
        read = {"".join(pieces) for _, pieces in texts(documents[::-7])}
        assert read == {f"{says} {i}" for i in range(299, -1, -7)}


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), min_size=1, max_size=8))
def test_texts_are_kept_to_the_letter(tmp_path_factory: pytest.TempPathFactory, contents: list[str]) -> None:
    """Quotes, commas, line ends and all of Unicode, in every kind of table; equal rows are one document."""
    folder = tmp_path_factory.mktemp("letters")
    expected = list(dict.fromkeys(text for text in contents if text.removeprefix("\ufeff").strip()))
    if not expected:
        return
    for kind in ("jsonl", "parquet"):
        documents = discover([written(folder / f"x.{kind}", [{"text": text} for text in contents])])
        assert [text for *_, text in facts(documents)] == [text.removeprefix("\ufeff") for text in expected]
        assert len(documents) + sum(len(d.aliases) for d in documents) == sum(
            bool(text.removeprefix("\ufeff").strip()) for text in contents
        )


def test_rows_and_files_with_one_text_are_one_document(tmp_path: Path) -> None:
    """The smallest name names it, across kinds of sources."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text("same")
    table = written(tmp_path / "a.jsonl", [{"text": "same"}, {"text": "other"}, {"text": "same"}])
    first, second = discover([tmp_path / "texts", table])
    assert (first.path, first.aliases, second.path) == ("a.jsonl:1", ("a.jsonl:3", "b.txt"), "a.jsonl:2")


def test_a_table_in_a_folder_is_a_text_unless_its_column_is_named(tmp_path: Path) -> None:
    """As it was before tables were read by rows; and as it is meant, once somebody names the column."""
    (tmp_path / "texts" / "code").mkdir(parents=True)
    table = written(tmp_path / "texts" / "code" / "data.csv", [{"text": "one"}, {"text": "two"}])
    assert [d.path for d in discover([tmp_path / "texts"])] == ["code/data.csv"]
    by_rows = facts(discover([tmp_path / "texts"], (), Columns("text")))
    assert by_rows == [("code/data.csv:1", "code", "one"), ("code/data.csv:2", "code", "two")]
    both = [d.path for d in discover([tmp_path / "texts", table])]
    assert both == ["code/data.csv:1", "code/data.csv:2"], "a file that is reached twice counts once"
    (tmp_path / "config.json").write_text('{"text": "x"}')
    assert [d.path for d in discover([tmp_path / "config.json"])] == ["config.json"]


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    """The columns that are there are named, for every kind and every option."""
    for kind in ("jsonl", "csv", "parquet"):
        path = written(tmp_path / f"data.{kind}", ROWS)
        for columns in (Columns("body"), Columns(category="body"), Columns(id="body")):
            message = refusal(path, columns)
            assert f"{path} has no column body: it has text, topic, name" in message
            assert "--text-column" in message


def test_a_row_that_is_no_text_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NULL, a number, a list, no field at all, no object at all, blanks, a NUL: counted, and the first five named."""
    values: list[Any] = [{"text": None}, {"text": 5}, {"text": ["x"]}, {"other": "x"}, [1], "x", {"text": " \n"}]
    lines = [json.dumps(value) for value in [*values, {"text": "a\0b"}, {"text": "kept"}]]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (document,) = discover([tmp_path / "data.jsonl"])
    assert document.path == "data.jsonl:9"
    assert "8 rows of" in (said := capsys.readouterr().err)
    assert "rows 1, 2, 3, 4, 5 …." in said
    written(tmp_path / "none.jsonl", [{"text": None}])
    assert "no text" in refusal(tmp_path / "none.jsonl")


def test_lines_that_are_no_json(tmp_path: Path) -> None:
    """The row is named by its number; invalid UTF-8 is no JSON either."""
    for bad in (b'{"text": "x"', b"text", b'{"text": "\xff"}', b'{"text": "x"}}'):
        (tmp_path / "data.jsonl").write_bytes(b'{"text": "good"}\n' * 5_000 + bad + b'\n{"text": "good"}\n')
        assert f"Row 5001 of {tmp_path / 'data.jsonl'} is no JSON" in refusal(tmp_path / "data.jsonl")


def test_broken_files(tmp_path: Path) -> None:
    """Invalid UTF-8 and ragged rows in CSV, half a Parquet file, half an archive, and what is no archive at all."""
    (tmp_path / "utf.csv").write_bytes(b"text,topic\none,a\n\xff\xfe,b\n")
    (tmp_path / "ragged.csv").write_bytes(b"text,topic\none,a\ntwo\n")
    whole = written(tmp_path / "whole.parquet", [{"text": f"text {i}"} for i in range(1000)]).read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged.parquet").write_bytes(whole[:100] + bytes(200) + whole[300:])
    packed = gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(20_000)))
    (tmp_path / "half.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "no.jsonl.gz").write_bytes(b'{"text": "plain"}\n')
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT 5 AS text) TO '{tmp_path / 'numbers.parquet'}' (FORMAT parquet)")
    for path in sorted(tmp_path.iterdir()):
        if path.name != "whole.parquet":
            assert path.name in refusal(path)
    assert "holds INTEGER, not text" in refusal(tmp_path / "numbers.parquet")
    assert "Line: 3" in refusal(tmp_path / "utf.csv")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_row_of_fifty_megabytes(kind: str, tmp_path: Path) -> None:
    """Is more than a row may have; the sentence says how much that is and what to do."""
    path = tmp_path / f"long.{kind}"
    written(path, [{"text": "short"}, {"text": "long line " * 5_000_000}])
    message = refusal(path)
    assert "32 MB" in message
    assert path.name in message


def test_equal_ids(tmp_path: Path) -> None:
    """Both rows are named; a table without ids of its own is named by rows."""
    path = written(
        tmp_path / "data.jsonl", [{"text": "one", "id": "x"}, {"text": "two", "id": "y"}, {"text": "3", "id": "x"}]
    )
    message = refusal(path, Columns(id="id"))
    assert "data.jsonl:1 and data.jsonl:3 have the same id, x" in message
    assert "--id-column" in message
    assert len(discover([path])) == 3


def test_a_name_that_would_stand_for_several_files(tmp_path: Path) -> None:
    """DuckDB takes [1] for a pattern: it would read a1.jsonl instead."""
    written(tmp_path / "a1.jsonl", [{"text": "not this"}])
    assert "rename" in refusal(written(tmp_path / "a[1].jsonl", [{"text": "this"}]))


def test_a_row_that_changed_since(tmp_path: Path) -> None:
    """Tokens must be of the text whose hash the plan holds; a row that is gone, and a file, are told too."""
    path = written(tmp_path / "data.jsonl", [{"text": "one"}, {"text": "two"}])
    first, second = discover([path])
    written(path, [{"text": "One"}])
    with pytest.raises(UsageError, match=r"Row 1 of .*data\.jsonl changed"):
        first.text()
    with pytest.raises(UsageError, match=r"Row 2 of .*data\.jsonl cannot be read"):
        second.text()
    path.unlink()
    with pytest.raises(UsageError, match=r"Row 1 of .*data\.jsonl cannot be read"):
        first.text()


def test_a_hub_data_set_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it one sentence says what to install; a name that is none says how one is written."""
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'energy-lens[datasets]'" in refusal("hf:owner/name")
    for wrong in ("hf:name", "hf:owner/name:", "hf:owner/name@", "hf:a/b c"):
        assert "names no data set" in refusal(wrong)


# ------------------------------------------------------------------------------------------------ through an ingest


@pytest.fixture
def table(small_corpus: Path, tmp_path: Path) -> Path:
    """The small corpus as rows of one compressed file, a category in a column, the categories in turn."""
    categories = [sorted((small_corpus / name).glob("*.txt")) for name in ("natural", "code")]
    paths = [path for pair in zip(*categories, strict=True) for path in pair]
    return written(
        tmp_path / "corpus.jsonl.gz",
        [{"body": path.read_text(encoding="utf-8"), "kind": path.parent.name, "title": path.name} for path in paths],
    )


@pytest.fixture
def options(tiny: Callable[[str], Any], tmp_path: Path) -> IngestOptions:
    model = tiny("llama")
    return IngestOptions(
        db=tmp_path / "rows.duckdb", model=str(model.folder), saes=(model.saes,), context_length=32, dtype="float32",
        columns=Columns("body", "kind", "title"),
    )  # fmt: skip


def ids_of(db: Path) -> list[tuple[Any, ...]]:
    """(category, sha256, token) of every token that is stored."""
    with Warehouse(db) as warehouse:
        return warehouse.sql(
            "SELECT documents.category, sha256, context_index, position, vocabulary_id FROM tokens "
            "JOIN contexts ON contexts.context_id = token_id // 32 JOIN documents USING (document_id) ORDER BY ALL"
        ).fetchall()


def test_an_ingest_of_rows_is_that_of_their_texts(
    options: IngestOptions, table: Path, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same texts as files give the same tokens; and it goes on from any place, without a reading a context."""
    from dataclasses import replace

    opened = []
    read = rows.TableFile.rows
    monkeypatch.setattr(rows.TableFile, "rows", lambda *words: opened.append(1) or read(*words))
    with_half = ingest([table], replace(options, max_tokens=1_000))
    assert 0 < with_half.tokens < with_half.planned_tokens
    opened.clear()
    summary = ingest([table], options)
    assert summary.tokens == summary.planned_tokens
    assert len(opened) == 2, "once to find the documents, once for all that was left"
    files = replace(options, db=tmp_path / "files.duckdb")
    ingest([small_corpus], files)
    assert ids_of(options.db) == ids_of(files.db)
    with Warehouse(options.db) as warehouse:
        names = warehouse.sql("SELECT path, source FROM documents ORDER BY document_id").fetchall()
    assert names[0] == (
        sorted(path.name for path in (small_corpus / "natural").glob("*.txt"))[0],
        f"rows:{table}?row=1&column=body",
    )


def test_a_run_goes_on_from_its_stored_rows(options: IngestOptions, table: Path, tmp_path: Path) -> None:
    """With another corpus at hand, a run's own rows are found where they were; changed or gone, that is said."""
    from dataclasses import replace

    ingest([table], replace(options, max_tokens=1_000))
    other = written(tmp_path / "more.jsonl", [{"body": "More text, as it happens.", "kind": "code", "title": "more"}])
    kept = table.read_bytes()
    table.write_bytes(gzip.compress(b"\n".join(gzip.decompress(kept).splitlines()[:-3])))
    with pytest.raises(UsageError, match=r"The plan needs row \d+ of .*corpus\.jsonl\.gz, which is gone: restore it"):
        ingest([other], options)
    table.write_bytes(gzip.compress(gzip.decompress(kept).replace(b"e ", b"E ")))
    with pytest.raises(UsageError, match=r"The plan needs row \d+ of .*corpus\.jsonl\.gz, which was edited since"):
        ingest([other], options)
    table.write_bytes(kept)
    summary = ingest([other], options)
    assert summary.tokens == summary.planned_tokens
    assert summary.documents == 17
    table.write_bytes(gzip.compress(gzip.decompress(kept).replace(b"e ", b"E ")))
    notes = ingest([table], options).notes
    assert any("edited since" in note for note in notes)


def test_hostile_rows_leave_nothing_behind(
    tiny: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line on stderr, nothing on stdout, and no warehouse."""
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{')
    model, db = tiny("llama"), tmp_path / "none.duckdb"
    words = [
        "ingest",
        str(tmp_path / "bad.jsonl"),
        "--db",
        str(db),
        "--model",
        str(model.folder),
        "--sae",
        str(model.saes),
    ]
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "Row 2" in output.err
    assert not db.exists()


def test_token_ids_leave_no_file(tiny: Callable[[str], Any], table: Path, tmp_path: Path) -> None:
    """They lie in a file without a name, in the folder that is given: nothing has to be cleared away after a kill."""
    documents = discover([table], (), Columns("body"))
    folder = tmp_path / "room"
    folder.mkdir()
    model = tiny("llama").load()
    source = TokenSource(lambda: model, {document.sha256: document for document in documents}, folder)
    source.add(documents)
    assert list(folder.iterdir()) == []
    for document in documents:
        assert source.document(document).tolist() == model.tokenize(document.text())


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """Where ids do not fit, a sentence says where room is lacking; here a file may have 4,096 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ids = TokenFile(512, tmp_path)
    ids.append("small", np.arange(100, dtype=np.int32))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, before[1]))
    try:
        with pytest.raises(ElwError, match=f"cannot be written to {tmp_path} .*make room there"):
            ids.append("large", np.zeros(10_000, dtype=np.int32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ids.read("small", 90).tolist() == list(range(90, 100))


@pytest.mark.parametrize(("vocabulary", "largest"), [(512, 511), (1 << 16, 65_535), (200_000, 199_999)])
def test_token_ids_come_back(vocabulary: int, largest: int, tmp_path: Path) -> None:
    """Part by part, any stretch of a document, an empty one too, in as few bytes as the vocabulary allows."""
    ids = TokenFile(vocabulary, tmp_path)
    ids.append("a", np.array([0, 1], dtype=np.int32))
    ids.append("a", np.array([largest], dtype=np.int32))
    ids.append("empty", np.array([], dtype=np.int32))
    ids.append("b", np.array([7, 8, 9], dtype=np.int32))
    assert ids.read("a").tolist() == [0, 1, largest]
    assert ids.read("b", 1, 1).tolist() == [8]
    assert ids.read("b", 2, 50).tolist() == [9]
    assert ids.read("empty").tolist() == []
    assert (ids.n_tokens("a"), ids.n_tokens("empty"), "c" in ids) == (3, 0, False)
