"""Sparse autoencoders: files in and out, the encoder's formula, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder, weighted_rows
from energy_lens.ingest.sae.choosing import sae_folders, shipped_layers
from energy_lens.ingest.sae.formats import CONFIG, STATISTICS, WEIGHTS, load_sae
from energy_lens.ingest.sae.saving import save_sae

D_MODEL, D_SAE, K = 12, 40, 5
PARTS = ("W_enc", "b_enc", "W_dec", "b_dec")


def make_sae(seed: int = 0, **changes: Any) -> SparseAutoencoder:
    """An SAE of random weights, decoder rows of different lengths, with quartiles and metadata."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    quartiles = random(D_SAE, 3).abs().sort(dim=1).values
    quartiles[7] = math.nan
    fields: dict[str, Any] = {
        "layer": 3, "k": K, "W_enc": random(D_MODEL, D_SAE), "b_enc": random(D_SAE), "W_dec": random(D_SAE, D_MODEL),
        "b_dec": random(D_MODEL), "norm_median": 7.25, "quartiles": quartiles, "model_name": "tiny",
        "metadata": {"fvu": 0.5, "test_documents": ["a.txt", "ü.txt"]},
    }  # fmt: skip
    return SparseAutoencoder(**fields | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved SAE, to spoil."""
    save_sae(make_sae(), tmp_path / "sae")
    return tmp_path / "sae"


def edit_config(folder: Path, **changes: Any) -> None:
    """Change entries of cfg.json; `metadata` is merged, and a value of ... removes an entry."""
    config = json.loads((folder / CONFIG).read_text())
    if isinstance(changes.get("metadata"), dict):
        changes["metadata"] = config["metadata"] | changes["metadata"]
    config = {key: value for key, value in (config | changes).items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(config))


def edit_weights(folder: Path, **changes: Any) -> None:
    """Replace tensors of the weights file; ... removes one."""
    weights = {**load_file(folder / WEIGHTS), **changes}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not ...}, folder / WEIGHTS)


def refusal(folder: Path) -> str:
    """The sentence with which an SAE is refused; it names the folder."""
    with pytest.raises(UsageError) as caught:
        load_sae(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def objection(folder: Path) -> str | None:
    """The sentence with which an SAE is refused, if it is."""
    try:
        load_sae(folder)
    except UsageError as error:
        return str(error)
    return None


# ------------------------------------------------------------------------------------------------ round trip


def test_a_saved_sae_is_read_back_exactly(folder: Path) -> None:
    """In float32 every number survives, NaN quartiles and metadata included."""
    saved, loaded = make_sae(), load_sae(folder)
    for name in PARTS:
        assert torch.equal(getattr(loaded, name), getattr(saved, name)), name
    assert loaded.quartiles is not None
    assert saved.quartiles is not None
    np.testing.assert_array_equal(loaded.quartiles, saved.quartiles)
    for name in ("layer", "k", "norm_median", "model_name", "metadata", "d_model", "d_sae"):
        assert getattr(loaded, name) == getattr(saved, name), name
    assert loaded.source == str(folder)


def test_a_half_precision_sae_is_the_same_to_rounding(tmp_path: Path) -> None:
    """The shipped form: float16 on disk, float32 in memory, 11 significant bits."""
    saved = make_sae()
    save_sae(saved, tmp_path, torch.float16)
    loaded = load_sae(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["dtype"] == "float16"
    for name in PARTS:
        tensor = getattr(loaded, name)
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, getattr(saved, name), rtol=2**-11, atol=2**-24)
    assert load_file(tmp_path / WEIGHTS)["W_dec"].dtype == torch.float16


def test_the_files_are_saelens_files(folder: Path) -> None:
    """The entries and tensors that SAELens v6 reads of a TopK SAE, and nothing else among the weights."""
    config = json.loads((folder / CONFIG).read_text())
    expected = {
        "architecture": "topk", "d_in": D_MODEL, "d_sae": D_SAE, "k": K, "dtype": "float32",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert config["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / WEIGHTS).items()}
    assert shapes == {"W_enc": (D_MODEL, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_MODEL), "b_dec": (D_MODEL,)}


def test_saving_over_an_sae_leaves_nothing_of_it(folder: Path) -> None:
    """Quartiles belong to the weights beside them: a new SAE without any does not inherit the old one's."""
    save_sae(make_sae(seed=1, quartiles=None, norm_median=None), folder)
    loaded = load_sae(folder)
    assert loaded.quartiles is None
    assert loaded.norm_median is None
    assert torch.equal(loaded.W_dec, make_sae(seed=1).W_dec)


def test_numbers_too_large_for_half_precision_are_not_written(tmp_path: Path) -> None:
    """float16 ends at 65,504; the file would hold infinities."""
    for changes in ({"b_dec": torch.full((D_MODEL,), 7e4)}, {"quartiles": torch.full((D_SAE, 3), 7e4)}):
        with pytest.raises(ElwError, match="float32"):
            save_sae(make_sae(**changes), tmp_path / "sae", torch.float16)
        assert not (tmp_path / "sae" / CONFIG).exists()
        save_sae(make_sae(**changes), tmp_path / "sae")
        load_sae(tmp_path / "sae")
        (tmp_path / "sae" / CONFIG).unlink()


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    """A file in the way is named, instead of a traceback."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ElwError, match="file"):
        save_sae(make_sae(), tmp_path / "file" / "sae")


def test_the_hash_follows_whatever_changes_activations(folder: Path) -> None:
    """A run's identity rests on it: other weights or another k are another SAE, other notes are not."""
    first = load_sae(folder).sha256
    edit_config(folder, metadata={"elw": {"fvu": 0.1}, "model_name": "other"}, dtype="float64")
    assert load_sae(folder).sha256 == first
    hashes = {first}
    for changes in ({"k": K + 1}, {"apply_b_dec_to_input": False}, {"rescale_acts_by_decoder_norm": True}):
        edit_config(folder, **changes)
        hashes.add(load_sae(folder).sha256)
    edit_weights(folder, b_enc=torch.zeros(D_SAE))
    hashes.add(load_sae(folder).sha256)
    assert len(hashes) == 5


# ------------------------------------------------------------------------------------------------ encode and decode


def dense(activations: SparseActivations) -> np.ndarray[Any, Any]:
    """[n, d_sae] float64 of sparse activations, each feature at most once."""
    values, indices = activations.values.double().numpy(), activations.indices.numpy()
    result = np.zeros((len(values), D_SAE))
    for row, (own_values, own_indices) in enumerate(zip(values, indices, strict=True)):
        assert len(set(own_indices)) == len(own_indices)
        result[row, own_indices] = own_values
    return result


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.integers(1, D_SAE))
def test_encode_and_decode_equal_the_formula(
    tmp_path_factory: pytest.TempPathFactory, seed: int, centred: bool, rescaled: bool, k: int
) -> None:
    """Against SAELens' formula in float64: topk(((x − b)·W + b')·‖d‖), and its decoder, for every setting."""
    folder = tmp_path_factory.mktemp("sae")
    raw = make_sae(seed)
    save_sae(raw, folder)
    edit_config(folder, apply_b_dec_to_input=centred, rescale_acts_by_decoder_norm=rescaled, k=k)
    sae = load_sae(folder)
    x = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(seed)) * 3

    W_enc, b_enc, W_dec, b_dec = (getattr(raw, name).double().numpy() for name in PARTS)
    norms = np.linalg.norm(W_dec, axis=1) if rescaled else np.ones(D_SAE)
    h = ((x.double().numpy() - centred * b_dec) @ W_enc + b_enc) * norms
    kept = np.argsort(-h, axis=1)[:, :k]
    expected = np.zeros_like(h)
    np.put_along_axis(expected, kept, np.maximum(np.take_along_axis(h, kept, 1), 0), 1)
    reconstruction = expected / norms @ W_dec + b_dec

    # Where the k-th and the next are equal to rounding, either may be taken.
    ordered = -np.sort(-h, axis=1)
    clear = (ordered[:, k - 1] - ordered[:, k] > 1e-3) if k < D_SAE else np.ones(len(h), dtype=bool)
    activations = sae.encode(x)
    np.testing.assert_allclose(dense(activations)[clear], expected[clear], atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(sae.decode(activations).numpy()[clear], reconstruction[clear], atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(sae.W_dec.numpy(), W_dec / norms[:, None], rtol=1e-5)


def test_activations_have_exactly_k_slots_and_empty_ones_are_zero() -> None:
    """With fewer than k positive features the others are 0, never negative, and add nothing to x̂."""
    sae = make_sae(b_enc=torch.full((D_SAE,), -4.0), b_dec=torch.zeros(D_MODEL))
    x = torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(1))
    activations = sae.encode(x)
    assert activations.values.shape == activations.indices.shape == (200, K)
    assert activations.indices.dtype == torch.int64
    n_active = (activations.values > 0).sum(1)
    assert n_active.min() < K
    assert n_active.max() > 0
    assert (activations.values >= 0).all()
    h = x @ sae.W_enc + sae.b_enc
    assert torch.equal(n_active, (h > 0).sum(1).clamp(max=K)), "a positive feature among the k largest has a slot"
    empty = activations.values == 0
    elsewhere = SparseActivations(activations.values, activations.indices.masked_fill(empty, 0))
    torch.testing.assert_close(sae.decode(elsewhere), sae.decode(activations))


def test_k_beyond_the_features_means_all_of_them(folder: Path) -> None:
    """Such a config has a meaning, and encode no more slots than there are features."""
    edit_config(folder, k=D_SAE + 3)
    sae = load_sae(folder)
    assert sae.k == D_SAE
    x = torch.randn(4, D_MODEL)
    np.testing.assert_allclose(dense(sae.encode(x)), ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu(), atol=1e-4)


def test_encode_of_no_tokens() -> None:
    """An empty batch is an empty batch."""
    sae = make_sae()
    activations = sae.encode(torch.empty(0, D_MODEL))
    assert activations.values.shape == (0, K)
    assert sae.decode(activations).shape == (0, D_MODEL)


def test_weighted_rows_is_a_product_with_the_dense_activations() -> None:
    """Σ_j a_j·rows_j, a feature that is named twice counting twice."""
    rows = torch.randn(D_SAE, 4, generator=torch.Generator().manual_seed(2))
    activations = SparseActivations(torch.tensor([[1.0, 2.0], [0.5, 0.0]]), torch.tensor([[3, 3], [0, 39]]))
    torch.testing.assert_close(weighted_rows(activations, rows), torch.stack([3 * rows[3], 0.5 * rows[0]]))


def test_a_decoder_row_of_zeros_stays_zero_when_rescaled(folder: Path) -> None:
    """A dead feature of a rescaled SAE reads 0, instead of spoiling every reconstruction with NaN."""
    weights = load_file(folder / WEIGHTS)
    weights["W_dec"][5] = 0
    edit_weights(folder, W_dec=weights["W_dec"])
    edit_config(folder, rescale_acts_by_decoder_norm=True, k=D_SAE)
    sae = load_sae(folder)
    activations = sae.encode(torch.randn(10, D_MODEL))
    assert torch.isfinite(sae.decode(activations)).all()
    assert (dense(activations)[:, 5] == 0).all()


def test_another_precision_is_a_copy() -> None:
    """`to` rounds the weights and keeps everything else, the original included."""
    sae = make_sae(sha256="abc", source="here")
    rounded = sae.to(torch.bfloat16)
    assert torch.equal(rounded.W_enc, sae.W_enc.bfloat16())
    assert sae.W_enc.dtype == torch.float32
    assert (rounded.sha256, rounded.source, rounded.norm_median, rounded.k) == ("abc", "here", 7.25, K)
    assert rounded.encode(torch.randn(3, D_MODEL).bfloat16()).values.dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------ hostile files


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"{", "JSON"),
        (b"", "JSON"),
        (b"\xff\xfe{}", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "list"),
        (b'"topk"', "str"),
        (b"null", "NoneType"),
    ],
)
def test_a_config_that_is_no_json_object(folder: Path, content: bytes, found: str) -> None:
    """What was found in place of an object is named."""
    (folder / CONFIG).write_bytes(content)
    message = refusal(folder)
    assert found in message
    assert CONFIG in message
    assert "SAELens v6" in message


