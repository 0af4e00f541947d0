"""A model's folder in, the hash of what its numbers depend on beside its weights out; and what contexts it can read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from energy_lens.errors import UsageError, require

#: Files of a folder whose entries change numbers.
CONFIGURATIONS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

#: Entries that change none: where a model came from, what wrote it, how it is to be run or shown.
INERT = frozenset(
    {
        "_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache",
        "_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "torchscript", "auto_map",
        "output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id", "problem_type",
        "task_specific_params", "finetuning_task", "chat_template", "backend", "is_local", "local_files_only",
        "tokenizer_file", "special_tokens_map_file", "processor_class", "tokenizer_class", "model_max_length",
        "initializer_range", "pad_token", "padding_side", "truncation_side",
    }
)  # fmt: skip


#: What configurations call the most tokens that a model reads at once.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def configuration_sha256(folder: Path) -> str:
    """The sha256 of every entry, in whatever order it is written, that changes numbers."""
    entries = {name: _active(_read(folder / name)) for name in CONFIGURATIONS if (folder / name).exists()}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def n_positions(config: Any) -> int | None:
    """The most tokens that a model with this configuration [a transformers one] reads at once; None: it does not say.

    Of a model that also sees it is the part that reads text that counts.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    said = [getattr(text, name, None) for name in POSITIONS]
    return next((n for n in said if isinstance(n, int) and n > 0), None)


def check_window(model: str, window: int | None, context_length: int) -> None:
    """Raises UsageError for contexts that a model has no positions for."""
    require(
        window is None or context_length <= window,
        f"--context is {context_length}, and {model} reads at most {window} tokens at once: give --context {window} "
        "or less.",
    )


def _active(value: Any) -> Any:
    """An entry, and those within it, without what is inert."""
    if isinstance(value, Mapping):
        return {key: _active(inner) for key, inner in value.items() if key not in INERT and inner is not None}
    return [_active(inner) for inner in value] if isinstance(value, list) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}): copy the model again.") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} is damaged (no JSON object): copy the model again.")
    return config
