"""A model's folder or repository in, the names of its own files out: configuration, tokenizer and weights.

Repositories hold much beside these: the same weights in other formats (`consolidated.safetensors`, `original/`,
`onnx/`), pickles, code. None of it is fetched, read, or part of what a model is known by.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from energy_lens.errors import UsageError

CONFIG = "config.json"

#: Under these names transformers looks for a tokenizer.
TOKENIZER = (
    "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model", "tiktoken.model",
    "tekken.json",
)  # fmt: skip

#: Weights in one file, and what names several: transformers takes the first that is there.
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(holds: Callable[[str], bool], path_of: Callable[[str], Path]) -> list[str]:
    """Names of the safetensors files that transformers reads, ascending; none where it finds none.

    holds: whether there is a file of that name. path_of: where such a file can be read.
    Raises UsageError when an index is damaged, or names a file that is not there or of another kind.
    """
    named = _entries(path_of(CONFIG)).get("transformers_weights") if holds(CONFIG) else None
    for name in [named] if isinstance(named, str) else [WHOLE, INDEX]:
        if holds(name):
            return _of_index(path_of(name), holds) if name.endswith(".index.json") else _safetensors(name)
    return []


def _of_index(index: Path, holds: Callable[[str], bool]) -> list[str]:
    weight_map = _entries(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UsageError(f"{index} is damaged: copy the model again.")
    shards = sorted(set(map(str, weight_map.values())))
    for shard in shards:
        if not shard.endswith(".safetensors") or not holds(shard):
            raise UsageError(
                f"{index} names {shard}, which is missing or no safetensors file (pickled weights are never read)."
            )
    return shards


def _safetensors(name: str) -> list[str]:
    return [name] if name.endswith(".safetensors") else []


def _entries(path: Path) -> dict[str, Any]:
    """The entries of a JSON file; none of one that is damaged, which whoever reads all of it refuses."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
