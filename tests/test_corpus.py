"""Text files in, documents out: what counts as a document, which category it gets, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_lens.errors import UsageError
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.rows import Columns


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    """A folder with these files."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def facts(documents: list[Document]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """{path: (category, aliases)}."""
    return {document.path: (document.category, document.aliases) for document in documents}


def refusal(*paths: Path, exclude: tuple[str, ...] = ()) -> str:
    """The sentence with which a corpus is refused; one line, ending in a full stop."""
    with pytest.raises(UsageError) as caught:
        discover(paths, exclude)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# ------------------------------------------------------------------------------------------------ categories


def test_category_is_the_first_folder_else_the_name_of_the_folder_it_is_in(tmp_path: Path) -> None:
    """natural/deep/a.txt belongs to natural, a file right in the folder to the folder, as does a file given singly."""
    root = write(tmp_path / "texts", {"natural/deep/a.txt": "one", "code/b.txt": "two", "top.txt": "three"})
    alone = write(tmp_path / "elsewhere", {"alone.txt": "four"}) / "alone.txt"
    assert facts(discover([root, alone])) == {
        "natural/deep/a.txt": ("natural", ()),
        "code/b.txt": ("code", ()),
        "top.txt": ("texts", ()),
        "alone.txt": ("elsewhere", ()),
    }


def test_own_name_of_the_current_folder_and_of_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`elw ingest .` names the category after the folder; a link goes by its own place and name, not its target's."""
    root = write(tmp_path / "letters", {"a.txt": "one"})
    (tmp_path / "latest").symlink_to(root)
    (tmp_path / "latest.txt").symlink_to(root / "a.txt")
    monkeypatch.chdir(root)
    assert facts(discover(["."])) == {"a.txt": ("letters", ())}
    assert facts(discover([tmp_path / "latest"])) == {"a.txt": ("latest", ())}
    assert facts(discover([tmp_path / "latest.txt"])) == {"latest.txt": (tmp_path.name, ())}