def test_a_missing_folder_config_or_weights_file(folder: Path) -> None:
    """Each says which file an SAE folder holds."""
    assert "not an SAE folder" in refusal(folder / "nowhere")
    assert "not an SAE folder" in refusal(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    assert WEIGHTS in refusal(folder)
    (folder / CONFIG).unlink()
    assert f"no {CONFIG}" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "found", "expected"),
    [
        ({"architecture": "temporal"}, "'temporal'", "'topk'"),
        ({"architecture": "matching"}, "'matching'", "'topk'"),
        ({"architecture": ["topk"]}, "['topk']", "'topk'"),
        ({"architecture": ...}, "None", "'topk'"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening'", "'none'"),
        ({"normalize_activations": True}, "True", "'none'"),
        ({"normalize_activations": "expected_average_only_in"}, "'expected_average_only_in'", "--activation-scale"),
        ({"reshape_activations": "hook_z"}, "'hook_z'", "'none'"),
        ({"apply_b_dec_to_input": "false"}, "'false'", "true or false"),
        ({"rescale_acts_by_decoder_norm": 1}, "1", "true or false"),
        ({"k": 0}, "k is 0", "positive integer"),
        ({"k": -1}, "k is -1", "positive integer"),
        ({"k": True}, "k is True", "positive integer"),
        ({"k": "8"}, "k is '8'", "positive integer"),
        ({"k": 8.0}, "k is 8.0", "positive integer"),
        ({"k": ...}, "k is None", "positive integer"),
        ({"d_in": None}, "d_in is None", "positive integer"),
        ({"d_sae": 0}, "d_sae is 0", "positive integer"),
        ({"metadata": []}, "None", "blocks.N.hook_resid_post"),
        ({"metadata": ["x"]}, "list", "object"),
        ({"metadata": "x"}, "str", "object"),
        ({"metadata": ...}, "None", "blocks.N.hook_resid_post"),
        ({"metadata": {"hook_name": "blocks.3.attn.hook_q"}}, "'blocks.3.attn.hook_q'", "blocks.N.hook_resid_post"),
        ({"metadata": {"hook_name": "blocks.3.mlp.hook_pre"}}, "'blocks.3.mlp.hook_pre'", "hook_resid_post"),
        ({"metadata": {"hook_name": "blocks.3.hook_resid_post.x"}}, "post.x'", "blocks.N.hook_resid_post"),
        ({"metadata": {"hook_name": "blocks.3.hook_resid_post\n"}}, "post\\n'", "blocks.N.hook_resid_post"),
        ({"metadata": {"hook_name": "xblocks.3.hook_resid_post"}}, "'xblocks", "blocks.N.hook_resid_post"),
        ({"metadata": {"hook_name": f"blocks.{'9' * 5000}.hook_resid_post"}}, "999", "blocks.N.hook_resid_post"),
        ({"metadata": {"hook_name": 3}}, "'3'", "blocks.N.hook_resid_post"),
        ({"metadata": {"prepend_bos": "yes"}}, "'yes'", "true or false"),
        ({"metadata": {"elw": "x"}}, "str", "object"),
        ({"metadata": {"elw": {"norm_median": "large"}}}, "'large'", "positive number"),
        ({"metadata": {"elw": {"norm_median": math.nan}}}, "nan", "positive number"),
        ({"metadata": {"elw": {"norm_median": -1.0}}}, "-1.0", "positive number"),
    ],
)
def test_a_config_of_another_kind(folder: Path, changes: dict[str, Any], found: str, expected: str) -> None:
    """Each refusal names the file, what was found in it and what is expected."""
    edit_config(folder, **changes)
    message = refusal(folder)
    assert CONFIG in message
    assert found in message
    assert expected in message


