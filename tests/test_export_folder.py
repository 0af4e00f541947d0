"""The folder of an export: filled as a whole, told of in its manifest, and what is somebody else's stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.corpus import discover
from energy_lens.warehouse import export_folder as room
from energy_lens.warehouse.export_folder import MANIFEST, export_folder, exported_files


def export(output: Path, *names: str, form: str = "html", text: str = "page", adds: bool = False) -> None:
    with export_folder(output, form, {"run_id": 1}, adds=adds) as folder:
        for name in names:
            folder.write_text(name, f"{text} {name}")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(output: Path) -> dict[str, str]:
    """{name: SHA-256} of the manifest."""
    return {file["path"]: file["sha256"] for file in json.loads((output / MANIFEST).read_text())["files"]}


def test_an_export_replaces_an_earlier_one_and_others_stay(tmp_path: Path) -> None:
    export(tmp_path / "out", "index.html", "feature/9-9.html", "feature/1-1.html")
    (tmp_path / "out" / "CNAME").write_text("mine")
    (tmp_path / "out" / "feature" / "notes.txt").write_text("mine")
    export(tmp_path / "out", "index.html", "latents/1.txt", form="delphi", text="new")
    found = bytes_of(tmp_path / "out")
    assert found.pop(MANIFEST)
    assert found == {
        "CNAME": b"mine", "feature/notes.txt": b"mine", "index.html": b"new index.html",
        "latents/1.txt": b"new latents/1.txt",
    }  # fmt: skip
    names = ("index.html", "latents/1.txt")
    assert told(tmp_path / "out") == {name: hashlib.sha256(found[name]).hexdigest() for name in names}


def test_what_was_changed_since_it_was_exported_stays(tmp_path: Path) -> None:
    export(tmp_path, "index.html", "about.html")
    (tmp_path / "about.html").write_text("mine now")
    export(tmp_path, "index.html")
    assert (tmp_path / "about.html").read_text() == "mine now"
    with pytest.raises(UsageError, match=r"about\.html is there, and no export wrote it: move it"):
        export(tmp_path, "index.html", "about.html", text="new")
    assert (tmp_path / "index.html").read_text() == "page index.html"
    assert (tmp_path / "about.html").read_text() == "mine now"


@pytest.mark.parametrize("there", ["index.html", "index.html/mine.txt", "feature", "feature/1-1.html/mine.txt"])
def test_what_is_in_the_way_is_told_before_anything_moves(tmp_path: Path, there: str) -> None:
    export(tmp_path, "features.html")
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("mine")
    before = bytes_of(tmp_path)
    with pytest.raises(UsageError, match="is there, and no export wrote it"):
        export(tmp_path, "features.html", "index.html", "feature/1-1.html", text="new")
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(
    "manifest",
    [
        None, "{", "[]", "7", '["thesis.tex"]', '{"name": "a web page"}', '{"made_by": "elw"}',
        '{"made_by": "elw", "files": 1}', '{"made_by": "elw", "files": ["thesis.tex"]}',
        '{"made_by": "elw", "files": [{"path": 7}]}',
    ],
)  # fmt: skip
def test_a_folder_with_files_and_no_manifest_of_ours_is_refused(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    before = bytes_of(tmp_path)
    with pytest.raises(UsageError, match=r"holds '(thesis\.tex|manifest\.json)', which no export wrote"):
        export(tmp_path, "index.html")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        export(tmp_path / "thesis.tex", "index.html")
    assert bytes_of(tmp_path) == before


def test_a_manifest_that_lies_takes_nothing_away(tmp_path: Path) -> None:
    """Not outside, also through links, and inside only what it has the hash of."""
    (tmp_path / "precious").write_text("kept")
    output = tmp_path / "out"
    export(output, "index.html", "feature/9-9.html")
    (output / "notes.txt").write_text("kept")
    (output / "away").symlink_to(tmp_path)
    (output / "link").symlink_to(output / "notes.txt")
    manifest = json.loads((output / MANIFEST).read_text())
    entry = {"bytes": 4, "sha256": hashlib.sha256(b"kept").hexdigest()}
    names = [
        "../precious",
        str(tmp_path / "precious"),
        "feature/../../precious",
        "away/precious",
        "a\0b",
        "",
        ".",
        "link",
    ]
    manifest["files"] += [{"path": name, **entry} for name in names] + [{"path": "notes.txt"}]
    (output / MANIFEST).write_text(json.dumps(manifest))
    export(output, "index.html")
    assert (tmp_path / "precious").read_text() == (output / "notes.txt").read_text() == "kept"
    assert (output / "link").is_symlink()
    assert not (output / "feature").exists()


def test_what_fails_leaves_the_earlier_export_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path / "out", "index.html", "feature/1-1.html")
    before = bytes_of(tmp_path)
    with pytest.raises(ZeroDivisionError), export_folder(tmp_path / "out", "html", {}) as folder:
        folder.write_text("index.html", str(1 / 0))
    assert bytes_of(tmp_path) == before

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "sync", full)
    for output in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(ElwError, match="No space left on device"):
            export(output, "index.html", text="new")
    assert bytes_of(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_an_export_that_was_cut_short_is_known_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the first and the last file that is put in place: the next export replaces all of it."""
    export(tmp_path / "out", "a.txt", "b.txt", "old.txt")
    (tmp_path / "out" / "mine.txt").write_text("mine")

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "b.txt":
            raise KeyboardInterrupt
        shutil.move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(room.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path / "out", "a.txt", "b.txt", "new.txt", text="new")
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["is_complete"] is False
    assert exported_files(tmp_path / "out") == {MANIFEST, "a.txt", "b.txt", "old.txt", "new.txt"}
    export(tmp_path / "out", "c.txt")
    found = bytes_of(tmp_path / "out")
    assert found.pop("mine.txt") == b"mine"
    export(tmp_path / "new", "c.txt")
    assert found == bytes_of(tmp_path / "new")


