"""A folder of Gemma Scope in, its SAE in float32 out: `params.npz`, read without pickle (Lieberum et al. 2024).

The file holds arrays and nothing else; layer and site are told by the folders around it, as Google names them:

  gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz

  h = x·W_enc + b_enc    a = h where h > θ (and above 0)    x̂ = a·W_dec + b_dec

b_dec is not subtracted first. Sites: res, att (the input of attention's last projection), mlp (what the feed-forward
network adds, its norm included), and transcoders, from that network's normed input to what it adds. All were trained
behind a BOS token (arXiv 2408.05147, section 3).
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder

PARAMS = "params.npz"

ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")

#: Where each site reads and, for transcoders, writes.
SITES: dict[str, tuple[str, str | None]] = {
    "res": ("resid_post", None), "att": ("z", None), "mlp": ("mlp_out", None),
    "transcoders": ("ln2_normalized", "mlp_out"),
}  # fmt: skip

#: Names of folders.
LAYER = re.compile(r"layer_([0-9]{1,4})")
RELEASE = re.compile(r"gemma-scope-(?P<size>[0-9]+[bm])-(?P<kind>pt|it)-(?P<site>[a-z-]+)")


def load_gemma_scope(folder: Path, layer: int | None = None) -> SparseAutoencoder:
    """Read a folder's params.npz.

    layer: the block that it reads, for a folder whose path does not say; the site is then res. Raises UsageError,
    naming what was expected and what was found, for anything else than such an SAE or transcoder.
    """
    path = folder / PARAMS
    parts = folder.resolve().parts
    release = next((match for part in reversed(parts) if (match := RELEASE.search(part))), None)
    site = release["site"] if release else "res"
    if "embedding" in parts or site not in SITES:
        of = "the embedding" if "embedding" in parts else f"site {site!r}"
        raise UsageError(f"{path} is of {of}; a release whose name ends in -{', -'.join(SITES)} is expected.")
    point, point_out = SITES[site]
    named = next((int(match[1]) for part in reversed(parts) if (match := LAYER.fullmatch(part))), None)
    if named is None and layer is None:
        raise UsageError(f"{path}: no folder above it is called layer_N: say which layer it reads (--layer).")
    if None not in (named, layer) and named != layer:
        raise UsageError(f"{path} is below layer_{named}, and layer {layer} was given.")
    arrays = _read(path)
    d_in, d_sae = arrays["W_enc"].shape if arrays["W_enc"].ndim == 2 else (0, 0)
    d_model = arrays["W_dec"].shape[-1] if point_out else d_in
    shapes = {
        "W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_model), "b_dec": (d_model,),
        "threshold": (d_sae,),
    }  # fmt: skip
    for name, shape in shapes.items():
        if not d_sae or tuple(arrays[name].shape) != shape:
            raise UsageError(f"{path}: {name} has shape {tuple(arrays[name].shape)}; {shape} is expected.")
        if not torch.isfinite(arrays[name]).all():
            raise UsageError(f"{path}: {name} holds NaN or infinity: copy the file again.")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return SparseAutoencoder(
        layer=named if layer is None else layer,  # type: ignore[arg-type]
        k=None,
        W_enc=arrays["W_enc"],
        # What an SAE subtracts here and not there is added again.
        b_enc=arrays["b_enc"] if point_out else arrays["b_enc"] + arrays["b_dec"] @ arrays["W_enc"],
        W_dec=arrays["W_dec"],
        b_dec=arrays["b_dec"],
        architecture="jumprelu",
        threshold=arrays["threshold"],
        bos=True,
        model_name="" if release is None else f"gemma-2-{release['size']}" + "-it" * (release["kind"] == "it"),
        sha256=sha256 if site == "res" else hashlib.sha256(f"{sha256} {site}".encode()).hexdigest(),
        point=point,
        point_out=point_out,
        source=str(folder),
    )


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of the file, in float32."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in ARRAYS if name not in file.files]:
                raise UsageError(f"{path} has no {missing[0]}: {', '.join(ARRAYS)} are expected, as in Gemma Scope.")
            arrays = {name: file[name] for name in ARRAYS}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UsageError(f"{path} is damaged, or holds pickles, which are never read: copy it again.") from error
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise UsageError(f"{path}: {name} holds {array.dtype}; floating-point numbers are expected.")
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