def test_a_category_called_like_a_total_has_a_slash_behind_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it came to be called so, and different names stay different."""
    root = write(
        tmp_path / "texts", {"all/a.txt": "one", "macro/b.txt": "two", "All/c.txt": "three", "alls/d.txt": "4"}
    )
    flat = write(tmp_path / "all", {"e.txt": "five"})
    names = ["all/", "all//", "macro", "macro/x", "plain"]
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps({"text": f"row {name}", "kind": name}) + "\n" for name in names))
    documents = discover([root, flat, table], columns=Columns(category="kind"))
    assert [document.category for document in documents] == [
        "All", "all/", "alls", "all/", "macro/", "all//", "all///", "macro/", "macro/x", "plain"
    ]  # fmt: skip
    assert capsys.readouterr().err == (
        "The category all is stored as all/, all/ is stored as all//, all// is stored as all///, macro is stored as "
        "macro/: all and macro stand for totals.\n"
    )


# ------------------------------------------------------------------------------------------------ equal content


def test_equal_content_is_one_document_named_by_the_smallest_path(tmp_path: Path) -> None:
    """Copies are aliases, whichever folder they lie in; a single different byte makes another document."""
    root = write(tmp_path, {"z/1.txt": "same", "b/2.txt": "same", "b/10.txt": "same", "a/3.txt": "same\n"})
    assert facts(discover([root])) == {
        "b/10.txt": ("b", ("b/2.txt", "z/1.txt")),
        "a/3.txt": ("a", ()),
    }


def test_copies_in_two_roots_do_not_depend_on_where_the_roots_lie(tmp_path: Path) -> None:
    """The category of equal files with equal names is the smaller one, though its root sorts last."""
    first = write(tmp_path / "1" / "zebra", {"x.txt": "same"})
    second = write(tmp_path / "2" / "ant", {"x.txt": "same"})
    assert facts(discover([first, second])) == {"x.txt": ("ant", ("x.txt",))}


def test_a_file_reached_twice_counts_once(tmp_path: Path) -> None:
    """Overlapping paths, a link beside its file and a path given twice add neither documents nor aliases."""
    root = write(tmp_path, {"natural/a.txt": "one", "natural/b.txt": "two"})
    (root / "natural" / "c.txt").symlink_to(root / "natural" / "a.txt")
    for paths in ([root, root / "natural"], [root / "natural", root], [root / "natural", root / "natural"]):
        assert facts(discover(paths)) == {"a.txt": ("natural", ()), "b.txt": ("natural", ())}
    assert facts(discover([root, root])) == {"natural/a.txt": ("natural", ()), "natural/b.txt": ("natural", ())}


FOLDERS = st.sampled_from(["", "a/", "b/", "a/deep/"])
FILES = st.dictionaries(
    st.tuples(FOLDERS, st.sampled_from("pqrs")).map(lambda parts: parts[0] + parts[1] + ".txt"),
    st.sampled_from(["one", "two", "three", "four", "  "]),
    min_size=1,
)


@settings(max_examples=40)
@given(st.data(), FILES, FILES)
def test_documents_do_not_depend_on_the_order_of_paths(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, left: dict[str, str], right: dict[str, str]
) -> None:
    """However the same paths are ordered, overlapping ones included, the same documents come out, sorted."""
    root = tmp_path_factory.mktemp("order")
    write(root / "left", dict(left))
    write(root / "right", {**right, "kept.txt": "five"})
    given_paths = [root, root / "left", root / "right"]
    given_paths += [root / "left" / name for name in left]
    shuffled = data.draw(st.permutations(given_paths))
    expected = discover(given_paths)
    assert discover(shuffled) == expected
    assert [d.path for d in expected] == sorted(d.path for d in expected)
    contents = {text for text in [*left.values(), *right.values(), "five"] if text.strip()}
    assert sorted(document.text() for document in expected) == sorted(contents)


# ------------------------------------------------------------------------------------------------ what is left out


def test_hidden_and_blank_files_are_left_out(tmp_path: Path) -> None:
    """Dot files, files in dot folders, empty files and files of white space or a lone BOM are no documents."""
    root = write(
        tmp_path,
        {
            "a.txt": "one", ".hidden.txt": "two", ".git/config": "three", "x/.cache/y.txt": "four", "empty.txt": "",
            "blank.txt": " \n\t\u3000\n", "bom.txt": b"\xef\xbb\xbf",
        },
    )  # fmt: skip
    assert list(facts(discover([root]))) == ["a.txt"]
    assert list(facts(discover([root / ".git"]))) == ["config"], "a hidden folder that is named is meant"


def test_links_do_not_loop_and_linked_folders_are_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link to a parent folder, to itself or to nothing ends neither in a loop nor in a failure, nor in silence."""
    root = write(tmp_path / "texts", {"natural/a.txt": "one"})
    (root / "natural" / "up").symlink_to(root)
    (root / "self.txt").symlink_to(root / "self.txt")
    (root / "gone.txt").symlink_to(root / "nowhere.txt")
    assert facts(discover([root])) == {"natural/a.txt": ("natural", ())}
    output = capsys.readouterr()
    assert str(root / "natural" / "up") in output.err
    assert output.out == ""
    assert "does not exist" in refusal(root / "gone.txt")
    assert "self.txt" in refusal(root / "self.txt")


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (("b.txt",), ["a.txt", "x/c.md", "x/y/d.txt"]),
        (("*.txt",), ["x/c.md"]),
        (("x/*",), ["a.txt", "b.txt"]),
        (("x/y/*",), ["a.txt", "b.txt", "x/c.md"]),
        (("?.txt", "nothing"), ["x/c.md"]),
        (("A.TXT",), ["a.txt", "b.txt", "x/c.md", "x/y/d.txt"]),
    ],
)
def test_exclude_matches_names_and_paths(tmp_path: Path, patterns: tuple[str, ...], left: list[str]) -> None:
    """--exclude takes shell patterns of a file's name or of its path below the root, with upper case as it stands."""
    root = write(tmp_path, {"a.txt": "1", "b.txt": "2", "x/c.md": "3", "x/y/d.txt": "4"})
    assert list(facts(discover([root], patterns))) == left