def test_what_a_killed_export_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".export.0.999999999.tmp" / "feature").mkdir(parents=True)
    (tmp_path / ".elw.lock").write_text("")
    export(tmp_path, "index.html")
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", MANIFEST}


def test_two_exports_into_one_folder_take_turns(tmp_path: Path) -> None:
    said = rf"is being written by elw export \(process {os.getpid()}\): wait for it, or name another folder\.$"
    with export_folder(tmp_path / "out", "delphi", {}), pytest.raises(UsageError, match=said):
        export(tmp_path / "out", "index.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written \(Not a directory\): name another folder\.$"):
        export(tmp_path / "file" / "below", "index.html")


def test_results_are_added_to_those_of_their_form(tmp_path: Path) -> None:
    export(tmp_path, "index.html")
    export(tmp_path, "a.json", form="saebench", adds=True)  # a site is replaced
    export(tmp_path, "b.json", form="saebench", adds=True)
    assert bytes_of(tmp_path).keys() == {MANIFEST, "a.json", "b.json"}
    assert told(tmp_path).keys() == {"a.json", "b.json"}
    (tmp_path / "a.json").write_text("mine now")
    export(tmp_path, "b.json", form="saebench", adds=True, text="new")
    assert told(tmp_path).keys() == {"b.json"}
    assert (tmp_path / "a.json").read_text() == "mine now"


def test_an_export_is_no_text_of_a_corpus(tmp_path: Path) -> None:
    export(tmp_path / "deep" / "results", "a_eval_results.json", form="saebench", adds=True)
    (tmp_path / "deep" / "results" / "mine.txt").write_text("text")
    (tmp_path / MANIFEST).write_text('{"files": ["mine.txt"]}')
    found = {document.path for document in discover([tmp_path])}
    assert found == {"deep/results/mine.txt", MANIFEST}
