"""One SAE's measurement in, what SAEBench's core evaluation writes of it out, ready for JSON.

Keys and their order are those of `CoreEvalOutput` in SAEBench 0.6.0, `evals/core/eval_output.py`. What is absent or no
finite number is −1 there, and numbers of features are rounded to ten decimals. What the schema has no place for, and
what is done in another way than there, stands in `eval_result_unstructured`.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from energy_lens.analysis.current_run import RunFacts
from energy_lens.analysis.saebench.measuring import BATCH_CONTEXTS, Measurement
from energy_lens.analysis.saebench.sample import Sample
from energy_lens.analysis.saebench.weights import misc_figures, weight_figures
from energy_lens.errors import UsageError
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.evaluation import documents_seen
from energy_lens.ingest.sae.saving import saelens_config
from energy_lens.version import __version__

#: What SAEBench puts for a number that there is none of.
ABSENT = -1

#: Decimals of a feature's figures, as SAEBench rounds them.
DECIMALS = 10

#: The figures of each group that are taken over tokens.
GROUPS = {
    "reconstruction_quality": ("explained_variance", "explained_variance_legacy", "mse", "cossim"),
    "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l1"),
}

#: The figures of a feature, in the order of the schema.
OF_FEATURES = (
    "feature_density", "consistent_activation_heuristic", "encoder_bias", "encoder_norm", "encoder_decoder_cosine_sim",
    "max_decoder_cosine_sim", "max_encoder_cosine_sim",
)  # fmt: skip

#: In what the numbers differ from SAEBench's own; the last sentence is about SAEBench itself.
DIFFERENCES = (
    "The tokens are those of contexts that the warehouse's run read, each of one document, not those of a data set "
    "joined end to end; a context may be shorter than context_size.",
    "Left out beside special tokens: those of massive norm, more than ten times the layer's median, and the first "
    "token of a context that does not begin with BOS. They keep their residuals where x is replaced by its "
    "reconstruction; with_ablation puts 0 at every token, as SAEBench does.",
    "Sparsity, variance and densities are taken over the same batches as reconstruction.",
    "Encoder norms and biases are those of weights into which constant factors were folded.",
    "explained_variance and mse are computed as SAEBench 0.6.0 does it; conventional has what they are meant to be: "
    "1 - sum|x - x_hat|^2 / sum|x - mean x|^2, and the mean over tokens of |x - x_hat|^2.",
)


def core_results(sae: SparseAutoencoder, measurement: Measurement, sample: Sample, run: RunFacts) -> dict[str, Any]:
    """The file of one SAE. Equal measurements have the same eval_id; datetime_epoch_millis alone says when."""
    densities, of_weights = measurement.tokens.densities(), weight_figures(sae)
    details = {
        "feature_density": densities,
        "consistent_activation_heuristic": measurement.tokens.tokens_per_prompt(),
        **of_weights,
    }
    release, sae_id = names(sae, run)
    content = {
        "eval_type_id": "core",
        "eval_config": _config(sample, run),
        "eval_result_metrics": _metrics(sae, measurement, sample, misc_figures(densities, of_weights)),
        "eval_result_details": [
            {"index": i} | {name: _number(round(float(details[name][i]), DECIMALS)) for name in OF_FEATURES}
            for i in range(sae.d_sae)
        ],
        "sae_bench_commit_hash": f"none: measured by energy-lens-warehouse {__version__}",
        "sae_lens_id": sae_id,
        "sae_lens_release_id": release,
        "sae_lens_version": None,
        "sae_cfg_dict": _sae_config(sae, run),
        "eval_result_unstructured": _unstructured(sae, measurement, sample, run),
    }
    identity = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content, sort_keys=True))
    stamps = {"eval_id": str(identity), "datetime_epoch_millis": time.time_ns() // 1_000_000}
    first = {name: content.pop(name) for name in ("eval_type_id", "eval_config")}
    return {**first, **stamps, **content}


def names(sae: SparseAutoencoder, run: RunFacts) -> tuple[str, str]:
    """Release and id: those by which SAELens knows the SAE, where it was taken from there."""
    release, sae_id = (sae.metadata.get(key) for key in ("sae_lens_release", "sae_lens_id"))
    if all(isinstance(name, str) and name.isprintable() for name in (release, sae_id)):
        return str(release), str(sae_id)
    return f"elw-{Path(run.model).name}", sae.hook_name


def told(saes: Sequence[SparseAutoencoder], run: RunFacts) -> dict[str, Any]:
    """What the manifest of the folder says of the run."""
    of_saes = [{"layer": sae.layer, "sae_sha256": sae.sha256, "hook_name": sae.hook_name} for sae in saes]
    facts = {name: getattr(run, name) for name in ("run_id", "model_sha256", "context_length", "dtype")}
    return {"model": Path(run.model).name, **facts, "saes": of_saes}


def file_name(release: str, sae_id: str) -> str:
    """As SAEBench calls the file of an SAE."""
    return f"{release}_{sae_id}_eval_results.json".replace("/", "_")


def _config(sample: Sample, run: RunFacts) -> dict[str, Any]:
    n_batches = math.ceil(len(sample.contexts) / BATCH_CONTEXTS)
    computed = (
        "kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics", "featurewise_density_statistics",
        "featurewise_weight_based_metrics",
    )  # fmt: skip
    return {
        "model_name": run.model,
        "llm_dtype": run.dtype,
        "batch_size_prompts": BATCH_CONTEXTS,
        "n_eval_reconstruction_batches": n_batches,
        "n_eval_sparsity_variance_batches": n_batches,
        "dataset": f"contexts of run {run.run_id}",
        "context_size": run.context_length,
        **{f"compute_{what}": True for what in computed},
        "exclude_special_tokens_from_reconstruction": True,
        "verbose": False,
    }


def _metrics(
    sae: SparseAutoencoder, measurement: Measurement, sample: Sample, misc: dict[str, float]
) -> dict[str, dict[str, float]]:
    figures = measurement.tokens.figures()
    groups: dict[str, dict[str, float]] = {
        "model_behavior_preservation": measurement.behavior(),
        "model_performance_preservation": measurement.performance(),
        **{group: {name: figures[name] for name in of_group} for group, of_group in GROUPS.items()},
        "token_stats": dict.fromkeys(
            ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"), sample.n_tokens
        ),
        "misc_metrics": misc,
    }
    return {group: {name: _number(value) for name, value in of_group.items()} for group, of_group in groups.items()}


def _sae_config(sae: SparseAutoencoder, run: RunFacts) -> dict[str, Any] | None:
    """What SAELens says of an SAE, with what SAEBench looks for at the top; None for a kind that SAELens lacks."""
    try:
        config = saelens_config(sae)
    except UsageError:
        return None
    metadata = {name: value for name, value in config["metadata"].items() if name != "elw"}
    training = sae.metadata.get("training")
    n_tokens = training.get("tokens") if isinstance(training, dict) else None
    return {
        **config,
        "metadata": metadata,
        "model_name": metadata["model_name"] or run.model,
        "hook_name": sae.hook_name,
        "hook_layer": sae.layer,
        "hook_head_index": None,
        "context_size": run.context_length,
        **({"training_tokens": n_tokens} if n_tokens else {}),
    }


def _unstructured(sae: SparseAutoencoder, measurement: Measurement, sample: Sample, run: RunFacts) -> dict[str, Any]:
    return {
        "written_by": f"energy-lens-warehouse {__version__}, in the format of SAEBench 0.6.0",
        "run": {"run_id": run.run_id, "model": run.model, "model_sha256": run.model_sha256},
        "sae": {
            "sha256": sae.sha256,
            "reads": sae.hook_name,
            "writes": sae.site_out.hook_name,
        },
        "sample": {
            "contexts": len(sample.contexts),
            "seed": sample.seed,
            "contexts_of_the_run": sample.n_of_run,
            "contexts_seen_in_training": sample.n_seen,
            "seen_contexts_are_measured": sample.seen_are_in,
            "training_documents_known": documents_seen(sae) is not None,
        },
        "tokens": {
            "read": sample.n_tokens,
            "counted": measurement.tokens.n_tokens,
            "counted_in_losses": measurement.n_losses,
            "left_out": measurement.left_out,
        },
        "conventional": {name: _number(value) for name, value in measurement.tokens.conventional().items()},
        "differences": list(DIFFERENCES),
    }


def _number(value: float) -> float:
    """The value, or what stands for none."""
    return value if math.isfinite(value) else ABSENT
