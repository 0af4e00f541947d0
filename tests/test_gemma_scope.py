"""Gemma Scope's files: the formula of its paper, the names of its folders, and no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from energy_lens.errors import UsageError
from energy_lens.ingest.sae.choosing import load_saes
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae

D_MODEL, D_SAE = 12, 40


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    """Arrays of a small SAE; ... removes one."""
    random = np.random.default_rng(0)
    made = {
        "W_enc": random.normal(size=(D_MODEL, D_SAE)), "b_enc": random.normal(size=D_SAE),
        "W_dec": random.normal(size=(D_SAE, D_MODEL)), "b_dec": random.normal(size=D_MODEL),
        "threshold": random.uniform(0, 2, size=D_SAE),
    }  # fmt: skip
    floats = {name: array.astype(np.float32) for name, array in made.items()}
    return {name: array for name, array in (floats | changes).items() if array is not ...}


def put(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **arrays(**changes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"


def test_it_is_the_formula_of_the_paper(folder: Path) -> None:
    sae, made = load_sae(put(folder)), {name: torch.from_numpy(array) for name, array in arrays().items()}
    x = 2 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))
    h = x @ made["W_enc"] + made["b_enc"]
    a = torch.where(h > made["threshold"], h.relu(), 0)
    activations = sae.encode(x)
    dense = torch.zeros(50, D_SAE).scatter_add_(1, activations.indices, activations.values)
    torch.testing.assert_close(dense, a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.reconstruct(x), a @ made["W_dec"] + made["b_dec"], rtol=1e-4, atol=1e-4)
    assert (sae.layer, sae.bos, sae.model_name, sae.architecture) == (20, True, "gemma-2-2b", "jumprelu")


def test_written_as_ours_it_stays_the_same(folder: Path, tmp_path: Path) -> None:
    sae = load_sae(put(folder))
    save_sae(sae, tmp_path / "saved")
    again, x = load_sae(tmp_path / "saved"), torch.randn(20, D_MODEL)
    torch.testing.assert_close(again.reconstruct(x), sae.reconstruct(x))
    assert again.bos is True


def test_a_folder_of_such_folders(tmp_path: Path) -> None:
    for layer in (3, 7):
        put(tmp_path / f"layer_{layer}")
    assert [sae.layer for sae in load_saes([tmp_path])] == [3, 7]


def test_the_layer_that_is_given(tmp_path: Path, folder: Path) -> None:
    assert load_sae(put(tmp_path / "anywhere"), layer=5).layer == 5
    assert load_sae(put(folder), layer=20).layer == 20
    for where, layer, said in ((tmp_path / "anywhere", None, "--layer"), (folder, 4, "below layer_20")):
        with pytest.raises(UsageError, match=said):
            load_sae(where, layer=layer)


@pytest.mark.parametrize(
    ("site", "hook", "hook_out"),
    [
        ("mlp", "blocks.3.hook_mlp_out", None), ("att", "blocks.3.attn.hook_z", None),
        ("transcoders", "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"),
    ],
)  # fmt: skip
def test_the_site_is_told_by_the_folder(site: str, hook: str, hook_out: str | None, tmp_path: Path) -> None:
    sae = load_sae(put(tmp_path / f"gemma-scope-9b-pt-{site}" / "layer_3" / "width_16k"))
    assert (sae.hook_name, sae.site_out.hook_name if sae.is_transcoder else None) == (hook, hook_out)
    made = {name: torch.from_numpy(array) for name, array in arrays().items()}
    x = 2 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))
    h = x @ made["W_enc"] + made["b_enc"]
    expected = torch.where(h > made["threshold"], h.relu(), 0) @ made["W_dec"] + made["b_dec"]
    torch.testing.assert_close(sae.reconstruct(x), expected, rtol=1e-4, atol=1e-4)
    assert sae.sha256 != load_sae(put(tmp_path / "gemma-scope-9b-pt-res" / "layer_3" / "width_16k")).sha256


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gemma-scope-9b-pt-clt/layer_3/width_16k/average_l0_7", "site 'clt'"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "the embedding"),
    ],
)
def test_other_sites_are_refused_by_name(place: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        load_sae(put(tmp_path / place))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": ...}, "has no threshold"),
        ({"b_enc": np.zeros(3, np.float32)}, r"b_enc has shape \(3,\); \(40,\) is expected"),
        ({"W_enc": np.zeros(3, np.float32)}, "W_enc has shape"),
        ({"b_dec": np.full(D_MODEL, np.nan, np.float32)}, "NaN or infinity"),
        ({"b_dec": np.zeros(D_MODEL, np.int64)}, "int64"),
        ({"b_dec": np.array([print] * D_MODEL, dtype=object)}, "pickles, which are never read"),
    ],
)
def test_damaged_files_are_one_sentence(changes: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=said):
        load_sae(put(folder, **changes))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + b"\0" * 40])
def test_what_is_no_archive(content: bytes, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "params.npz").write_bytes(content)
    with pytest.raises(UsageError, match="is damaged"):
        load_sae(folder)
