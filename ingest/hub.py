"""A Hugging Face data set in, its rows out, streamed: hf:owner/name[/config][:split][@revision].

The revision is settled once, as a commit, and goes into every row's location: a later reading gets the same rows.
Needs the extra `datasets`; no code of a data set is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.rows import Columns, Row, check_columns

SCHEME = "hf:"

PATTERN = re.compile(
    r"hf:(?P<name>[^/:@?\s]+/[^/:@?\s]+)(/(?P<config>[^:@?\s]+))?(:(?P<split>[^@?\s]+))?(@(?P<revision>[^?\s]+))?"
)


@dataclass(frozen=True)
class HubDataset:
    """A split of a data set at one commit."""

    name: str  #: owner/name
    config: str | None
    split: str
    revision: str

    def __str__(self) -> str:
        return self.location

    @property
    def location(self) -> str:
        """The same as a user writes it, with the revision."""
        config = f"/{self.config}" if self.config else ""
        return f"{SCHEME}{self.name}{config}:{self.split}@{self.revision}"

    def rows(self, columns: Columns) -> Iterator[Row]:
        """Its rows in order. Raises UsageError when it cannot be read, or lacks a column."""
        wanted = [column for column in (columns.of_text, columns.category, columns.id) if column]
        try:
            streamed = _library().load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )
            for number, values in enumerate(streamed, 1):
                if number == 1:
                    check_columns(str(self), wanted, list(values))
                text, category, id_ = (
                    None if column is None else values.get(column)
                    for column in (columns.of_text, columns.category, columns.id)
                )
                yield Row(number, text if isinstance(text, str) else None, _as_text(category), _as_text(id_))
        except (ElwError, KeyboardInterrupt):
            raise
        except Exception as error:  # the library has no error of its own: what the network, the hub or a file says
            raise _refusal(str(self), error) from error


def hub_dataset(text: str) -> HubDataset:
    """The data set that a user named, its revision settled to a commit.

    Raises UsageError for another form, without the extra, and when the hub does not have it.
    """
    match = PATTERN.fullmatch(text)
    if match is None:
        raise UsageError(f"{text} names no data set: write hf:owner/name, hf:owner/name/config:split@revision in full.")
    name, config, split, revision = match.group("name", "config", "split", "revision")
    _library()
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
    except Exception as error:
        raise _refusal(text, error) from error
    return HubDataset(name, config, split or "train", commit or revision or "main")


def hub_dataset_at(location: str) -> HubDataset:
    """The data set of a location, which holds its commit."""
    match = PATTERN.fullmatch(location)
    assert match is not None
    name, config, split, revision = match.group("name", "config", "split", "revision")
    return HubDataset(name, config, split, revision)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            "Data sets of the Hugging Face hub need the package datasets: pip install 'energy-lens[datasets]'."
        ) from error
    return datasets


def _refusal(name: str, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return UsageError(f"{name} cannot be read ({reason}): check its name, config and split, and the network.")


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)
