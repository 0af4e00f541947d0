"""Data sets of the Hugging Face hub as text, by the library itself, from a hub that stands on this machine."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

COMMIT, EARLIER = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def hub(tmp_path: Path, small_corpus: Path) -> Iterator[str]:
    """The address of a hub with one data set, owner/name: the small corpus in Parquet, every fifth row NULL."""
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    texts = [path.read_text(encoding="utf-8") for path in sorted(small_corpus.glob("*/*.txt"))]
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT CASE WHEN i % 5 = 3 THEN NULL ELSE text END AS body, 'c' || i % 2 AS topic FROM "
            f"(SELECT unnest($texts) AS text, generate_subscripts($texts, 1) - 1 AS i)) "
            f"TO '{folder / 'data' / 'train-00000-of-00001.parquet'}' (FORMAT parquet)",
            {"texts": texts},
        )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _handler(folder: Path) -> type[http.server.BaseHTTPRequestHandler]:
    """What the hub answers to the library: facts of the data set, listings, and files in whole or in part."""
    api, files = "/api/datasets/owner/name", "/datasets/owner/name/resolve/"

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path == api or path.startswith(f"{api}/revision/"):
                wanted = path.removeprefix(api).removeprefix("/revision/")
                self._json(
                    {"id": "owner/name", "sha": EARLIER if wanted in ("v1", EARLIER) else COMMIT, "siblings": []}
                )
            elif path.startswith(f"{api}/tree/"):
                below = "/".join(path.removeprefix(f"{api}/tree/").split("/")[1:])
                found = sorted((folder / below).iterdir())
                self._json([self._entry(entry) for entry in found])
            elif path.startswith(files) and (file := folder / path.removeprefix(files).split("/", 1)[1]).is_file():
                self._file(file.read_bytes())
            else:
                missing = "EntryNotFound" if path.startswith(files) else "RepoNotFound"
                self._json({"error": "not found"}, 404, {"X-Error-Code": missing})

        def _entry(self, path: Path) -> dict[str, Any]:
            kind = "directory" if path.is_dir() else "file"
            size = 0 if path.is_dir() else path.stat().st_size
            return {"type": kind, "path": str(path.relative_to(folder)), "oid": "a" * 40, "size": size}

        def _json(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
            self._send(json.dumps(value).encode(), code, {"Content-Type": "application/json", **(headers or {})})

        def _file(self, data: bytes) -> None:
            headers = {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if (wanted := self.headers.get("Range")) is None:
                self._send(data, 200, headers)
                return
            first, last = wanted.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last) + 1 if last else None]
            content_range = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self._send(part, 206, {**headers, "Content-Range": content_range})

        def _send(self, body: bytes, code: int, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def test_a_data_set_is_ingested_by_its_rows(hub: str, tiny: Callable[[str], Any], tmp_path: Path) -> None:
    """Rows are documents with the commit in their source, so that a run goes on with them; what is wrong is told."""
    pytest.importorskip("datasets")
    model, db = tiny("llama"), tmp_path / "hub.duckdb"
    script = """
import sys
from energy_lens.cli.main import main
for words in sys.argv[1].split(";"):
    print("exit code", main(["ingest", *words.split(), *sys.argv[2:]]), file=sys.stderr)
"""
    columns = "--text-column body --category-column topic"
    calls = [
        f"hf:owner/name {columns} --max-tokens 1000",
        f"hf:owner/name@{COMMIT} {columns}",
        f"hf:owner/name@v1 {columns}",
        f"hf:owner/other {columns}",
        f"hf:owner/name:test {columns}",
        "hf:owner/name",
    ]
    words = [
        "--db",
        str(db),
        "--model",
        str(model.folder),
        "--sae",
        str(model.saes),
        "--context",
        "32",
        "--dtype",
        "float32",
    ]
    run = subprocess.run(
        [sys.executable, "-c", script, ";".join(calls), *words],
        env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = run.stderr
    assert [line for line in said.splitlines() if line.startswith("exit code")] == [
        f"exit code {code}" for code in (0, 0, 0, 2, 2, 2)
    ]
    assert f"3 rows of hf:owner/name:train@{COMMIT} have no text and are left out: rows 4, 9, 14." in said
    assert "hf:owner/other cannot be read" in said
    assert "hf:owner/name:test" in said
    assert "has no column text: it has body, topic" in said
    with duckdb.connect(str(db), read_only=True) as warehouse:
        rows = warehouse.execute("SELECT path, category, source FROM documents ORDER BY document_id").fetchall()
        planned, done = warehouse.execute("SELECT count(*), count(committed_at) FROM plan_groups").fetchall()[0]
    assert len(rows) == 13
    assert rows[0] == ("owner/name:1", "c0", f"hf:owner/name:train@{COMMIT}?row=1&column=body")
    assert planned == done
