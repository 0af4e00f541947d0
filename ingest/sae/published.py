"""An address in, where an SAE is published out: a folder of a Hugging Face repository.

  hf:owner/repo/path[@revision]   the folder itself, the repository's top if there is no path
  RELEASE/SAE_ID                  as SAELens names it, where its package is at hand: the folder that its registry names

Of SAELens only that registry is asked; it fetches and reads nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from energy_lens.errors import UsageError
from energy_lens.ingest.hub import SCHEME

PATTERN = re.compile(r"hf:(?P<repository>[^/@\s]+/[^/@\s]+)(?:/(?P<path>[^@\s]*))?(?P<revision>@\S+)?")

#: Names that a refusal lists.
MOST_LISTED = 6

#: Who publishes the models that SAELens and TransformerLens call by a bare name.
OWNERS = {"gemma": "google", "pythia": "EleutherAI", "Llama": "meta-llama", "Meta-Llama": "meta-llama"}

#: qwen3-1.7b is Qwen/Qwen3-1.7B.
QWEN = re.compile(r"qwen(?P<size>[0-9.]+-[0-9.]+b)")

#: Bare names that are others on the hub.
OTHER_NAMES = {"gpt2-small": "gpt2", "mistral-7b": "mistralai/Mistral-7B-v0.1"}


@dataclass(frozen=True)
class PublishedSae:
    """Where an SAE is, and what is known of it that its files may not say."""

    repository: str  #: owner/name, or owner/name@revision
    path: str  #: of its folder in there; empty for the top
    model_name: str = ""
    activation_scale: float | None = None  #: for normalize_activations = expected_average_only_in
    corrections: Mapping[str, Any] = field(default_factory=dict)  #: of its config
    origin: Mapping[str, Any] = field(default_factory=dict)  #: what its copy is to say of it


def published(address: str) -> PublishedSae:
    """Where an SAE is, by what the user wrote. Raises UsageError for another form, and what the registry lacks."""
    if not address.startswith(SCHEME):
        return _of_saelens(address)
    match = PATTERN.fullmatch(address)
    if match is None:
        raise UsageError(f"{address} names no SAE: write hf:owner/repo/path or hf:owner/repo/path@revision in full.")
    return PublishedSae(match["repository"] + (match["revision"] or ""), (match["path"] or "").strip("/"))


def hub_name(model_name: str) -> str:
    """A model's name on the hub, by a name that SAELens may have for it."""
    if "/" in model_name:
        return model_name
    if match := QWEN.fullmatch(model_name):
        return f"Qwen/Qwen{match['size'].upper()}"
    owner = OWNERS.get(re.split(r"-\d", model_name)[0])
    return f"{owner}/{model_name}" if owner else OTHER_NAMES.get(model_name, model_name)


def closest(wanted: str, names: Iterable[str]) -> str:
    """Some of these names, those most like the wanted one first, and how many more there are."""
    every = sorted(names)
    listed = difflib.get_close_matches(wanted, every, MOST_LISTED, cutoff=0) if wanted else every[:MOST_LISTED]
    more = len(every) - len(listed)
    return ", ".join(listed) + (f" and {more:,} more" if more else "")


def _of_saelens(address: str) -> PublishedSae:
    releases = _releases(address)
    release, _, sae_id = address.partition("/")
    if release not in releases:
        raise UsageError(
            f"SAELens knows no release {release!r} (the likeliest of {len(releases)}: "
            f"{closest(release, releases)}): write RELEASE/SAE_ID, or hf:owner/repo/path for a repository."
        )
    entry = releases[release]
    if sae_id not in entry.saes_map:
        raise UsageError(
            f"Release {release} has no SAE {sae_id!r}: write {release}/SAE_ID with one of "
            f"{closest(sae_id, entry.saes_map)}."
        )
    origin = {"sae_lens_release": release, "sae_lens_id": sae_id, "neuronpedia_id": entry.neuronpedia_id.get(sae_id)}
    return PublishedSae(
        repository=entry.repo_id,
        path=entry.saes_map[sae_id].strip("/"),
        model_name=entry.model,
        activation_scale=entry.norm_scaling_factor.get(sae_id),
        corrections=entry.config_overrides or {},
        origin={name: value for name, value in origin.items() if value is not None},
    )


def _releases(address: str) -> Mapping[str, Any]:
    """SAELens' registry: its releases by name."""
    try:
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "sae_lens":
            raise _unusable(error) from error
        raise UsageError(
            f"{address} is looked up in SAELens' registry, which is not here: pip install -U sae-lens, or write "
            "hf:owner/repo/path[@revision], which needs none."
        ) from error
    except Exception as error:  # whatever comes up in a package that does not fit the others here
        raise _unusable(error) from error
    releases: Mapping[str, Any] = get_pretrained_saes_directory()
    return releases


def _unusable(error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return UsageError(
        f"SAELens is here but cannot be imported ({reason}): mend it, or write hf:owner/repo/path[@revision], which "
        "needs none."
    )
