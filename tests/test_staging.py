"""Staged groups: whole or not there, whoever was killed; what is read back is what was written, or it is refused."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.corpus import discover
from energy_lens.warehouse.digests import content_sha256
from energy_lens.warehouse.staging import places
from energy_lens.warehouse.staging.groups import (
    StageHeader,
    find_groups,
    find_staged,
    is_of,
    missing_ids,
    stage_group,
)
from energy_lens.warehouse.staging.places import DamagedError, place_at, read_tables

HEADER = StageHeader(
    identity="1" * 64, plan_sha256="2" * 64, calibration_sha256="3" * 64, group_id=12, group_sha256="4" * 64, n_tokens=3
)


def tables(n: int = 3) -> dict[str, pl.DataFrame]:
    """Some rows of two tables, in no order."""
    ids = list(range(n))[::-1]
    run = pl.lit(1, dtype=pl.Int32)
    activations = pl.DataFrame(
        {"layer": [1] * n, "feature": ids, "token_id": ids, "activation": [0.5] * n, "g_x": None}
    )
    tokens = pl.DataFrame({"token_id": ids, "text": [f"t{i}\n" for i in ids]})
    return {"tokens": tokens.with_columns(run_id=run), "activations": activations.with_columns(run_id=run)}


def read(stage: Path) -> dict[int, dict[str, pl.DataFrame]]:
    return {found.group_id: dict(found.tables()) for found in find_staged(str(stage))}


# ------------------------------------------------------------------------------------------------ written and read

CELLS = {
    pl.Int32: st.integers(-(2**31), 2**31 - 1), pl.Float32: st.floats(width=32), pl.Float64: st.floats(),
    pl.String: st.text(st.characters(codec="utf-8"), max_size=5), pl.Boolean: st.booleans(),
    pl.List(pl.Int8): st.lists(st.integers(-128, 127), max_size=3),
    pl.List(pl.Float32): st.lists(st.floats(width=32), max_size=3),
}  # fmt: skip


@st.composite
def frames(draw: Any) -> pl.DataFrame:
    n = draw(st.integers(0, 5))
    kinds = draw(st.lists(st.sampled_from(list(CELLS)), min_size=1, max_size=4))
    columns = [
        pl.Series(f"c{i}", draw(st.lists(st.none() | CELLS[kind], min_size=n, max_size=n)), dtype=kind, strict=False)
        for i, kind in enumerate(kinds)
    ]
    return pl.DataFrame(columns)


@given(frames())
@settings(max_examples=60)
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, frame: pl.DataFrame) -> None:
    """Whatever a table holds, NULL and NaN, empty lists and all: the same rows, and the same hash of them."""
    place = places.Folder(tmp_path_factory.mktemp("place"))
    manifest = place.write("part", {"t": frame}, {"made_by": "elw"})
    ((name, found),) = read_tables(place, "part", manifest)
    assert name == "t"
    assert_frame_equal(found, frame, check_exact=True)


@given(frames(), frames())
@settings(max_examples=100)
def test_other_rows_have_another_hash(first: pl.DataFrame, second: pl.DataFrame) -> None:
    """And equal ones the same, in however many pieces they lie in memory."""
    equal = first.schema == second.schema and str(first.to_dict(as_series=False)) == str(
        second.to_dict(as_series=False)
    )
    assert (content_sha256(first) == content_sha256(second)) == equal
    if len(first):
        pieces = pl.concat([first[:1], first[1:]], rechunk=False)
        assert content_sha256(pieces) == content_sha256(first)


def test_a_group_is_staged_as_a_warehouse_holds_it(tmp_path: Path) -> None:
    """Sorted, without the id that its run has in one file, and without columns that say nothing."""
    staged = stage_group(str(tmp_path), HEADER, tables())
    folder = tmp_path / HEADER.run / "group-000012"
    assert (staged.group_id, staged.location, staged.n_rows) == (12, str(folder), 6)
    assert staged.n_bytes == sum(path.stat().st_size for path in folder.glob("*.parquet"))
    found = read(tmp_path)[12]
    assert found["tokens"].to_dict(as_series=False) == {"token_id": [0, 1, 2], "text": ["t0\n", "t1\n", "t2\n"]}
    assert found["activations"].columns == ["layer", "feature", "token_id", "activation"]
    told = json.loads((folder / "manifest.json").read_text())
    assert {name: told[name] for name in asdict(HEADER)} == asdict(HEADER)
    assert {file["rows"] for file in told["files"]} == {3}
    (again,) = find_groups(str(tmp_path), HEADER.identity, HEADER.calibration_sha256)
    assert again.registered == staged
    assert is_of(again, HEADER)
    assert not is_of(again, replace(HEADER, group_sha256="5" * 64))


def test_of_two_who_stage_a_group_one_is_there(tmp_path: Path) -> None:
    """A worker that was taken for lost may finish after all: the group stays as the first one wrote it."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: stage_group(str(tmp_path), HEADER, tables()), range(8)))
    assert len({staged.location for staged in found}) == 1
    assert sorted(path.name for path in (tmp_path / HEADER.run).iterdir()) == ["group-000012"]
    before = (tmp_path / HEADER.run / "group-000012" / "manifest.json").read_text()
    assert stage_group(str(tmp_path), replace(HEADER, cpu="another"), tables()) == found[0]
    assert (tmp_path / HEADER.run / "group-000012" / "manifest.json").read_text() == before


