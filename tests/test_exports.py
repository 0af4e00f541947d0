"""Files for other tools say what the warehouse says, in the shape that those tools read, whatever the texts hold."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from typer.testing import CliRunner

from energy_lens.cli.app import app
from energy_lens.cli.export import EXPORTS
from energy_lens.errors import ElwError, UsageError
from energy_lens.reports.exports import dashboards, delphi, neuronpedia, parquet, saedashboard
from energy_lens.reports.exports.source import Sae
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.export_folder import as_json

WRITERS: dict[str, Callable[..., Any]] = {
    "saedashboard": saedashboard.export, "neuronpedia": neuronpedia.export, "delphi": delphi.export,
    "parquet": parquet.export,
}  # fmt: skip

#: Texts that a page, a line or an importer could take for something else.
HOSTILE = (
    "<script>alert(1)</script>", '"}\n{"id":"', "\x00", "\\u0000", "\\\x00", "a\u202eb\u2066c", "\u2028",
    "\ud7ff\U0010ffff", "x" * 10_000, "'); DROP TABLE tokens; --", "../../etc", "�", "\t\r\n", "",
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(tiny_warehouse: Path) -> pl.DataFrame:
    """Activations of the run with their places."""
    with Warehouse(tiny_warehouse) as warehouse:
        return warehouse.sql(
            "SELECT a.layer, a.feature, a.token_id, a.activation, p.context_id, p.position, c.n_tokens "
            "FROM activations AS a JOIN token_places AS p USING (run_id, token_id) "
            "JOIN contexts AS c USING (run_id, context_id) ORDER BY ALL"
        ).pl()


@pytest.fixture(scope="module")
def hostile_warehouse(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny warehouse with hostile texts for tokens, and hostile paths."""
    db = tmp_path_factory.mktemp("hostile") / "hostile.duckdb"
    shutil.copy(tiny_warehouse, db)
    with Warehouse(db, writable=True) as warehouse:
        for table, key in (("tokens", "token_id"), ("feature_tokens", "place"), ("feature_logits", "place")):
            warehouse.sql(f"UPDATE {table} SET text = ($texts)[1 + {key} % len($texts)]", texts=list(HOSTILE))
        warehouse.sql("UPDATE documents SET path = path || '\"</script>\n'")
    return db


def written(form: str, db: Path, output: Path, words: list[str] | None = None) -> Path:
    WRITERS[form](db, output, words)
    return output