def test_settings_that_saelens_leaves_out_have_its_defaults(folder: Path) -> None:
    """A config with the required entries alone is read as SAELens reads it: b_dec subtracted, nothing rescaled."""
    for key in ("apply_b_dec_to_input", "normalize_activations", "reshape_activations", "dtype"):
        edit_config(folder, **{key: ...})
    edit_config(folder, rescale_acts_by_decoder_norm=..., metadata={"elw": None, "prepend_bos": False})
    (folder / STATISTICS).unlink()
    loaded, saved = load_sae(folder), make_sae()
    assert loaded.norm_median is None
    assert loaded.quartiles is None
    for name in PARTS:
        assert torch.equal(getattr(loaded, name), getattr(saved, name))


@pytest.mark.parametrize(
    ("changes", "found", "expected"),
    [
        ({"W_enc": torch.zeros(D_SAE, D_MODEL)}, "(40, 12)", "(12, 40)"),
        ({"W_dec": torch.zeros(D_SAE, D_MODEL + 1)}, "(40, 13)", "(40, 12)"),
        ({"b_enc": torch.zeros(D_SAE, 1)}, "(40, 1)", "(40,)"),
        ({"b_dec": torch.tensor(0.0)}, "()", "(12,)"),
        ({"b_enc": ...}, "W_dec, W_enc, b_dec", "b_enc"),
        ({"W_dec": torch.full((D_SAE, D_MODEL), math.nan)}, "W_dec holds NaN", "finite"),
        ({"b_dec": torch.full((D_MODEL,), math.inf)}, "b_dec holds NaN or infinity", "finite"),
        (
            {"b_enc": torch.full((D_SAE,), math.nan).to(torch.float8_e4m3fn)},
            "b_enc holds NaN",
            "finite",
        ),
    ],
)
def test_weights_of_another_kind(folder: Path, changes: dict[str, Any], found: str, expected: str) -> None:
    """Wrong shapes, missing tensors and NaN are named with what is expected."""
    edit_weights(folder, **changes)
    message = refusal(folder)
    assert WEIGHTS in message
    assert found in message
    assert expected in message


