"""Models and SAEs of the Hugging Face hub, by its own library, from a hub that stands on this machine.

What is asked for is written down by the hub: only what is needed, and never a pickle, code or a README.
"""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from energy_lens.errors import UsageError
from energy_lens.ingest.model.loading import locate
from energy_lens.ingest.repositories import refusal
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.published import hub_name, published
from energy_lens.ingest.sae.pulling import needed
from energy_lens.ingest.sae.saving import save_sparsify

LAYER, WIDTH, FEATURES = 1, 32, 64

#: What stands in repositories beside what is needed.
DECOYS = (
    "README.md", "consolidated.safetensors", "original/model.safetensors", "onnx/model.onnx", "pytorch_model.bin",
    "modeling_own.py", "generation_config.json", "training_args.bin", "model.fp16.safetensors", "adapter_config.json",
)  # fmt: skip

#: What the hub says to every request for a file, or also for the listing, of a repository that has this name.
FAULTS: dict[str, tuple[int, dict[str, str]]] = {
    "owner/gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}),
    "owner/private": (401, {"X-Error-Message": "Invalid username or password."}),
    "owner/stale": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "owner/forbidden": (403, {"X-Error-Message": "Your token lacks a right."}),
    "owner/disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}),
    "owner/limited": (429, {"Retry-After": "7"}),
    "owner/broken": (503, {}),
}


def commit_of(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha1()
    for name, data in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha1(data).digest())
    return digest.hexdigest()


@dataclass
class Hub:
    """A hub: what its repositories hold at each revision, and what it was asked for."""

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""
    cut: set[str] = field(default_factory=set)  #: files whose bytes break off halfway

    def put(self, name: str, files: Mapping[str, bytes], *revisions: str) -> str:
        """Have a repository hold these files at main, or at the revisions; returns the commit."""
        of_repository = self.repositories.setdefault(name, {})
        for revision in (*(revisions or ("main",)), commit_of(files)):
            of_repository[revision] = dict(files)
        return commit_of(files)

    def fetched(self) -> set[str]:
        """Names of the files whose bytes were asked for since the last call."""
        files = {path for line in self.asked for path in re.findall(r"/resolve/(?:refs/pr/)?[^/]+/(.+)", line)}
        self.asked.clear()
        return files


@pytest.fixture
def hub() -> Iterator[Hub]:
    own = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(own))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    own.address = f"http://127.0.0.1:{server.server_port}"
    yield own
    server.shutdown()
    server.server_close()
    thread.join()


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    """What the hub answers to the library: facts of a repository, and files in whole or in part."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            hub.asked.append(f"{self.command} {unquote(path)}")
            if match := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
                self._facts(match[1], unquote(match[2] or "main"))
            elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
                self._file(match[1], unquote(match[2]), unquote(match[3]))
            else:
                self._json({"error": "no such thing"}, 404)

        def _facts(self, name: str, revision: str) -> None:
            if name in FAULTS and name != "owner/gated":  # whose facts are public
                self._json({"error": "no"}, *FAULTS[name])
            elif name not in hub.repositories:
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif (files := hub.repositories[name].get(revision)) is None:
                self._json({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
            else:
                siblings = [{"rfilename": file} for file in files]
                self._json({"id": name, "modelId": name, "sha": commit_of(files), "siblings": siblings})

        def _file(self, name: str, revision: str, file: str) -> None:
            files = hub.repositories.get(name, {}).get(revision, {})
            if name in FAULTS:
                self._json({"error": "no"}, *FAULTS[name])
            elif file not in files:
                self._json({"error": "no entry"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._bytes(file, files[file], commit_of(files))

        def _json(self, value: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
            self._send(json.dumps(value).encode(), code, {"Content-Type": "application/json", **(headers or {})})

        def _bytes(self, file: str, data: bytes, commit: str) -> None:
            etag = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if file.endswith(".safetensors"):  # a large file: its own size is not that of what stands in git
                headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            first, code = 0, 200
            if wanted := self.headers.get("Range"):
                first, code = int(wanted.removeprefix("bytes=").split("-")[0]), 206
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._send(data[first:], code, headers, stop_at=len(data) // 2 - first if file in hub.cut else None)

        def _send(self, body: bytes, code: int, headers: Mapping[str, str], stop_at: int | None = None) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if stop_at is None else body[: max(stop_at, 0)])
            self.close_connection = self.close_connection or stop_at is not None

    return Handler


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    said: str

    @property
    def sentence(self) -> str:
        """The refusal, which is one line."""
        lines = [line for line in self.said.splitlines() if line.startswith("elw: ")]
        assert len(lines) == 1, self.said
        assert lines[0].endswith(".")
        return lines[0]


SERVER = """
import contextlib, io, json, os, sys
import energy_lens.ingest.model.loading, energy_lens.ingest.pipeline  # what takes long to import and knows no hub
from energy_lens.cli.main import main

