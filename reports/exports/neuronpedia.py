"""`elw export --format neuronpedia`: the bundle that a Neuronpedia instance imports, a folder for each SAE.

    MODEL/LAYER-SET/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl
    MODEL/LAYER-SET/{features,activations,explanations}/batch-N.jsonl.gz       1,024 features a batch

Fields as in the classes of its utils (db_models). The importer takes its columns from a file's first line, so that
every line has the same keys. Ids are hashes of what a row is about: the same warehouse gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from energy_lens.reports.exports.dashboards import Dashboard, Shown, export_dashboards
from energy_lens.reports.exports.saedashboard import EMPTY_TABLES, bins, set_name
from energy_lens.reports.exports.source import Sae, Source
from energy_lens.version import __version__
from energy_lens.warehouse.export_folder import Folder
from energy_lens.warehouse.exporting import Exported

#: Features of a batch, as in the official exports.
BATCH = 1024

#: The user that rows belong to when nobody else is named; every instance has it.
CREATOR = "clkht01d40000jv08hvalcvly"

#: Tokens that an explanation counts up.
COUNTED_TOKENS = 5

NOTES = (
    "vector is empty and hasVector false: a warehouse holds no weights, and without them nothing can be steered.",
    "lossValues are nll in nats of each token that has a next one: the last of a context has none.",
    "Explanations count the tokens that a feature fires on; no language model wrote them, so that explanationModelName "
    "and typeName are null.",
    "Neuronpedia's importer reads its own bucket alone: a self-hosted instance has to be pointed at these files.",
)

Row = dict[str, Any]


def export(db: Path, output: Path, features: Sequence[str] | None = None) -> Exported:
    """Write features of the current run as Neuronpedia's bundle; as `export_dashboards` does."""
    return export_dashboards(db, output, "neuronpedia", features, NOTES, _write_sae)


def _write_sae(
    folder: Folder, source: Source, sae: Sae, features: Sequence[int], dashboards: Iterator[Dashboard]
) -> str:
    bundle = _Bundle(source, sae)
    for name, row in bundle.metadata().items():
        folder.write_lines(f"{bundle.place}/{name}.jsonl", [row])
    bundle.write_batches(folder, dashboards)
    return bundle.place