def test_statistics_of_another_sae(folder: Path) -> None:
    """Quartiles of another number of features are refused, those of hardly active features may be NaN."""
    save_file({"activation_quartiles": torch.zeros(D_SAE + 1, 3)}, folder / STATISTICS)
    message = refusal(folder)
    assert STATISTICS in message
    assert "(41, 3)" in message
    assert "(40, 3)" in message


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_weights_file_is_refused_or_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere or with a spoiled header it is refused by name, and nothing but UsageError comes out."""
    folder = tmp_path_factory.mktemp("sae")
    save_sae(make_sae(), folder)
    whole = (folder / WEIGHTS).read_bytes()
    if data.draw(st.booleans()):
        spoiled = whole[: data.draw(st.integers(0, len(whole) - 1))]
        (folder / WEIGHTS).write_bytes(spoiled)
        assert "safetensors" in refusal(folder)
    else:
        place = data.draw(st.integers(0, 300))
        spoiled = whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
        (folder / WEIGHTS).write_bytes(spoiled)
        assert str(folder) in (objection(folder) or str(folder))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["elw", "hook_name"]), inner),
    max_leaves=4,
)


@settings(max_examples=150)
@given(
    st.sampled_from(["architecture", "d_in", "d_sae", "k", "normalize_activations", "metadata", "hook_name", "elw"]),
    JSON,
)
def test_no_config_entry_can_cause_another_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    """Any JSON in any entry is read or refused with a UsageError that names the folder."""
    folder = tmp_path_factory.mktemp("sae")
    save_sae(make_sae(), folder)
    edit_config(folder, **({"metadata": {key: value}} if key in ("hook_name", "elw") else {key: value}))
    assert str(folder) in (objection(folder) or str(folder))


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    """A pickle under the weights' name is refused, and its code does not run."""
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.write_text, (mark, "ran"))

    bomb = pickle.dumps(Bomb())
    pickle.loads(bomb)
    assert mark.exists(), "the bomb works"
    mark.unlink()
    (folder / WEIGHTS).write_bytes(bomb)
    assert "safetensors" in refusal(folder)
    torch.save({"W_enc": torch.zeros(D_MODEL, D_SAE)}, folder / WEIGHTS)
    assert "safetensors" in refusal(folder)
    assert not mark.exists()