def test_another_calibration_is_another_folder(tmp_path: Path) -> None:
    """Groups that were measured otherwise never meet; another plan under the same name is refused."""
    stage_group(str(tmp_path), HEADER, tables())
    stage_group(str(tmp_path), replace(HEADER, calibration_sha256="6" * 64), tables())
    assert len(find_staged(str(tmp_path))) == 2
    with pytest.raises(ElwError, match="another plan or calibration"):
        stage_group(str(tmp_path), replace(HEADER, group_sha256="5" * 64), tables())


def test_a_stage_in_a_corpus_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A text.")
    stage_group(str(tmp_path), HEADER, tables())
    assert [document.path for document in discover([tmp_path])] == ["text.txt"]


# ------------------------------------------------------------------------------------------------ killed

KILLED = """
import pickle, sys
from dataclasses import replace
from energy_lens.warehouse.staging.groups import stage_group
header, tables = pickle.load(open(sys.argv[2], "rb"))
print("begun", flush=True)
for group_id in range(100_000):
    stage_group(sys.argv[1], replace(header, group_id=group_id), tables)
    print(group_id, flush=True)
"""


def test_killed_at_any_moment_whole_groups_are_left(tmp_path: Path) -> None:
    """kill -9 while groups are written one after the other: every one that was told of is there and whole, none is in
    part, and what is left of the one under way goes when it is written again."""
    moments = random.Random(0)
    given = tmp_path / "given.pickle"
    given.write_bytes(pickle.dumps((HEADER, tables(50))))
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(given)]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "begun\n"
            time.sleep(moments.uniform(0.0, 0.4))
            process.kill()
            told = [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
            assert process.wait() == -signal.SIGKILL
        found = read(tmp_path)
        assert set(told) <= set(found)
        assert all(len(frame) == 50 for group in found.values() for frame in group.values())
        assert len(list((tmp_path / HEADER.run).glob(".*"))) <= 1
        shutil.rmtree(tmp_path / HEADER.run)
    folder = tmp_path / HEADER.run
    folder.mkdir()
    left = folder / f".group-000012.{os.uname().nodename}.0.999999999.tmp"
    left.mkdir()
    (left / "tokens.parquet").write_bytes(b"PAR1")
    assert find_staged(str(tmp_path)) == []
    stage_group(str(tmp_path), HEADER, tables())
    assert not left.exists()


# ------------------------------------------------------------------------------------------------ damaged, refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A staged group's folder."""
    return Path(stage_group(str(tmp_path), HEADER, tables()).location)


@pytest.mark.parametrize("what", ["missing", "cut short", "one bit", "empty", "another's rows", "fewer rows"])
def test_a_damaged_file_is_named(what: str, folder: Path, tmp_path: Path) -> None:
    file = folder / "tokens.parquet"
    content = file.read_bytes()
    if what == "missing":
        file.unlink()
    elif what == "cut short":
        file.write_bytes(content[: len(content) // 2])
    elif what == "one bit":
        file.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "another's rows":
        pl.read_parquet(file).reverse().write_parquet(file)
    else:
        pl.read_parquet(file)[:2].write_parquet(file)
    with pytest.raises(DamagedError, match=r"tokens\.parquet.*: remove .*group-000012, .* stages it again\.$"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"made_by": "elw"}', '{"made_by": "another", "files": []}',
             '{"made_by": "elw", "files": [{"path": "../../x.parquet", "table": "t", "rows": 1, "sha256": ""}]}'],
)  # fmt: skip
def test_a_manifest_that_is_none_is_named(text: str, folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=r"manifest\.json is no manifest of staged rows: remove it"):
        find_staged(str(tmp_path))


def test_what_a_newer_version_staged_is_refused(folder: Path, tmp_path: Path) -> None:
    told = json.loads((folder / "manifest.json").read_text())
    for newer in ({"format": 99}, {"schema": 9999}):
        (folder / "manifest.json").write_text(json.dumps({**told, **newer, "elw_version": "99.0"}))
        with pytest.raises(ElwError, match=r"newer version of elw \(99\.0, .*upgrade energy-lens\.$"):
            find_staged(str(tmp_path))


def test_a_copy_that_is_packed_otherwise_is_as_good(folder: Path, tmp_path: Path) -> None:
    """What counts is the rows: a tool that packs files anew changes none."""
    pl.read_parquet(folder / "tokens.parquet").write_parquet(folder / "tokens.parquet", compression="snappy")
    assert len(read(tmp_path)[12]["tokens"]) == 3


@pytest.mark.parametrize("name", ["", " ", "a\0b", "a\nb", "http://x/y", "ftp://x/y", "s4://x/y"])
def test_a_name_that_can_be_no_place_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"\.$"):
        place_at(name)