class _Bundle:
    """The rows about one SAE."""

    def __init__(self, source: Source, sae: Sae) -> None:
        self._source, self._sae = source, sae
        self._set = set_name(sae)
        self._id = f"{sae.layer}-{self._set}"
        self.place = f"{source.model_id}/{self._id}"
        #: Which feature a row is about, and whose it is: of each row with such a key.
        self._key = {"modelId": source.model_id, "layer": self._id}
        self._made = {"creatorId": CREATOR, "createdAt": source.facts["updated_at"]}

    # -------------------------------------------------------------------------------------------- what it belongs to

    def metadata(self) -> Mapping[str, Row]:
        """{file: its row}."""
        source, sae, made = self._source, self._sae, self._made
        release = f"elw-{source.model_id}"
        about = f"{source.model}, {source.corpus}, made with elw {__version__}"
        return {
            "release": {
                "name": release, "description": about, "creatorName": "elw", "creatorId": CREATOR,
                "visibility": "PUBLIC", "isNewUi": False, "featured": False, "descriptionShort": source.model,
                "urls": [], "creatorEmail": None, "creatorNameShort": "elw", "defaultSourceSetName": None,
                "defaultSourceId": None, "defaultUmapSourceIds": [], "createdAt": made["createdAt"],
            },
            "model": {
                "id": source.model_id, "instruct": "instruct" in source.model_id or source.model_id.endswith("-it"),
                "creatorId": CREATOR, "displayNameShort": source.model, "displayName": source.model, "tlensId": None,
                "dimension": source.facts["d_model"], "visibility": "PUBLIC", "defaultSourceSetName": None,
                "defaultSourceId": None, "inferenceEnabled": False, "layers": source.facts["n_layers"],
                "neuronsPerLayer": 0, "createdAt": made["createdAt"], "owner": "", "updatedAt": made["createdAt"],
                "website": None,
            },
            "sourceset": {
                "modelId": source.model_id, "name": self._set, "creatorId": CREATOR, "hasDashboards": True,
                "visibility": "PUBLIC", "description": f"{sae.site}, {sae.d_sae:,} features", "type": "",
                "creatorName": "elw", "urls": [], "creatorEmail": None, "releaseName": release,
                "defaultOfModelId": None, "defaultRange": 1, "defaultShowBreaks": True, "showDfa": False,
                "showCorrelated": False, "showHeadAttribution": False, "showUmap": False,
                "createdAt": made["createdAt"],
            },
            "source": {
                "id": self._id, "modelId": source.model_id, "setName": self._set, "creatorId": CREATOR,
                "hasDashboards": True, "inferenceEnabled": False, "inferenceHosts": [], "saelensConfig": None,
                "saelensRelease": None, "saelensSaeId": None, "hfRepoId": None, "hfFolderId": None,
                "visibility": "PUBLIC", "defaultOfModelId": None, "hasUmap": False, "hasUmapLogSparsity": False,
                "hasUmapClusters": False, "num_prompts": source.facts["n_contexts"],
                "num_tokens_in_prompt": source.facts["context_length"], "dataset": source.data_set or None,
                "notes": f"{sae.architecture} SAE at {sae.hook_name}, sha256 {sae.sae_sha256}; {about}",
                "createdAt": made["createdAt"],
            },
        }  # fmt: skip

    # -------------------------------------------------------------------------------------------- rows of features

    def write_batches(self, folder: Folder, dashboards: Iterator[Dashboard]) -> None:
        number = 0
        while batch := list(islice(dashboards, BATCH)):
            name = f"batch-{number}.jsonl.gz"
            folder.write_lines(f"{self.place}/features/{name}", map(self._feature, batch))
            shown = (
                self._activation(dashboard, place) for dashboard in batch for place in range(len(dashboard.examples))
            )
            folder.write_lines(f"{self.place}/activations/{name}", shown)
            folder.write_lines(f"{self.place}/explanations/{name}", map(self._explanation, batch))
            number += 1

    def _feature(self, dashboard: Dashboard) -> Row:
        return {
            **self._key, "index": str(dashboard.feature), **self._made,
            "maxActApprox": dashboard.max_activation, "hasVector": False, "vector": [], "vectorLabel": None,
            "vectorDefaultSteerStrength": dashboard.max_activation,
            "hookName": self._sae.hook_name_out or self._sae.hook_name,
            "topkCosSimIndices": dashboard.neighbours, "topkCosSimValues": dashboard.cosines,
            **EMPTY_TABLES,
            "neg_str": [token for token, _ in dashboard.suppressed],
            "neg_values": [logit for _, logit in dashboard.suppressed],
            "pos_str": [token for token, _ in dashboard.promoted],
            "pos_values": [logit for _, logit in dashboard.promoted],
            "frac_nonzero": dashboard.density,
            "freq_hist_data_bar_heights": dashboard.activation_bars.heights,
            "freq_hist_data_bar_values": dashboard.activation_bars.centres,
            "logits_hist_data_bar_heights": dashboard.logit_bars.heights,
            "logits_hist_data_bar_values": dashboard.logit_bars.centres,
            "decoder_weights_dist": [], "sourceSetName": self._set,
        }  # fmt: skip

    def _activation(self, dashboard: Dashboard, place: int) -> Row:
        example: Shown = dashboard.examples[place]
        low, high, share = bins(example)
        largest = max(example.values)
        return {
            "id": self._row_id("activation", dashboard.feature, place), "tokens": example.text.tokens,
            "index": str(dashboard.feature), **self._key, "maxValue": largest,
            "maxValueTokenIndex": example.values.index(largest), "minValue": min(example.values),
            "values": example.values, "dataSource": example.text.path, "dataIndex": str(example.context_id),
            "dfaValues": [], "dfaTargetIndex": None, "dfaMaxValue": None, **self._made,
            "lossValues": example.text.losses, "logitContributions": None, "binMin": low, "binMax": high,
            "binContains": share, "qualifyingTokenIndex": example.position, "zIndices": None, "zValues": None,
        }  # fmt: skip

    def _explanation(self, dashboard: Dashboard) -> Row:
        counted = ", ".join(f"{token!r} ({share:.0%})" for token, share in dashboard.tokens[:COUNTED_TOKENS])
        is_kept = dashboard.concept_class not in (None, "general")
        kind = f" Keeps to tokens of class {dashboard.concept_class}." if is_kept else ""
        return {
            "id": self._row_id("explanation", dashboard.feature), **self._key, "index": str(dashboard.feature),
            "description": f"fires on {counted}.{kind}", "authorId": CREATOR, "embedding": None,
            "triggeredById": None, "typeName": None, "explanationModelName": None,
            "notes": f"Counted by elw {__version__}: the tokens it fires on most often, with their share of its active "
            "tokens. No language model wrote this.",
            "createdAt": self._made["createdAt"],
        }  # fmt: skip

    def _row_id(self, *words: object) -> str:
        """c and 24 hexadecimal digits: of the run, the SAE and what the row is about."""
        about = (self._source.facts["identity"], self._sae.sae_sha256, *words)
        return "c" + hashlib.sha256(":".join(map(str, about)).encode()).hexdigest()[:24]
