"""`elw export --format saedashboard`: batch JSON as SAEDashboard's Neuronpedia runner writes it (sae-dashboard 0.8.0).

A folder for each SAE, named MODEL_SET_HOOK_WIDTH: batch-N.json with 128 features each, run_settings.json, and
skipped_indexes.json with the features that are in no batch. Fields as in its NeuronpediaDashboardFeature; what elw has
no numbers for is as the runner leaves it when that part is switched off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from energy_lens.reports.exports.dashboards import STRONGEST, Dashboard, Shown, export_dashboards
from energy_lens.reports.exports.source import Sae, Source
from energy_lens.warehouse.export_folder import Folder
from energy_lens.warehouse.exporting import Exported

#: Features of a batch, the runner's own number.
BATCH = 128

#: The runner's threshold of log10 density, which it writes and does not use.
LOG_SPARSITY = -6

NOTES = (
    "tokens_N.pt is left out, a pickle: the batches hold the texts of all contexts that they show.",
    "neuron_alignment_*, correlated_*, decoder_weights_dist and vector are empty, as the runner leaves them when they "
    "are switched off: a warehouse holds no weights.",
)


def export(db: Path, output: Path, features: Sequence[str] | None = None) -> Exported:
    """Write features of the current run as SAEDashboard's batches; as `export_dashboards` does."""
    return export_dashboards(db, output, "saedashboard", features, NOTES, _write_sae)


def set_name(sae: Sae) -> str:
    """The set of SAEs that this one is of: res-elw, mlp-elw, …"""
    return f"{sae.site}-elw"


def _write_sae(
    folder: Folder, source: Source, sae: Sae, features: Sequence[int], dashboards: Iterator[Dashboard]
) -> str:
    place = f"{source.model_id}_{set_name(sae)}_{sae.hook_name}_{sae.d_sae}"
    of_run = {
        "n_prompts_total": source.facts["n_contexts"], "n_tokens_in_prompt": source.facts["context_length"],
        "dataset": source.data_set,
    }  # fmt: skip
    about = {"model_id": source.model_id, "layer": sae.layer, "sae_set": set_name(sae), "sae_id_suffix": None}
    number = 0
    while batch := list(islice(dashboards, BATCH)):
        content = {**about, "features": [feature_of(dashboard) | of_run for dashboard in batch]}
        folder.write_json(f"{place}/batch-{number}.json", content)
        number += 1
    folder.write_json(
        f"{place}/skipped_indexes.json",
        {
            "model_id": source.model_id, "layer": str(sae.layer), "sae_set": set_name(sae),
            "log_sparsity": LOG_SPARSITY, "skipped_indexes": sorted(set(range(sae.d_sae)) - set(features)),
        },
    )  # fmt: skip
    folder.write_json(f"{place}/run_settings.json", _settings(source, sae))
    return place


def feature_of(dashboard: Dashboard) -> dict[str, Any]:
    """A NeuronpediaDashboardFeature, but for what is the same of every feature."""
    return {
        "feature_index": dashboard.feature,
        **EMPTY_TABLES,
        "neg_str": [token for token, _ in dashboard.suppressed],
        "neg_values": [logit for _, logit in dashboard.suppressed],
        "pos_str": [token for token, _ in dashboard.promoted],
        "pos_values": [logit for _, logit in dashboard.promoted],
        "frac_nonzero": dashboard.density,
        "freq_hist_data_bar_values": dashboard.activation_bars.centres,
        "freq_hist_data_bar_heights": dashboard.activation_bars.heights,
        "logits_hist_data_bar_heights": dashboard.logit_bars.heights,
        "logits_hist_data_bar_values": dashboard.logit_bars.centres,
        "decoder_weights_dist": [],
        "activations": list(map(_activation, dashboard.examples)),
        "vector": [],
    }


#: Tables of neighbours among neurons, and of features by Pearson's correlation, which elw has none of.
EMPTY_TABLES: dict[str, list[float]] = {
    f"{table}_{column}": []
    for table, columns in {
        "neuron_alignment": ("indices", "values", "l1"),
        "correlated_neurons": ("indices", "l1", "pearson"),
        "correlated_features": ("indices", "l1", "pearson"),
    }.items()
    for column in columns
}


def bins(example: Shown) -> tuple[float, float, float]:
    """(bin_min, bin_max, bin_contains) of an example's group: -1, the largest activation and -1 for the strongest."""
    if example.interval == STRONGEST:
        return -1, example.high, -1
    return example.low, example.high, example.share


def _activation(example: Shown) -> dict[str, Any]:
    low, high, share = bins(example)
    return {
        "bin_min": low, "bin_max": high, "bin_contains": share, "tokens": example.text.tokens,
        "values": example.values, "qualifying_token_index": example.position,
    }  # fmt: skip


def _settings(source: Source, sae: Sae) -> dict[str, Any]:
    """A NeuronpediaRunnerConfig, with null where the runner would have needed to be told."""
    facts = source.facts
    return {
        "sae_set": set_name(sae), "sae_path": sae.sae_sha256, "outputs_dir": "", "np_sae_id_suffix": None,
        "np_set_name": None, "from_local_sae": True, "sparsity_threshold": LOG_SPARSITY,
        "huggingface_dataset_path": source.data_set, "n_prompts_total": facts["n_contexts"],
        "n_tokens_in_prompt": facts["context_length"], "n_prompts_in_forward_pass": 32, "n_features_at_a_time": BATCH,
        "quantile_feature_batch_size": 64, "start_batch": 0, "end_batch": None, "n_quantiles": 5,
        "top_acts_group_size": 20, "quantile_group_size": 5, "use_dfa": False, "model_dtype": facts["dtype"],
        "sae_dtype": "float32", "model_id": source.model_id, "layer": sae.layer, "sae_device": None,
        "activation_store_device": None, "model_device": None, "model_n_devices": None, "use_wandb": False,
        "shuffle_tokens": False, "prefix_str": None, "suffix_str": None, "ignore_positions": None,
        "prepend_bos": facts["has_bos"], "ignore_high_activation_norm_multiple": None, "hf_model_path": None,
        "use_transcoder": sae.hook_name_out is not None, "use_skip_transcoder": False, "use_clt": False,
        "clt_layer_idx": None, "clt_dtype": "", "clt_weights_filename": "", "sae_converter_name": None,
    }  # fmt: skip
