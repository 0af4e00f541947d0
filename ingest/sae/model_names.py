"""The name of an SAE's model and that of the model in use in, a note out where they are two models.

Width and layers are checked elsewhere (`choosing.check_saes`); two models of one width pass that, and the features of
one mean nothing in the other. Names are compared as people write them: an owner, a revision, a GGUF file's precision,
case, hyphens and underscores make no difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from energy_lens.console import say
from energy_lens.ingest.model.loading import PACKAGED_MODELS
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder

#: A model's folder in the cache of huggingface_hub.
HUB_FOLDER = re.compile(r"models--(?:.+--)?(?P<name>.+)")

#: A number of parameters, such as 135M or 2.7b: a folder that is called by one is called by a model's name.
SIZE = re.compile(r"(?<![a-z0-9])[a-z]?[0-9]+(?:[._][0-9]+)?[mb](?![a-z0-9])", re.IGNORECASE)

#: The end of a GGUF file's name: how its weights are stored.
PRECISION = re.compile(r"[-._](?:i?q[0-9][a-z0-9_]*|bf16|fp?16|fp?32|gguf|i1)$", re.IGNORECASE)

#: One model under two names, letters and digits alone.
ALIASES = {"gpt2small": "gpt2"}


def trained_on(sae: SparseAutoencoder) -> str:
    """The name of the model that an SAE was trained on, as its files say it; "" where they do not.

    A registered SAE is called by the model that it was registered for, and keeps this name beside.
    """
    return str(sae.metadata.get("imported_model_name") or sae.model_name)


def note_another_model(sae: SparseAutoencoder, model_name: str) -> None:
    """Say so where an SAE was trained on another model than the one in use, as far as both names are known."""
    name = trained_on(sae)
    if are_different(name, model_name):
        say(
            f"Note: the SAE of layer {sae.layer} ({sae.source}) says that it was trained on {name}, and the model is "
            f"{model_name}: its features may mean nothing there."
        )


def are_different(one: str, other: str) -> bool:
    """Whether two names are those of two models; False where one of them does not tell."""
    names = [bare_name(name) for name in (one, other)]
    return None not in names and names[0] != names[1]


def bare_name(name: str) -> str | None:
    """Letters and digits of a model's name, lower case; None for "", and for a folder that is called otherwise."""
    if name in PACKAGED_MODELS:
        name = PACKAGED_MODELS[name].member
    path = Path(os.path.expanduser(name))
    bare = path.name
    if cached := [match["name"] for part in path.parts if (match := HUB_FOLDER.fullmatch(part))]:
        bare = cached[-1]
    elif path.suffix.lower() == ".gguf":
        bare = path.stem
    elif _is_place(name, path) and not SIZE.search(bare):
        return None
    bare = bare.split("@")[0]
    while shorter := PRECISION.search(bare):
        bare = bare[: shorter.start()]
    plain = re.sub(r"[^a-z0-9]", "", bare.lower()).removeprefix("meta").removesuffix("hf")
    return ALIASES.get(plain, plain) or None


def _is_place(name: str, path: Path) -> bool:
    """Whether a name is that of a folder here, or was of one somewhere, and no name of a hub."""
    if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        return True
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