def test_an_excluded_file_is_not_read(tmp_path: Path) -> None:
    """The remedy that a refusal names works: leaving a binary file out lets the rest through."""
    root = write(tmp_path, {"a.txt": "one", "weights.bin": b"\0\1\2"})
    assert "--exclude" in refusal(root)
    assert list(facts(discover([root], ("*.bin",)))) == ["a.txt"]
    assert "no text" in refusal(root, exclude=("*",))


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    """An empty folder, and one of blank files, name the path that was given."""
    (tmp_path / "empty").mkdir()
    write(tmp_path / "blank", {"a.txt": "\n\n"})
    assert str(tmp_path / "empty") in refusal(tmp_path / "empty")
    assert str(tmp_path / "blank") in refusal(tmp_path / "empty", tmp_path / "blank")


@pytest.mark.parametrize("name", ["missing", "a.txt/below", "x" * 300])
def test_a_path_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    """Missing, below a file, or too long for any file (a text given in place of a path)."""
    write(tmp_path, {"a.txt": "one"})
    assert name in refusal(tmp_path, tmp_path / name)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    """A NUL byte marks what is no text, UTF-16 included."""
    for content in (b"text\0more", "text".encode("utf-16")):
        assert "a.txt" in refusal(write(tmp_path, {"natural/a.txt": content}))


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_another_encoding_is_refused_with_byte_and_offset(tmp_path: Path, bom: bytes) -> None:
    """A Latin-1 file is named with its first bad byte, counted from the file's beginning, BOM or not."""
    content = bom + "Größe".encode() + " café".encode("latin-1")
    offset = content.index(0xE9)
    message = refusal(write(tmp_path, {"a.txt": content}))
    assert f"byte 0xe9 at offset {offset}" in message
    assert "a.txt" in message


def test_a_bom_is_no_part_of_the_text(tmp_path: Path) -> None:
    """Only a leading one: further ones are the author's."""
    root = write(tmp_path, {"a.txt": b"\xef\xbb\xbf\xef\xbb\xbfone"})
    (document,) = discover([root])
    assert document.text() == "\ufeffone"
    assert document.n_bytes == 9


def test_line_ends_and_unicode_are_kept(tmp_path: Path) -> None:
    """The text is the file's, not a normalised version of it."""
    text = "a\r\nb\rc\n\n e\u0301 \u2028 𝔘"
    (document,) = discover([write(tmp_path, {"a.txt": text})])
    assert document.text() == text


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read stops the ingest by name, instead of being left out."""
    root = write(tmp_path, {"a.txt": "one", "b.txt": "two"})

    opened = Path.open

    def denied(self: Path, *arguments: str) -> object:
        if self.name == "b.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments)

    monkeypatch.setattr(Path, "open", denied)
    message = refusal(root)
    assert str(root / "b.txt") in message
    assert "Permission denied" in message


def test_an_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a corpus would give other numbers without a word."""
    root = write(tmp_path, {"a.txt": "one", "closed/b.txt": "two"})
    scandir = os.scandir

    def denied(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert str(root / "closed") in refusal(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions_for_real(tmp_path: Path) -> None:
    """The same with a file and a folder whose permissions say so."""
    root = write(tmp_path, {"a.txt": "one", "closed/b.txt": "two"})
    (root / "a.txt").chmod(0)
    assert str(root / "a.txt") in refusal(root)
    (root / "a.txt").chmod(0o600)
    (root / "closed").chmod(0)
    try:
        assert str(root / "closed") in refusal(root)
        assert "closed" in refusal(root / "closed" / "b.txt")
    finally:
        (root / "closed").chmod(0o700)


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Such a name could not be stored."""
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("one")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert "caf" in refusal(tmp_path)


# ------------------------------------------------------------------------------------------------ later reading


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    """Tokens must be of the text whose hash the plan holds; with the old text back, reading works again."""
    root = write(tmp_path, {"a.txt": "one", "b.txt": "two"})
    first, second = discover([root])
    assert (first.text(), second.text()) == ("one", "two")
    (root / "a.txt").write_text("One")
    with pytest.raises(UsageError, match=r"a\.txt changed"):
        first.text()
    (root / "a.txt").write_text("one")
    assert first.text() == "one"
    (root / "b.txt").unlink()
    with pytest.raises(UsageError, match=r"b\.txt cannot be read"):
        second.text()