# ------------------------------------------------------------------------------------------------ which SAEs


def test_a_folder_of_saes_means_all_of_them(tmp_path: Path) -> None:
    """--sae takes an SAE or a folder of such; anything else is passed on to be refused by name."""
    for layer in (2, 10):
        save_sae(make_sae(layer=layer), tmp_path / f"layer_{layer}")
    (tmp_path / "notes").mkdir()
    assert sae_folders(tmp_path) == [tmp_path / "layer_10", tmp_path / "layer_2"]
    assert sae_folders(tmp_path / "layer_2") == [tmp_path / "layer_2"]
    assert sae_folders(tmp_path / "nowhere") == [tmp_path / "nowhere"]
    with pytest.raises(UsageError, match="holds no SAE"):
        sae_folders(tmp_path / "notes")


def test_only_the_package_ships_saes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model folder's own layer_3 is not taken for a shipped SAE, however the folder is named."""
    save_sae(make_sae(), tmp_path / "model" / "layer_3")
    monkeypatch.chdir(tmp_path)
    for name in (
        str(tmp_path / "model"),
        "model",
        "./model",
        "../" * 20 + str(tmp_path / "model").lstrip("/"),
        "..",
        "",
    ):
        assert shipped_layers(name) == []


@pytest.fixture
def try_ingest(tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path) -> Callable[..., str]:
    """try_ingest(...): the sentence with which an ingest of a tiny Llama into a new warehouse is refused."""

    def run(**options: Any) -> str:
        db = tmp_path / "refused.duckdb"
        defaults: dict[str, Any] = {"db": db, "model": str(tiny("llama").folder), "dtype": "float32"}
        with pytest.raises(UsageError) as caught:
            ingest([small_corpus], IngestOptions(**defaults | options))
        message = str(caught.value)
        assert "\n" not in message
        return message

    return run


