"""A model's name in, what numbers of it depend on out, in few words: for machines that have to have the same."""

from __future__ import annotations

from energy_lens.ingest.model.configuration import configuration_sha256
from energy_lens.ingest.model.loading import is_folder, locate, tokenizer_sha256

#: Hexadecimal digits of a hash that tell it from any other.
DIGITS = 12


def model_facts(name: str) -> dict[str, str]:
    """Short hashes of a model's weights, configuration and tokenizer on this machine, by what they are of.

    Raises UsageError and ElwError for a model that is not there.
    """
    folder, sha256 = locate(name)
    return {
        "model": sha256[:DIGITS],
        # A GGUF file holds its configuration, so that its hash is that of both.
        "its configuration": configuration_sha256(folder)[:DIGITS] if is_folder(name) else "",
        "its tokenizer": tokenizer_sha256(folder)[:DIGITS],
    }