def test_names_of_places() -> None:
    assert place_at("file:///a/b").name == "/a/b"
    assert place_at("s3://bucket/a/").name == "s3://bucket/a"
    assert place_at("x").name == str(Path.cwd() / "x")


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ElwError, match=r"cannot be written \(.*\): see who may write there"):
        place_at(str(tmp_path / "file" / "below")).check()
    with pytest.raises(ElwError, match=r"cannot be written \(.*\): see who may write there"):
        stage_group(str(tmp_path / "file"), HEADER, tables())
    place_at(str(tmp_path / "a" / "b")).check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    with pytest.raises(ElwError, match="cannot be written"):
        place_at(str(tmp_path / ("x" * 300))).check()
    taken = tmp_path / "taken" / HEADER.run / "group-000012"
    taken.mkdir(parents=True)
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(ElwError, match=r"group-000012 is there and no group of elw: move it away\.$"):
        stage_group(str(tmp_path / "taken"), HEADER, tables())


def test_a_full_disk_leaves_nothing_that_counts(tmp_path: Path) -> None:
    """One sentence, no group, and no scratch folder; with room again the group is staged."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, before[1]))
    try:
        with pytest.raises(ElwError, match=r"The disk is full; .*: make room and run the command again\.$"):
            stage_group(str(tmp_path), HEADER, tables(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / HEADER.run).iterdir()) == []
    assert stage_group(str(tmp_path), HEADER, tables(20_000)).n_rows == 40_000


def test_groups_that_are_gone_are_told_from_a_place_that_is(folder: Path, tmp_path: Path) -> None:
    """A group that was removed is computed again; a disk that is not mounted is no reason to."""
    gone = str(folder.with_name("group-000013"))
    assert missing_ids([(12, str(folder)), (13, gone)]) == {13: gone}
    shutil.rmtree(tmp_path / HEADER.run)
    with pytest.raises(ElwError, match="mount it or bring it back"):
        missing_ids([(12, str(folder))])
    with contextlib.suppress(ElwError):
        assert missing_ids([]) == {}