def test_an_sae_of_another_width(try_ingest: Callable[..., str], tmp_path: Path) -> None:
    """Both widths are named, and the SAE."""
    save_sae(make_sae(layer=1), tmp_path / "narrow")
    message = try_ingest(saes=(tmp_path / "narrow",))
    assert "12" in message
    assert "32" in message
    assert str(tmp_path / "narrow") in message


def test_an_sae_of_a_layer_that_the_model_lacks(
    try_ingest: Callable[..., str], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    """The model's layers are named."""
    sae = load_sae(tiny("llama").saes / "layer_1")
    sae.layer = 4
    save_sae(sae, tmp_path / "layer_4")
    assert "no layer 4: its layers are 0 to 3" in try_ingest(saes=(tmp_path / "layer_4",))


def test_a_layer_without_an_sae(try_ingest: Callable[..., str], tiny: Callable[..., Any]) -> None:
    """The layers that do have one are named."""
    assert "layer 3: the given ones are for [1, 2]" in try_ingest(saes=(tiny("llama").saes,), layers=(1, 3))


def test_two_saes_for_one_layer(try_ingest: Callable[..., str], tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Which was meant cannot be told; both are named."""
    saes = tiny("llama").saes
    save_sae(load_sae(saes / "layer_2"), tmp_path / "again")
    message = try_ingest(saes=(saes, tmp_path / "again"))
    assert str(tmp_path / "again") in message
    assert str(saes / "layer_2") in message
    assert "layer 2" in message


def test_a_model_that_no_sae_is_shipped_for(try_ingest: Callable[..., str]) -> None:
    """The remedy is to train some."""
    message = try_ingest()
    assert "elw sae train" in message
    assert "--sae" in message


def test_another_k_is_another_run(tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path) -> None:
    """The same weights read with another k must not continue the first SAE's run."""
    tiny_model = tiny("llama")
    sae = load_sae(tiny_model.saes / "layer_1")
    runs = []
    for k in (4, 2, 4):
        sae.k = k
        save_sae(sae, tmp_path / "sae")
        options = IngestOptions(
            db=tmp_path / "two.duckdb", model=str(tiny_model.folder), saes=(tmp_path / "sae",), context_length=32,
            dtype="float32", max_tokens=1, energies=("hopfield",),
        )  # fmt: skip
        runs.append(ingest([small_corpus], options).run_id)
    assert runs == [1, 2, 1]