assert not {"huggingface_hub", "transformers"} & set(sys.modules)

def outcome(words):
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        if words[0] == "locate":
            from energy_lens.ingest.model.loading import locate
            code = print(locate(words[1])[1]) or 0
        else:
            code = main(words)
    return [code, out.getvalue(), said.getvalue()]

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        commands, environment = json.loads(line)
        os.environ.update(environment)
        sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
        print(json.dumps([outcome(words) for words in commands]), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("null", flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """server(commands, environment): each call in a process of its own, forked before a hub's library was imported.

    That library reads its environment when it is imported.
    """
    errors = tmp_path_factory.mktemp("server") / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        )

    def call(commands: Any, environment: Mapping[str, str]) -> Any:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps([commands, environment]) + "\n")
        process.stdin.flush()
        found = json.loads(process.stdout.readline() or "null")
        assert found is not None, errors.read_text()
        return found

    yield call
    process.communicate()


@pytest.fixture
def elw(hub: Hub, tmp_path: Path, server: Callable[..., Any]) -> Callable[..., list[Outcome]]:
    """elw(words, words, ...): commands in a process that knows this hub, with caches of the test's own."""

    def run(*commands: list[str], **environment: str) -> list[Outcome]:
        own = {
            "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "",
            "ELW_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip
        found = server([list(map(str, words)) for words in commands], own | environment)
        return [Outcome(*values) for values in found]

    return run


def files_in(folder: Path, below: str = "") -> dict[str, bytes]:
    """The files of a folder by name, in a repository's folder of that name."""
    start = f"{below}/" if below else ""
    return {
        start + path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def with_decoys(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {**dict.fromkeys(DECOYS, b"no JSON, no safetensors"), **files}


@pytest.fixture
def model_files(tiny: Callable[..., Any]) -> dict[str, bytes]:
    """The tiny Llama's files, with what a published model has beside them."""
    return with_decoys(files_in(tiny("llama").folder))


@pytest.fixture
def changed(tiny: Callable[..., Any], tmp_path: Path) -> dict[str, bytes]:
    """The same with one weight changed."""
    folder = Path(shutil.copytree(tiny("llama").folder, tmp_path / "changed"))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return with_decoys(files_in(folder))


# ------------------------------------------------------------------------------------------------ models


def test_only_a_models_own_files_are_fetched(
    hub: Hub, elw: Callable[..., list[Outcome]], tiny: Callable[..., Any], model_files: dict[str, bytes]
) -> None:
    """Nothing beside them is asked for; what the model is known by is its weights; offline it is there again."""
    hub.put("owner/tiny", model_files)
    pulled, identity = elw(["model", "pull", "owner/tiny"], ["locate", "owner/tiny"])
    own = {path.name for path in tiny("llama").folder.iterdir()} - set(DECOYS) - {"chat_template.jinja"}
    assert (pulled.code, pulled.said) == (0, "")
    assert hub.fetched() == own
    assert {path.name for path in Path(pulled.out.strip()).iterdir()} == own
    assert identity.out.strip() == locate(str(tiny("llama").folder))[1]
    # Without a network, and without a hub: the second says so.
    (offline,) = elw(["model", "pull", "owner/tiny"], HF_HUB_OFFLINE="1")
    assert (offline.code, offline.out, offline.said) == (0, pulled.out, "")
    (alone,) = elw(["model", "pull", "owner/tiny"], HF_ENDPOINT="http://127.0.0.1:9")
    assert (alone.code, alone.out) == (0, pulled.out)
    assert "owner/tiny is read from the cache" in alone.said
    assert hub.fetched() == set()


def test_what_lies_beside_the_weights_does_not_count(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """In a folder of one's own as in a repository: transformers reads none of it."""
    folder = Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "original/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"anything")
    assert locate(str(folder))[1] == locate(str(tiny("llama").folder))[1]
    # An index counts where there is no model.safetensors, which is what transformers takes first.
    index = {"weight_map": {"model.norm.weight": "absent.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert locate(str(folder))[1] == locate(str(tiny("llama").folder))[1]
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"names absent\.safetensors, which is missing"):
        locate(str(folder))


def test_shards_are_those_of_the_index(
    hub: Hub, elw: Callable[..., list[Outcome]], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    """As many as it names, in whatever folder, and a leftover of an earlier upload is not among them."""
    folder = Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    tiny("llama").load().module.save_pretrained(folder, max_shard_size="50KB")
    shards = {path.name for path in folder.glob("*.safetensors")}
    assert len(shards) > 1
    hub.put("owner/sharded", with_decoys(files_in(folder)) | {"model-00009-of-00009.safetensors": b"of long ago"})
    (identity,) = elw(["locate", "owner/sharded"])
    assert identity.out.strip() == locate(str(folder))[1]
    fetched = hub.fetched()
    assert {name for name in fetched if name.endswith(".safetensors")} == shards
    assert not fetched & set(DECOYS)


def test_a_run_keeps_its_revision(
    hub: Hub,
    elw: Callable[..., list[Outcome]],
    tiny: Callable[..., Any],
    small_corpus: Path,
    model_files: dict[str, bytes],
    changed: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """owner/name@revision is stored with the run, and whatever main has become, the run's own model is found again."""
    hub.put("owner/tiny", model_files, "v1", "main")
    hub.put("owner/tiny", changed, "refs/pr/1")
    db, saes = tmp_path / "run.duckdb", tiny("llama").saes
    common = ["--db", db, "--sae", saes, "--context", "32", "--dtype", "float32", "--max-tokens", "600"]
    first, unnamed = elw(
        ["ingest", small_corpus, "--model", "owner/tiny@v1", *common],
        ["ingest", small_corpus, "--model", "owner/tiny", *common],
    )
    assert (first.code, unnamed.code) == (0, 0), first.said + unnamed.said
    with duckdb.connect(str(db), read_only=True) as connection:
        runs = connection.execute("SELECT DISTINCT model FROM runs").fetchall()
    assert runs == [("owner/tiny@v1",)], "the same weights are the same run"
    hub.put("owner/tiny", changed, "main")
    words = ["intervene", "--db", db, "--layer", "1", "--features", "random:1", "--contexts", "2"]
    again, main, request = elw(words, ["locate", "owner/tiny"], ["locate", "owner/tiny@refs/pr/1"])
    assert again.code == 0, again.said
    assert main.out == request.out
    assert main.out.strip() != locate(str(tiny("llama").folder))[1]


def test_a_folder_with_an_at_sign_is_a_folder(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is here is not looked for elsewhere."""
    shutil.copytree(tiny("llama").folder, tmp_path / "owner" / "name@v1")
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name@v1")[1] == locate(str(tiny("llama").folder))[1]


def test_a_repository_that_is_no_model(
    hub: Hub, elw: Callable[..., list[Outcome]], model_files: dict[str, bytes]
) -> None:
    """What it lacks is named, and pickles are not even asked for."""
    config, weights = "config.json", "model.safetensors"
    index = {"weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    without_weights = {name: data for name, data in model_files.items() if name != weights}
    hub.put("owner/unconfigured", {name: data for name, data in model_files.items() if name != config})
    hub.put("owner/pickled", without_weights)
    hub.put("owner/indexed", without_weights | {f"{weights}.index.json": json.dumps(index).encode()})
    expected = {
        "owner/unconfigured": (2, "no config.json"), "owner/pickled": (1, "no safetensors"),
        "owner/indexed": (2, "pytorch_model.bin"),
    }  # fmt: skip
    outcomes = elw(*(["model", "pull", name] for name in expected))
    for (code, words), outcome in zip(expected.values(), outcomes, strict=True):
        assert (outcome.code, words in outcome.sentence) == (code, True), outcome.sentence
    assert not hub.fetched() & set(DECOYS)


# ------------------------------------------------------------------------------------------------ refusals

#: Address, exit code, and what the sentence has to say.
REFUSALS = {
    "owner/gated": (2, ["owner/gated is gated: accept its terms at", "/owner/gated,", "hf auth login", "HF_TOKEN"]),
    "owner/private": (2, ["no repository 'owner/private', or a private one", "check the name", "hf auth login"]),
    "owner/missing": (2, ["no repository 'owner/missing', or a private one", "HF_TOKEN"]),
    "owner/tiny@v9": (2, ["owner/tiny has no revision 'v9'", "/owner/tiny/commits"]),
    "owner/tiny@": (2, ["owner/name@revision"]),
    "owner/stale": (2, ["does not know the token", "hf auth login"]),
    "owner/forbidden": (2, ["token may not read owner/forbidden"]),
    "owner/disabled": (2, ["owner/disabled has been disabled"]),
    "owner/limited": (1, ["too many requests", "wait 7 seconds", "HF_TOKEN"]),
    "owner/broken": (1, ["in trouble (503)", "try again later"]),
    "no name!": (2, ["There is no model 'no name!'", "smollm2-135m"]),
}


def test_each_refusal_has_its_own_sentence(
    hub: Hub, elw: Callable[..., list[Outcome]], model_files: dict[str, bytes]
) -> None:
    """With the remedy, for models and for SAEs; the exit code says whether trying again can help."""
    for name in ("owner/tiny", "owner/gated"):
        hub.put(name, model_files | {"sae/params.npz": b""})
    named = [address for address in REFUSALS if "/" in address and not address.endswith("@")]
    parts = [address.partition("@") for address in named]
    outcomes = elw(
        *(["model", "pull", address] for address in REFUSALS),
        *(["sae", "pull", f"hf:{name}/sae{at}{revision}"] for name, at, revision in parts),
    )
    for address, outcome in zip([*REFUSALS, *named], outcomes, strict=True):
        code, words = REFUSALS[address]
        assert [word for word in words if word not in outcome.sentence] == [], outcome.sentence
        assert outcome.code == code, address
    assert len({outcome.sentence for outcome in outcomes}) == len(REFUSALS)


def test_no_hub_and_nothing_in_the_cache(
    hub: Hub, elw: Callable[..., list[Outcome]], model_files: dict[str, bytes]
) -> None:
    """Forbidden to fetch, and unable to, are two things; a repository that is there in part is named as such."""
    hub.put("owner/tiny", model_files)
    (forbidden,) = elw(["model", "pull", "owner/tiny"], HF_HUB_OFFLINE="1")
    (unable,) = elw(["model", "pull", "owner/tiny"], HF_ENDPOINT="http://127.0.0.1:9")
    assert (forbidden.code, unable.code) == (1, 1)
    assert "HF_HUB_OFFLINE forbids to fetch it" in forbidden.sentence
    assert "http://127.0.0.1:9 cannot be reached" in unable.sentence
    assert "HF_ENDPOINT" in unable.sentence


def test_a_download_that_breaks_off_is_gone_on_with(
    hub: Hub, elw: Callable[..., list[Outcome]], tiny: Callable[..., Any], model_files: dict[str, bytes]
) -> None:
    """It is said, half a file is never taken for a whole one, and the same command asks for the rest."""
    hub.put("owner/tiny", model_files)
    hub.cut.add("model.safetensors")
    (broken,) = elw(["model", "pull", "owner/tiny"])
    assert broken.code == 1
    assert "owner/tiny" in broken.sentence
    assert "run the same command again" in broken.sentence
    (offline,) = elw(["model", "pull", "owner/tiny"], HF_HUB_OFFLINE="1")
    assert offline.code == 1
    assert "in the cache" in offline.sentence
    hub.cut.clear()
    whole, identity = elw(["model", "pull", "owner/tiny"], ["locate", "owner/tiny"])
    assert whole.code == 0, whole.said
    assert identity.out.strip() == locate(str(tiny("llama").folder))[1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "There is no room for owner/name in"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written: set HF_HOME"),
        (RuntimeError("something\nelse."), "could not be fetched (something else): run the same command again."),
    ],
)
def test_what_goes_wrong_here(error: Exception, words: str) -> None:
    """A full disk and a cache of somebody else are no fault of the hub."""
    assert words in str(refusal("owner/name", "main", error))


def test_a_cache_that_cannot_be_written(
    hub: Hub, elw: Callable[..., list[Outcome]], model_files: dict[str, bytes], tmp_path: Path
) -> None:
    """The way out is another place for it."""
    hub.put("owner/tiny", model_files)
    (tmp_path / "file").write_text("no folder")
    (outcome,) = elw(["model", "pull", "owner/tiny"], HF_HOME=str(tmp_path / "file"))
    assert outcome.code == 1
    assert "HF_HOME" in outcome.sentence


# ------------------------------------------------------------------------------------------------ SAEs


def sae_repository(tiny: Callable[..., Any], tmp_path: Path) -> dict[str, bytes]:
    """SAEs of block 1 in several formats, each in a folder with what is not to be read."""
    own = tiny("llama").saes / f"layer_{LAYER}"
    sae = load_sae(own)
    save_sparsify(sae, tmp_path / "sparsify" / f"layers.{LAYER}")
    flat = json.loads((own / "cfg.json").read_text()) | {"hook_name": f"blocks.{LAYER}.hook_resid_post"}
    flat = {key: value for key, value in flat.items() if key != "metadata"}
    flat |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": sae.k}, "prepend_bos": False}
    arrays = {
        "W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec,
        "threshold": np.ones(FEATURES, np.float32),
    }  # fmt: skip
    np.savez(tmp_path / "params.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    files = {
        **files_in(own, "v6/block"),
        "flat/block/cfg.json": json.dumps(flat).encode(),
        "flat/block/sae_weights.safetensors": (own / "sae_weights.safetensors").read_bytes(),
        **files_in(tmp_path / "sparsify" / f"layers.{LAYER}", f"sparsify/layers.{LAYER}"),
        f"layer_{LAYER}/width_64/average_l0_4/params.npz": (tmp_path / "params.npz").read_bytes(),
        "pickled/ae.pt": b"pickle",
    }
    folders = {name.rpartition("/")[0] for name in files}
    return {**files, **{f"{folder}/{name}": b"decoy" for folder in folders for name in ("README.md", "optimizer.bin")}}


NEEDED = {
    "v6/block": {"cfg.json", "sae_weights.safetensors", "elw_statistics.safetensors"},
    "flat/block": {"cfg.json", "sae_weights.safetensors"},
    "sparsify/layers.1": {"cfg.json", "sae.safetensors", "elw_statistics.safetensors"},
    "layer_1/width_64/average_l0_4": {"params.npz"},
}


def test_an_sae_is_pulled_registered_and_read_with(
    hub: Hub,
    elw: Callable[..., list[Outcome]],
    tiny: Callable[..., Any],
    small_corpus: Path,
    tmp_path: Path,
) -> None:
    """In each format its own files alone are fetched; the copy is the SAE, says where it is from, and ingests."""
    commit = hub.put("owner/gemma-scope-2b-pt-res", sae_repository(tiny, tmp_path), "main", "v1")
    model, address = tiny("llama").folder, "hf:owner/gemma-scope-2b-pt-res"
    commands = [
        ["sae", "pull", f"{address}/{path}@v1", "--model", model, "-o", tmp_path / f"copy_{number}"]
        for number, path in enumerate(NEEDED)
    ]
    outcomes = elw(*commands)
    asked = hub.fetched()
    assert asked == {f"{path}/{name}" for path, names in NEEDED.items() for name in names}
    original = load_sae(tiny("llama").saes / f"layer_{LAYER}")
    of_gemma = outcomes.pop()
    assert "has no BOS token" in of_gemma.sentence, "read, and checked against the model, whose tokenizer has none"
    for number, (path, outcome) in enumerate(zip(NEEDED, outcomes, strict=False)):
        assert outcome.code == 0, outcome.said
        folder = Path(outcome.out.strip())
        assert folder == tmp_path / f"copy_{number}"
        assert f"--sae {folder}" in outcome.said
        copy = load_sae(folder)
        assert copy.layer == LAYER
        np.testing.assert_allclose(copy.W_dec, original.W_dec)
        assert copy.metadata["pulled_from"] == f"{address}/{path}@{commit}"
    words = ["--db", tmp_path / "run.duckdb", "--context", "32", "--dtype", "float32", "--max-tokens", "400"]
    cached, listed, ingested = elw(
        ["sae", "pull", f"{address}/v6/block/cfg.json", "--model", model],
        ["sae", "list", "--model", model, "--format", "json"],
        ["ingest", small_corpus, "--model", model, "--sae", tmp_path / "copy_0", *words],
    )
    assert cached.code == 0, cached.said
    assert [row["folder"] for row in json.loads(listed.out)] == [cached.out.strip()]
    assert ingested.code == 0, ingested.said
    (offline,) = elw(["sae", "pull", f"{address}/v6/block", "--model", model], HF_HUB_OFFLINE="1")
    assert (offline.code, offline.out) == (0, cached.out)


def test_an_sae_that_is_not_there(
    hub: Hub, elw: Callable[..., list[Outcome]], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    """Those that are there are named, the likeliest first; a pickle is called what it is; no model is made up."""
    hub.put("owner/saes", sae_repository(tiny, tmp_path))
    hub.put("owner/none", {"README.md": b"", "model.safetensors": b""})
    elsewhere, pickled, none, nameless, form = elw(
        ["sae", "pull", "hf:owner/saes/v6/blocks", "--model", "x"],
        ["sae", "pull", "hf:owner/saes/pickled", "--model", "x"],
        ["sae", "pull", "hf:owner/none", "--model", "x"],
        ["sae", "pull", "hf:owner/saes/flat/block"],
        ["sae", "pull", "hf:owner"],
    )
    assert {outcome.code for outcome in (elsewhere, pickled, none, nameless, form)} == {2}
    assert "owner/saes has no SAE at v6/blocks: it has them at v6/block, flat/block" in elsewhere.sentence
    assert "ae.pt is a pickle, which is never read" in pickled.sentence
    assert "cfg.json and sae_weights.safetensors" in none.sentence
    assert "--model" in nameless.sentence
    assert "hf:owner/repo/path" in form.sentence
    assert not {name for name in hub.fetched() if name.endswith((".pt", ".bin", ".md"))}


def test_layouts_are_told_apart() -> None:
    """What is needed of a folder, by the files that are in it; configuration first, weights last."""
    beside = {"README.md", "sparsity.safetensors", "ae.pt", "lm_config.json"}
    assert needed({"cfg.json", "sae_weights.safetensors", *beside}) == ["cfg.json", "sae_weights.safetensors"]
    assert needed({"params.npz", *beside}) == ["params.npz"]
    llama = ["hyperparams.json", "lm_config.json", "checkpoints/final.safetensors"]
    assert needed({*llama, "checkpoints/step_1.safetensors", *beside}) == llama
    at_top = ["hyperparams.json", "lm_config.json", "final.safetensors"]
    assert needed({*at_top, *beside}) == at_top
    own = ["cfg.json", "elw_statistics.safetensors", "sae_weights.safetensors"]
    assert needed({*own, *beside}) == own
    assert needed({"cfg.json", *beside}) == needed(beside) == needed(set()) == []


# ------------------------------------------------------------------------------------------------ SAELens' registry

#: The part of SAELens that is asked, with a small registry; there is nothing else of it here that could fetch.
REGISTRY = """
from dataclasses import dataclass, field

@dataclass
class PretrainedSAELookup:
    release: str
    repo_id: str
    model: str
    conversion_func: str | None
    saes_map: dict
    expected_var_explained: dict
    expected_l0: dict
    neuronpedia_id: dict
    norm_scaling_factor: dict
    config_overrides: dict | None

def get_pretrained_saes_directory():
    def entry(release, saes, scales={}, overrides=None):
        ids = {"block": "tiny/1-own"}
        return PretrainedSAELookup(release, "owner/saes", MODEL, None, saes, {}, {}, ids, scales, overrides)
    return {
        "tiny-res": entry("tiny-res", {"block": "v6/block", "blocks.1/other": "flat/block"}),
        "tiny-scaled": entry("tiny-scaled", {"block": "scaled"}, {"block": 0.5}),
        "tiny-centred": entry("tiny-centred", {"block": "flat/block"},
                              overrides={"model_from_pretrained_kwargs": {"center_writing_weights": True}}),
    }
"""


def test_a_release_of_saelens(
    hub: Hub, elw: Callable[..., list[Outcome]], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    """Its registry says where an SAE is, on which model, at what scale, and what its config leaves out."""
    files = sae_repository(tiny, tmp_path)
    config = json.loads(files["v6/block/cfg.json"]) | {"normalize_activations": "expected_average_only_in"}
    files["scaled/cfg.json"] = json.dumps(config).encode()
    files["scaled/sae_weights.safetensors"] = files["v6/block/sae_weights.safetensors"]
    hub.put("owner/saes", files)
    package = tmp_path / "packages" / "sae_lens" / "loading"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    registry = f"MODEL = {str(tiny('llama').folder)!r}\n" + REGISTRY
    (package / "pretrained_saes_directory.py").write_text(registry)
    searched = os.pathsep.join([str(package.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    plain, other, scaled, centred, unknown, absent, absent_here = elw(
        ["sae", "pull", "tiny-res/block"],
        ["sae", "pull", "tiny-res/blocks.1/other", "-o", tmp_path / "other"],
        ["sae", "pull", "tiny-scaled/block"],
        ["sae", "pull", "tiny-centred/block"],
        ["sae", "pull", "tiny-ros/block"],
        ["sae", "pull", "tiny-res/blok"],
        ["sae", "pull", "tiny-res"],
        PYTHONPATH=searched,
    )
    for outcome in (plain, other, scaled):
        assert outcome.code == 0, outcome.said
    copy, own = load_sae(Path(plain.out.strip())), load_sae(tiny("llama").saes / f"layer_{LAYER}")
    assert copy.model_name == str(tiny("llama").folder)
    assert copy.metadata["sae_lens_release"] == "tiny-res"
    assert copy.metadata["neuronpedia_id"] == "tiny/1-own"
    np.testing.assert_allclose(load_sae(Path(scaled.out.strip())).W_enc, own.W_enc * 0.5)
    assert {outcome.code for outcome in (centred, unknown, absent, absent_here)} == {2}
    assert "center_writing_weights" in centred.sentence
    assert "no release 'tiny-ros'" in unknown.sentence
    assert "tiny-res" in unknown.sentence
    assert "hf:owner/repo/path" in unknown.sentence
    assert "no SAE 'blok'" in absent.sentence
    assert "block, blocks.1/other" in absent.sentence
    assert "tiny-res/SAE_ID" in absent_here.sentence
    assert not {name for name in hub.fetched() if name.endswith((".pt", ".bin", ".md"))}


def test_without_saelens_both_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(UsageError) as caught:
        published("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert "pip install -U sae-lens" in str(caught.value)
    assert "hf:owner/repo/path" in str(caught.value)


@pytest.mark.parametrize(
    ("bare", "name"),
    [
        ("gpt2-small", "gpt2"), ("gpt2-xl", "gpt2-xl"), ("gemma-2-2b", "google/gemma-2-2b"),
        ("gemma-2b-it", "google/gemma-2b-it"), ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("qwen3-1.7b", "Qwen/Qwen3-1.7B"), ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"), ("smollm2-135m", "smollm2-135m"),
    ],
)  # fmt: skip
def test_a_models_name_on_the_hub(bare: str, name: str) -> None:
    """SAELens calls models as TransformerLens does."""
    assert hub_name(bare) == name