def lines(path: Path) -> Iterator[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert data.endswith(b"\n")
    for line in data.decode().removesuffix("\n").split("\n"):
        yield json.loads(line)


def visible(text: str) -> str:
    """A text as exports have it: PostgreSQL, where some of them go, takes no NUL."""
    return text.replace("\x00", "␀")


def by_name(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored_contexts(rows: pl.DataFrame, layer: int, feature: int) -> dict[int, list[np.float32]]:
    """{context: the feature's activation at each of its tokens}, where there is one."""
    found: dict[int, list[np.float32]] = {}
    for row in rows.filter(layer=layer, feature=feature).iter_rows(named=True):
        values = found.setdefault(row["context_id"], [np.float32(0)] * row["n_tokens"])
        values[row["position"]] = np.float32(row["activation"])
    return found


# ------------------------------------------------------------------------------------------------ saedashboard

#: Keys of a feature, as sae-dashboard 0.8.0 has them.
FEATURE_KEYS = (
    "feature_index neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices "
    "correlated_neurons_l1 correlated_neurons_pearson correlated_features_indices correlated_features_l1 "
    "correlated_features_pearson neg_str neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_values "
    "freq_hist_data_bar_heights logits_hist_data_bar_heights logits_hist_data_bar_values n_prompts_total "
    "n_tokens_in_prompt dataset decoder_weights_dist activations vector"
)


@pytest.fixture(scope="module")
def batches(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("saedashboard", tiny_warehouse, tmp_path_factory.mktemp("saedashboard"))


def test_batches_hold_every_feature_that_fires_and_skip_the_others(batches: Path, rows: pl.DataFrame) -> None:
    for layer in (1, 2):
        (place,) = batches.glob(f"*_blocks.{layer}.hook_resid_post_64")
        read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(place.glob("batch-*.json"))]
        assert all({**batch, "features": 0} == {
            "model_id": "model", "layer": layer, "sae_set": "res-elw", "sae_id_suffix": None, "features": 0,
        } for batch in read)  # fmt: skip
        told = [feature["feature_index"] for batch in read for feature in batch["features"]]
        assert told == sorted(rows.filter(layer=layer)["feature"].unique())
        skipped = json.loads((place / "skipped_indexes.json").read_text())
        assert set(skipped) == {"model_id", "layer", "sae_set", "log_sparsity", "skipped_indexes"}
        assert sorted(told + skipped["skipped_indexes"]) == list(range(64))
        assert skipped["layer"] == str(layer)


def test_features_of_batches_are_what_the_rows_say(batches: Path, rows: pl.DataFrame, tiny_warehouse: Path) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        n_tokens = dict(warehouse.sql("SELECT layer, n_tokens FROM layer_tokens WHERE reason IS NULL").fetchall())
        logits = warehouse.sql("SELECT * FROM feature_logits ORDER BY layer, feature, direction, place").pl()
        texts = warehouse.sql(
            "SELECT context_id, list(text ORDER BY position) FROM token_places GROUP BY context_id"
        ).fetchall()
    tokens = {context: [visible(text) for text in of_context] for context, of_context in texts}
    for path in batches.glob("*/batch-*.json"):
        batch = json.loads(path.read_text(encoding="utf-8"))
        layer = batch["layer"]
        for feature in batch["features"]:
            assert set(feature) == set(FEATURE_KEYS.split())
            a = rows.filter(layer=layer, feature=feature["feature_index"])["activation"]
            assert feature["frac_nonzero"] == pytest.approx(len(a) / n_tokens[layer], rel=1e-12)
            heights, centres = feature["freq_hist_data_bar_heights"], feature["freq_hist_data_bar_values"]
            assert sum(heights) == len(a)
            edges = np.linspace(a.min(), a.max(), 51)
            np.testing.assert_allclose(centres, (edges[1:] + edges[:-1]) / 2, rtol=1e-5)
            assert sum(feature["logits_hist_data_bar_heights"]) == 512
            promoted = logits.filter(layer=layer, feature=feature["feature_index"], direction="promoted")
            assert feature["pos_str"] == [visible(text) for text in promoted["text"]]
            assert np.float32(feature["pos_values"]).tolist() == promoted["logit"].to_list()
            assert len(feature["neg_str"]) == 10
            assert feature["neg_values"] == sorted(feature["neg_values"])
            stored = stored_contexts(rows, layer, feature["feature_index"])
            shares = {}
            for activation in feature["activations"]:
                values = [np.float32(value) for value in activation["values"]]
                (context,) = {n for n, one in stored.items() if one == values and tokens[n] == activation["tokens"]}
                a_here = np.float32(activation["values"][activation["qualifying_token_index"]])
                assert a_here == stored[context][activation["qualifying_token_index"]] > 0
                low, high, share = (activation[name] for name in ("bin_min", "bin_max", "bin_contains"))
                if low == -1:
                    assert (np.float32(high), share) == (np.float32(a.max()), -1)
                else:
                    shares[low] = share
                    inside = a.cast(pl.Float64).is_between(low - 1e-4, high + 1e-4).sum()
                    assert low - 1e-4 <= a_here <= high + 1e-4
                    assert share * n_tokens[layer] <= inside + (0 if low else n_tokens[layer] - len(a)) + 1e-6
            assert sum(shares.values()) <= 1 + 1e-9
            lowest = shares.get(0.0)
            if lowest is not None:
                assert lowest >= 1 - len(a) / n_tokens[layer]


# ------------------------------------------------------------------------------------------------ neuronpedia

#: Keys of Neuronpedia's classes (its utils, db_models).
NEURONPEDIA_KEYS = {
    "features": "modelId layer index creatorId createdAt maxActApprox hasVector vector vectorLabel "
    "vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices "
    "neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_pearson "
    "correlated_neurons_l1 correlated_features_indices correlated_features_pearson correlated_features_l1 neg_str "
    "neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights freq_hist_data_bar_values "
    "logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist sourceSetName",
    "activations": "id tokens index layer modelId maxValue maxValueTokenIndex minValue values creatorId dataSource "
    "dataIndex dfaValues dfaTargetIndex dfaMaxValue createdAt lossValues logitContributions binMin binMax binContains "
    "qualifyingTokenIndex zIndices zValues",
    "explanations": "id modelId layer index description authorId embedding triggeredById typeName "
    "explanationModelName notes createdAt",
    "model": "id instruct creatorId displayNameShort displayName tlensId dimension visibility defaultSourceSetName "
    "defaultSourceId inferenceEnabled layers neuronsPerLayer createdAt owner updatedAt website",
    "source": "id modelId setName creatorId hasDashboards inferenceEnabled inferenceHosts saelensConfig saelensRelease "
    "saelensSaeId hfRepoId hfFolderId visibility defaultOfModelId hasUmap hasUmapLogSparsity hasUmapClusters "
    "num_prompts num_tokens_in_prompt dataset notes createdAt",
    "sourceset": "modelId name creatorId hasDashboards visibility description type creatorName urls creatorEmail "
    "releaseName defaultOfModelId defaultRange defaultShowBreaks showDfa showCorrelated showHeadAttribution showUmap "
    "createdAt",
    "release": "name description creatorName creatorId visibility isNewUi featured descriptionShort urls creatorEmail "
    "creatorNameShort defaultSourceSetName defaultSourceId defaultUmapSourceIds createdAt",
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neuronpedia, "BATCH", 10)
        return written("neuronpedia", tiny_warehouse, tmp_path_factory.mktemp("neuronpedia"))


def test_every_line_of_the_bundle_has_the_published_keys(bundle: Path) -> None:
    ids = []
    for path in bundle.rglob("*.jsonl*"):
        kind = path.parent.name if path.name.startswith("batch-") else path.name.partition(".")[0]
        found = list(lines(path))
        assert len({tuple(row) for row in found}) == 1, "the importer takes its columns from the first line"
        assert set(found[0]) == set(NEURONPEDIA_KEYS[kind].split())
        ids += [row["id"] for row in found if kind in ("activations", "explanations")]
        if kind in ("features", "explanations"):
            assert len(found) <= 10
    assert len(set(ids)) == len(ids) > 100
    assert all(len(name) == 25 and name[0] == "c" for name in ids)


def test_rows_of_the_bundle_belong_to_each_other_and_to_the_run(
    bundle: Path, rows: pl.DataFrame, tiny_warehouse: Path
) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        losses = dict(
            warehouse.sql(
                "SELECT p.context_id, list(e.value ORDER BY p.token_id) FROM energies AS e "
                "JOIN token_places AS p USING (run_id, token_id) WHERE e.energy = 'nll' GROUP BY ALL"
            ).fetchall()
        )
        cosines = {
            (layer, feature): (neighbours, values)
            for layer, feature, neighbours, values in warehouse.sql(
                "SELECT layer, feature, list(neighbour ORDER BY place), list(value ORDER BY place) "
                "FROM feature_neighbours WHERE measure = 'decoder_cosine' GROUP BY ALL"
            ).fetchall()
        }
    for layer in (1, 2):
        place = bundle / "model" / f"{layer}-res-elw"
        (release,), (model,), (of_set,), (source,) = (
            lines(place / f"{name}.jsonl") for name in ("release", "model", "sourceset", "source")
        )
        assert of_set["releaseName"] == release["name"]
        assert (source["setName"], source["modelId"], source["id"]) == (of_set["name"], model["id"], place.name)
        features = [row for path in place.glob("features/*.gz") for row in lines(path)]
        assert {int(row["index"]) for row in features} == set(rows.filter(layer=layer)["feature"])
        for row in features:
            assert (row["layer"], row["modelId"], row["sourceSetName"]) == (source["id"], model["id"], of_set["name"])
            neighbours, values = cosines[layer, int(row["index"])]
            assert row["topkCosSimIndices"] == neighbours
            assert np.float32(row["topkCosSimValues"]).tolist() == values
            assert (row["hasVector"], row["vector"]) == (False, [])
        stored = {int(row["index"]): stored_contexts(rows, layer, int(row["index"])) for row in features}
        for row in [row for path in place.glob("activations/*.gz") for row in lines(path)]:
            here = stored[int(row["index"])][int(row["dataIndex"])]
            assert [np.float32(value) for value in row["values"]] == here
            assert row["maxValue"] == max(row["values"]) == row["values"][row["maxValueTokenIndex"]]
            assert np.float32(row["lossValues"]).tolist() == losses[int(row["dataIndex"])]
            assert len(row["lossValues"]) == len(row["tokens"]) - 1
        explained = [row for path in place.glob("explanations/*.gz") for row in lines(path)]
        assert len(explained) == len(features)
        assert all(row["explanationModelName"] is None and "No language model" in row["notes"] for row in explained)


# ------------------------------------------------------------------------------------------------ delphi


@pytest.mark.parametrize("split_activations", [10_000_000, 2_000])
def test_delphis_splits_hold_the_activations_of_full_contexts(
    split_activations: int, tiny_warehouse: Path, rows: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delphi, "SPLIT_ACTIVATIONS", split_activations)
    written("delphi", tiny_warehouse, tmp_path)
    told = list(lines(tmp_path / "contexts.jsonl"))
    context_of = np.array([row["context_id"] for row in told])
    assert [row["row"] for row in told] == list(range(len(told)))
    with Warehouse(tiny_warehouse) as warehouse:
        vocabulary = warehouse.sql("SELECT token_id, vocabulary_id FROM tokens ORDER BY token_id").pl()
    tokens = dict(vocabulary.iter_rows())
    for layer in (1, 2):
        place = tmp_path / "latents" / f"layers.{layer}"
        config = json.loads((place / "config.json").read_text())
        assert config["cache_ctx_len"] == 32
        assert config["n_tokens"] == 32 * len(told)
        names = sorted(path.stem for path in place.glob("*.safetensors"))
        assert len(names) == config["n_splits"]
        assert (len(names) == 5) is (split_activations > 2_000)
        found, covered = set(), []
        for name in names:
            first, last = map(int, name.split("_"))
            covered += range(first, last + 1)
            data = load_file(place / f"{name}.safetensors")
            assert (data["locations"].dtype, data["activations"].dtype) == (np.uint16, np.float16)
            expected = [[tokens[32 * context + i] for i in range(32)] for context in context_of]
            assert data["tokens"].tolist() == expected
            at = data["locations"].astype(int)
            assert (np.lexsort((at[:, 2], at[:, 1], at[:, 0])) == np.arange(len(at))).all()
            found |= {
                (context_of[row], position, first + latent, float(a))
                for (row, position, latent), a in zip(at.tolist(), data["activations"], strict=True)
            }
        assert sorted(covered) == list(range(64))
        full = rows.filter((pl.col("layer") == layer) & (pl.col("n_tokens") == 32) & (pl.col("activation") > 1e-5))
        assert found == {
            (row["context_id"], row["position"], row["feature"], float(np.float16(row["activation"])))
            for row in full.iter_rows(named=True)
        }
        left_out = rows.filter(layer=layer).height - full.height
        assert left_out > 0
        notes = json.loads((tmp_path / "manifest.json").read_text())["notes"]
        assert any(
            note.startswith(f"layers.{layer}: {full.height:,} ") and f"{left_out:,} in short" in note for note in notes
        )


def test_delphi_can_be_given_some_features(tiny_warehouse: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    feature = rows.filter((pl.col("layer") == 2) & (pl.col("n_tokens") == 32))["feature"].mode().min()
    written("delphi", tiny_warehouse, tmp_path, [f"2:{feature}"])
    assert [path.name for path in (tmp_path / "latents").iterdir()] == ["layers.2"]
    found = set()
    for path in tmp_path.glob("latents/layers.2/*.safetensors"):
        found |= set((load_file(path)["locations"][:, 2].astype(int) + int(path.stem.split("_")[0])).tolist())
    assert found == {feature}


@given(st.integers(1, 200_000), st.integers(1, 300))
def test_splits_cover_each_feature_once(d_sae: int, n_splits: int) -> None:
    splits = list(delphi.splits_of(d_sae, n_splits))
    assert splits[0][0] == 0
    assert splits[-1][1] == d_sae - 1
    assert all(after[0] == before[1] + 1 for before, after in pairwise(splits))
    assert all(first <= last for first, last in splits)
    assert len(splits) == min(n_splits, d_sae)


@pytest.mark.parametrize(("largest", "kind"), [(2**16 - 1, np.uint16), (2**16, np.uint32)])
def test_locations_are_as_narrow_as_they_fit(largest: int, kind: type) -> None:
    narrow = delphi._narrowed(np.array([[largest, 127, 5]], dtype=np.int32))
    assert narrow.dtype == kind
    assert narrow.tolist() == [[largest, 127, 5]]


@pytest.mark.parametrize(
    ("hook", "out", "path"),
    [
        ("blocks.3.hook_resid_post", None, "layers.3"),
        ("blocks.3.hook_mlp_out", None, "layers.3.mlp"),
        ("blocks.3.hook_mlp_in", "blocks.3.hook_mlp_out", "layers.3.mlp"),
        ("blocks.3.attn.hook_z", None, "layers.3.self_attn"),
        ("blocks.3.hook_resid_pre", None, "layers.3.hook_resid_pre"),
    ],
)
def test_module_paths_are_sparsifys(hook: str, out: str | None, path: str) -> None:
    assert delphi.module_path(Sae(3, "", "", "topk", 8, hook, out, 1, 1)) == path


def test_activations_too_large_for_float16_are_told(tiny_warehouse: Path, tmp_path: Path) -> None:
    db = tmp_path / "large.duckdb"
    shutil.copy(tiny_warehouse, db)
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql("UPDATE activations SET activation = 1e6 WHERE layer = 1 AND feature < 32")
    notes = delphi.export(db, tmp_path / "out").notes
    assert any("too large for float16 and infinite there" in note for note in notes)


# ------------------------------------------------------------------------------------------------ parquet


@pytest.fixture(scope="module")
def two_runs(hostile_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hostile warehouse with rows of another run, which is not current."""
    db = tmp_path_factory.mktemp("two") / "two.duckdb"
    shutil.copy(hostile_warehouse, db)
    with Warehouse(db, writable=True) as warehouse:
        for table in ("runs", "saes", "tokens", "activations"):
            warehouse.sql(f"INSERT INTO {table} SELECT * REPLACE (77 AS run_id) FROM {table} LIMIT 3")
        warehouse.sql("UPDATE runs SET is_current = run_id <> 77")
    return db


@pytest.fixture(scope="module")
def tables(two_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("parquet", two_runs, tmp_path_factory.mktemp("parquet"))


def test_parquet_files_hold_the_rows_of_every_table_of_the_current_run(tables: Path, hostile_warehouse: Path) -> None:
    manifest = json.loads((tables / "manifest.json").read_text(encoding="utf-8"))
    assert any("other runs of the file are left out" in note for note in manifest["notes"])
    names = {table["name"] for table in manifest["tables"]}
    assert {"efas", "features", "alignments", "activations", "tokens", "energies", "runs", "models", "saes"} <= names
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{hostile_warehouse}' AS w (READ_ONLY)")
        connection.execute("USE w")
        for table in manifest["tables"]:
            columns = ", ".join(f'"{column["name"]}"' for column in table["columns"])
            read = f"read_parquet('{tables}/{table['name']}/**/*.parquet', hive_partitioning = true)"
            ours, theirs = f"SELECT {columns} FROM {read}", f"SELECT {columns} FROM {table['name']}"
            (differing,) = connection.execute(
                f"SELECT count(*) FROM (({ours} EXCEPT ALL {theirs}) UNION ALL ({theirs} EXCEPT ALL {ours}))"
            ).fetchone()
            assert differing == 0, table["name"]
            assert table["rows"] == connection.execute(f"SELECT count(*) FROM {table['name']}").fetchone()[0]
            assert all(column["comment"] for column in table["columns"]), table["name"]
            assert not any("HUGEINT" in column["type"] for column in table["columns"])
    by_layer = pl.read_parquet(f"{tables}/energies/**/*.parquet", hive_partitioning=True)
    assert set(by_layer["layer"]) == {None, 1, 2}
    assert set(by_layer.filter(pl.col("layer").is_null())["energy"]) == {"nll"}


def test_parquet_takes_no_features(tiny_warehouse: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --features"):
        parquet.export(tiny_warehouse, tmp_path, ["all"])


# ------------------------------------------------------------------------------------------------ whatever texts hold


def test_hostile_texts_come_back_as_they_were(hostile_warehouse: Path, tmp_path: Path) -> None:
    expected = set(map(visible, HOSTILE))
    for form in ("saedashboard", "neuronpedia"):
        written(form, hostile_warehouse, tmp_path / form, ["top:6"])
    seen: set[str] = set()
    for path in (tmp_path / "saedashboard").glob("*/batch-*.json"):
        raw = path.read_text(encoding="utf-8")
        assert "\\u0000" not in raw
        for feature in json.loads(raw)["features"]:
            seen.update(feature["pos_str"], *(activation["tokens"] for activation in feature["activations"]))
    assert seen == expected
    seen.clear()
    for path in (tmp_path / "neuronpedia").rglob("*.jsonl*"):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert b"\\u0000" not in raw
        assert b"\x00" not in raw
        for row in lines(path):  # as many lines as rows, whatever a text holds
            seen.update(row.get("tokens", ()), row.get("pos_str", ()))
    assert seen == expected
    written("delphi", hostile_warehouse, tmp_path / "delphi")
    assert all(row["path"].endswith('"</script>\n') for row in lines(tmp_path / "delphi" / "contexts.jsonl"))


@settings(max_examples=40)
@given(st.recursive(st.text() | st.text("\\u0\x00"), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_comes_back_and_has_no_nul(content: Any) -> None:
    def shown(value: Any) -> Any:
        if isinstance(value, str):
            return visible(value)
        if isinstance(value, dict):
            return {shown(key): shown(inner) for key, inner in value.items()}
        return [shown(inner) for inner in value]

    text = as_json(content)
    assert "\\u0000" not in text
    assert "\n" not in text
    assert json.loads(text) == shown(content)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_the_shortest_digits_are_the_same_float(values: list[float]) -> None:
    told = dashboards.shortest(values)
    assert np.float32(told).tolist() == np.float32(values).tolist()
    assert all(len(repr(a)) <= len(repr(float(b))) for a, b in zip(told, values, strict=True))


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_the_same_warehouse_gives_the_same_bytes_and_the_manifest_knows_them(
    form: str, two_runs: Path, tables: Path, tmp_path: Path
) -> None:
    words = None if form == "parquet" else ["top:8"]
    first = by_name(tables if form == "parquet" else written(form, two_runs, tmp_path / "a", words))
    second = by_name(written(form, two_runs, tmp_path / "b", words))
    assert first == second
    manifest = json.loads(first.pop("manifest.json"))
    assert (manifest["format"], manifest["is_complete"]) == (form, True)
    assert {
        (file["path"], file["bytes"], file["sha256"]) for file in manifest["files"]
    } == {(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in first.items()}  # fmt: skip
    assert str(two_runs.parent) not in json.dumps(manifest)


def test_an_export_replaces_an_earlier_one_of_whatever_format(tiny_warehouse: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written("saedashboard", tiny_warehouse, out, ["top:3"])
    written("delphi", tiny_warehouse, out)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "contexts.jsonl", "latents"}
    assert by_name(out) == by_name(written("delphi", tiny_warehouse, tmp_path / "new"))


def test_a_folder_of_somebody_elses_is_left_alone(tiny_warehouse: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for form in WRITERS:
        with pytest.raises(UsageError, match=r"holds 'thesis.tex', which no export wrote"):
            written(form, tiny_warehouse, tmp_path)
        with pytest.raises(UsageError, match="is a file, not a folder"):
            written(form, tiny_warehouse, tmp_path / "thesis.tex")
    assert by_name(tmp_path) == {"thesis.tex": b"mine"}


# ------------------------------------------------------------------------------------------------ the command


def test_every_format_is_a_command(tiny_warehouse: Path, tmp_path: Path) -> None:
    assert all(EXPORTS[form] == f"{write.__module__}:{write.__name__}" for form, write in WRITERS.items())
    for form in ("saedashboard", "neuronpedia", "delphi"):
        words = ["--features", "top:2"]
        done = CliRunner().invoke(
            app, ["export", "--db", str(tiny_warehouse), "-f", form, str(tmp_path / form), *words]
        )
        assert done.exit_code == 0, done.output
        assert all(Path(line).exists() for line in done.stdout.splitlines())
        assert done.stderr.strip()


def test_a_warehouse_without_a_run_is_a_sentence(tmp_path: Path) -> None:
    db = tmp_path / "new.duckdb"
    Warehouse(db, writable=True).close()
    for write in WRITERS.values():
        with pytest.raises(ElwError, match="holds no run"):
            write(db, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
