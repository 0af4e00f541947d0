"""The report's tables: which columns of which answer a reader sees, under which heading and with how many digits."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from energy_lens.reports.formatting import (
    NOTHING,
    Cell,
    Foreign,
    Tokens,
    count,
    fixed,
    interval,
    listing,
    noise_count,
    percent,
    probability,
    significant,
    visible,
)
from energy_lens.reports.queries import Answer, Row


@dataclass(frozen=True)
class Column:
    """One column: its heading, and the cell of a row."""

    heading: str
    cell: Callable[[Row], Cell]
    is_text: bool = False  #: set to the left, as numbers are to the right


@dataclass(frozen=True)
class Table:
    """A table ready to be set."""

    query: str  #: name of the query whose rows it shows
    headings: list[str]
    is_text: list[bool]
    rows: list[list[Cell]]
    is_total: list[bool]  #: rows that sum up the others


def _table(
    answer: Answer,
    columns: list[Column],
    chosen: Callable[[Row], bool] = lambda row: True,
    total: Callable[[Row], bool] = lambda row: False,
) -> Table:
    rows = [row for row in answer.rows if chosen(row)]
    return Table(
        query=answer.name,
        headings=[column.heading for column in columns],
        is_text=[column.is_text for column in columns],
        rows=[[column.cell(row) for column in columns] for row in rows],
        is_total=[total(row) for row in rows],
    )


def _counted(heading: str, column: str) -> Column:
    return Column(heading, lambda row: count(row[column]))


def _decimal(heading: str, column: str, digits: int = 3) -> Column:
    return Column(heading, lambda row: fixed(row[column], digits))


def _digits(heading: str, column: str) -> Column:
    return Column(heading, lambda row: significant(row[column]))


def _share(heading: str, column: str) -> Column:
    return Column(heading, lambda row: percent(row[column]))


_ENERGY = Column("Energy", lambda row: Foreign(row["energy"]), is_text=True)
_LAYER = Column("Layer", lambda row: "all" if row["layer"] is None else str(row["layer"]))
#: As _LAYER, in a query that says where a lens is worse than a uniform guess.
_CALIBRATED_LAYER = Column(
    "Layer", lambda row: f"{row['layer']} (uncalibrated)" if row["is_uncalibrated"] else _LAYER.cell(row)
)
_CATEGORY = Column("Category", lambda row: "all" if row["category"] is None else Foreign(row["category"]), is_text=True)


#: What grows with a dose, and along what, in a table's words.
_MEASURES = {"delta_edited": "size of ΔE, edited tokens", "delta_total": "size of ΔE", "kl": "KL"}
_ALONG = {"feature": "features", "isotropic": "isotropic", "covariance": "by covariance", "decoder": "other features"}


def _edit(row: Row) -> str:
    return str(row["kind"]) if row["value"] is None else f"{row['kind']} {row['value']:g}"


def _all_layers(row: Row) -> bool:
    return row["layer"] is None


def _all_categories(row: Row) -> bool:
    return row["category"] is None


def _energies(run: Row) -> list[tuple[str, str]]:
    """The run's energies with their units."""
    return list(zip(run["energies"], run["energy_units"], strict=True))


def run_facts(answers: Mapping[str, Answer]) -> list[tuple[str, Cell]]:
    """What was run, as pairs of a name and a value."""
    run = answers["run"].rows[0]
    blocks = f"{run['n_layers']} blocks of width {run['d_model']}, vocabulary {count(run['vocabulary_size'])}"
    return [
        ("Model", Foreign(model_name(run["model"]))),
        ("Architecture", Foreign(run["architecture"] or "unknown")),
        (
            "Size",
            f"{count(run['n_parameters'])} parameters, {blocks}" if run["n_parameters"] else blocks,
        ),
        ("Weights", f"sha256 {run['model_sha256'][:16]}"),
        ("Hooked layers", listing(run["layers"])),
        ("Energies", Foreign(listing([f"{energy} ({units})" for energy, units in _energies(run)]))),
        ("Contexts", f"{run['context_length']} tokens{', the first of them BOS' if run['has_bos'] else ''}"),
        ("Precision", Foreign(run["dtype"])),
        ("Seed", str(run["seed"])),
        ("Documents", count(run["n_documents"])),
        ("Tokens", f"{count(run['ingested_tokens'])} ingested of {count(run['planned_tokens'])} planned"),
        ("Statistics", f"over {count(run['stats_tokens'])} tokens"),
        ("Run", f"{run['run_id']}, begun {run['created_at']:%Y-%m-%d %H:%M} UTC with elw {run['elw_version']}"),
    ]


def commands(answers: Mapping[str, Answer]) -> list[str]:
    """The commands that give this run and this report; PATH, FILE and DIR are the reader's own."""
    run = answers["run"].rows[0]
    ingest = ["elw ingest PATH --db FILE", f"--model {shlex.quote(visible(model_name(run['model'])))}"]
    if not run["has_shipped_saes"]:
        ingest.append("--sae DIR")
    ingest += [
        f"--layers {','.join(map(str, run['layers']))}",
        f"--energies {','.join(run['energy_words'])}",
        f"--context {run['context_length']}",
        f"--dtype {run['dtype']}",
        f"--seed {run['seed']}",
    ]
    if run["has_bos"]:
        ingest.append("--bos yes")
    if run["ingested_tokens"] < run["planned_tokens"]:
        ingest.append(f"--max-tokens {run['ingested_tokens']}")
    return [" ".join(ingest), "elw report --db FILE --output report/"]


def model_name(model: str) -> str:
    """A model's name, or the last part of its folder: a reader has no use for the path on another machine."""
    return model.rstrip("/").rsplit("/", 1)[-1] if model.startswith(("/", "~", ".")) else model


def _hook(row: Row) -> Foreign:
    """What an SAE reads, and what a transcoder makes up of it."""
    return Foreign(" > ".join(name for name in (row["hook_name"], row["hook_name_out"]) if name))


def tables(answers: Mapping[str, Answer]) -> dict[str, Table]:
    """Every table of the report, by the name its templates use."""
    return {
        "saes": _table(
            answers["saes"],
            [
                _LAYER,
                Column("Hook", _hook, is_text=True),
                _counted("Features", "d_sae"),
                _counted("k", "k"),
                _decimal("FVU", "fvu"),
                _decimal("FVU, macro", "fvu_macro"),
                _decimal("Cosine", "cosine"),
                _decimal("L0", "l0", 1),
                _share("Dead", "dead_share"),
                _decimal("CE recovered", "ce_recovered_mean"),
                _counted("Firing here", "n_firing"),
                Column("sha256", lambda row: Foreign(row["sae_sha256"][:12]), is_text=True),
            ],
        ),
        "corpus": _table(
            answers["corpus"],
            [
                _CATEGORY,
                _counted("Documents", "n_documents"),
                _counted("Read", "n_documents_read"),
                _counted("Tokens planned", "planned_tokens"),
                _counted("Tokens ingested", "ingested_tokens"),
                _counted("Dropped tails", "dropped_tokens"),
            ],
            total=_all_categories,
        ),
        "inclusion": _table(
            answers["inclusion"],
            [
                _LAYER,
                _counted("Tokens", "n_tokens"),
                _counted("Included", "n_included"),
                _share("Share", "share_included"),
                _counted("First token", "n_first_token"),
                _counted("BOS", "n_bos"),
                _counted("Massive norm", "n_massive_norm"),
                _counted("Special token", "n_special_token"),
                _counted("No next token", "n_no_next_token"),
                _counted("Counted by the test", "n_counted"),
            ],
        ),
        "alignment": _table(
            answers["alignment_by_layer"],
            [
                _ENERGY,
                _CALIBRATED_LAYER,
                _counted("Tested", "n_tested"),
                _counted("q_specific < 0.05", "n_specific"),
                _counted("All layers at once", "n_specific_at_once"),
                _decimal("Their |score|, median", "median_specific"),
                _decimal("Their |cosine|, median", "cosine_specific"),
                _counted("q_value < 0.05", "n_significant"),
                _counted("q_documents < 0.05", "n_significant_documents"),
                Column("Score, 5 % to 95 %", lambda row: interval(row["score_q05"], row["score_q95"])),
                _counted("Supports", "n_supports"),
                _counted("Opposes", "n_opposes"),
            ],
            chosen=lambda row: row["gradient"] == "decoder",
            total=_all_layers,
        ),
        **{
            f"top_{'control' if is_control else 'signal'}:{energy}": _top_features(
                answers["top_features"], energy, is_control
            )
            for energy in answers["run"].rows[0]["energies"]
            for is_control in (False, True)
        },
        "replication": _table(
            answers["replication"],
            [
                _ENERGY,
                _LAYER,
                _counted("Features", "n_features"),
                _decimal("Spearman", "spearman", 2),
                _decimal("by chance, below", "spearman_noise", 2),
                _counted("q_specific < 0.05 in A", "n_found"),
                _counted("tested in B", "n_retested"),
                _counted("same sign in B", "n_same_sign"),
                _counted("and p_specific < 0.05 in B", "n_confirmed"),
                _decimal("Selected size", "selected_size"),
                _decimal("Replicated size", "replicated_size"),
                _share("Ratio", "replicated_share"),
                _decimal("Var(z_A − z_B)/2", "z_variance", 2),
                _decimal("of z_null", "z_null_variance", 2),
            ],
            total=_all_layers,
        ),
        "mutual_information": _table(
            answers["mutual_information"],
            [
                _ENERGY,
                _LAYER,
                _counted("Features", "n_features"),
                _decimal("Bits, mean", "mean", 4),
                _decimal("of the mates", "mates_mean", 4),
                _decimal("Excess, mean", "excess_mean", 4),
                _decimal("Excess, 95 %", "excess_q95", 4),
                _decimal("Largest excess", "excess_largest", 4),
                _decimal("Spearman with |score|", "spearman", 2),
            ],
            total=_all_layers,
        ),
        "concept_classes": _table(
            answers["concept_classes"],
            [
                Column("Class", lambda row: row["class"], is_text=True),
                _counted("Features", "n_features"),
                _share("Share", "share_of_features"),
                _counted("By other labels", "n_by_other_labels"),
                _decimal("Mean EFAS", "mean_efas", 4),
                _decimal("Mean |EFAS|", "mean_abs_efas", 4),
                _counted("q_specific < 0.05", "n_significant"),
                _counted("Ablated", "n_ablated"),
                _decimal("Mean shift (nats)", "mean_shift", 4),
                _decimal("Mean KL (nats)", "mean_kl", 4),
            ],
        ),
        "intervention_effects": _table(
            answers["intervention_effects"],
            [
                Column("Edit", _edit, is_text=True),
                Column("Feature", lambda row: f"{row['layer']}:{row['feature']}"),
                Column("Class", lambda row: row["class"] or "–", is_text=True),
                _counted("Edited", "n_edited"),
                _decimal("ΔE (nats)", "delta", 2),
                _decimal("First order", "first_order", 2),
                _decimal("Predicted", "predicted", 2),
                _decimal("ΔE a token", "delta_per_token", 3),
                Column("95 % interval", lambda row: interval(row["delta_low"], row["delta_high"])),
                _decimal("Isotropic", "isotropic_per_token", 3),
                _decimal("By covariance", "covariance_per_token", 3),
                _decimal("Other feature", "decoder_per_token", 3),
                _decimal("KL a token", "kl_per_token", 3),
                _share("Top changed", "top_changed_edited"),
            ],
        ),
        "confirmed_roles": _table(
            answers["confirmed_roles"],
            [
                _LAYER,
                Column("Role", lambda row: row["role"], is_text=True),
                _counted("Ablated", "n_ablated"),
                _counted("Predicted sign", "n_same_sign"),
                _share("Share with it", "share_same_sign"),
                _counted("With an interval", "n_intervals"),
                _counted("Confirmed", "n_confirmed"),
                _share("Share confirmed", "share_confirmed"),
                _counted("Contradicted", "n_contradicted"),
            ],
            total=_all_layers,
        ),
        "predictor_validation": _table(
            answers["predictor_validation"],
            [
                _LAYER,
                Column("Predictor", lambda row: row["predictor"], is_text=True),
                _counted("Backward passes", "backward_passes"),
                _counted("Features", "n_features"),
                _decimal("Spearman", "spearman", 2),
                Column("95 % interval", lambda row: interval(row["spearman_low"], row["spearman_high"])),
                _decimal("Pearson", "pearson", 2),
                _decimal("Per token", "per_token", 2),
                _decimal("Partial", "partial", 2),
                _decimal("Transfer", "transfer", 2),
                Column("95 % interval", lambda row: interval(row["transfer_low"], row["transfer_high"])),
                _decimal("Disattenuated", "disattenuated", 2),
                Column("95 % interval", lambda row: interval(row["disattenuated_low"], row["disattenuated_high"])),
            ],
        ),
        "dose_exponents": _table(
            answers["dose_exponents"],
            [
                _LAYER,
                Column("Edit", _edit, is_text=True),
                Column("What grows", lambda row: _MEASURES[row["measure"]], is_text=True),
                Column("Along", lambda row: _ALONG[row["along"]], is_text=True),
                _counted("Features", "n_features"),
                _decimal("p", "p", 2),
                Column("95 % interval", lambda row: interval(row["p_low"], row["p_high"], 2)),
                _decimal("Feature − control", "difference", 2),
                Column("95 % interval", lambda row: interval(row["difference_low"], row["difference_high"], 2)),
            ],
        ),
        "attractor_settings": _table(
            answers["attractor_settings"],
            [
                _LAYER,
                Column("Dictionary", lambda row: row["dictionary"], is_text=True),
                _digits("β", "beta"),
                _counted("Tokens", "n_tokens"),
                _counted("Attractors", "n_attractors"),
                _decimal("Entropy (nats)", "entropy", 2),
                _share("Largest basin", "largest_share"),
                _digits("Perplexity, start", "perplexity_start"),
                _digits("and end", "perplexity"),
                _share("Nearest row kept", "argmax_agreement"),
                _share("Unconverged", "unconverged_share"),
            ],
        ),
        "attractors": _table(
            answers["attractors"],
            [
                _LAYER,
                Column("Attractor", lambda row: str(row["attractor"])),
                Column("Type", lambda row: row["type"], is_text=True),
                _counted("Tokens", "n_tokens"),
                _digits("Perplexity", "perplexity"),
                Column("First feature", lambda row: str(row["feature"])),
                _decimal("Weight", "weight", 2),
                Column("fires most on", lambda row: Foreign(", ".join(row["top_tokens"] or [])), is_text=True),
                Column("Label", lambda row: Foreign(row["label"]) if row["label"] else "–", is_text=True),
                _decimal("Lift", "label_lift", 1),
            ],
        ),
        "attractor_shifts": _table(
            answers["attractor_shifts"],
            [
                Column("Patch", lambda row: row["kind"], is_text=True),
                _LAYER,
                Column("Read at", lambda row: str(row["later_layer"])),
                Column("Place", lambda row: row["place"], is_text=True),
                Column("Direction", lambda row: row["control"] or "feature", is_text=True),
                _counted("Features", "n_features"),
                _counted("Settled tokens", "n_settled"),
                _share("Basin changed", "p_changed"),
                _decimal("1 − cosine", "distance", 3),
                _decimal("ΔE_H", "delta_network_energy", 4),
            ],
        ),
        "energy": _table(
            answers["layer_energy"],
            [
                _ENERGY,
                Column("Layer", lambda row: "output" if row["layer"] is None else str(row["layer"])),
                _CATEGORY,
                _counted("Tokens", "n_tokens"),
                _digits("Mean", "mean"),
                _digits("SD", "sd"),
                _digits("5 %", "q05"),
                _digits("Median", "median"),
                _digits("95 %", "q95"),
                _digits("Uniform guess", "uniform_guess"),
                _decimal("KL to output", "kl_to_output", 2),
            ],
            total=_all_categories,
        ),
        "null_control": _table(
            answers["null_control"],
            [
                _ENERGY,
                _LAYER,
                _counted("Tested", "n_tested"),
                _share("|z_null| > 1.96", "share_rejected"),
                _share("|z| > 1.96, true pairing", "share_rejected_true_pairing"),
                _share("p < 0.05, reference row", "share_reference_rejected"),
                _share("p_specific < 0.05, own row", "share_specific"),
                _decimal("|score|, median", "median_score"),
                _decimal("|cosine|, median", "median_cosine"),
            ],
            total=_all_layers,
        ),
        "noise_floor": _table(
            answers["noise_floor"],
            [
                _ENERGY,
                Column("Correlated over", _band, is_text=True),
                _counted("Features", "n_features"),
                _decimal("RMS of r", "root_mean_square", 2),
                _decimal("of noise", "noise_root_mean_square", 2),
                _decimal("Largest |r|", "largest", 2),
                _decimal("noise reaches", "noise_largest", 2),
                _counted("|r| > 0.7", "n_above"),
                Column("noise gives", lambda row: noise_count(row["noise_above"])),
                _counted("and q_specific < 0.05", "n_above_specific"),
            ],
            total=lambda row: row["from_tokens"] is None,
        ),
    }


def _band(row: Row) -> str:
    """Which tokens a row of the noise floor correlates over."""
    if row["counted"] == "all":
        return "all included"
    if row["from_tokens"] is None:
        return "active"
    if row["to_tokens"] is None:
        return f"active, {row['from_tokens']} on"
    return f"active, {row['from_tokens']} to {row['to_tokens']}"


def _top_features(answer: Answer, energy: str, is_control: bool) -> Table:
    """Top features of an energy: the three tests, the sizes, and what ablation is predicted to do.

    A control shows its dose slope, and no roles: all of its features support it. What no row has (curvature, a loss to
    hold attribution against, a role) has no column; intervals and z are in raw_results.json.
    """
    rows = [row for row in answer.rows if row["energy"] == energy and row["is_control"] == is_control]

    def given(column: Column, name: str) -> list[Column]:
        return [column] if any(row[name] is not None for row in rows) else []

    of_control = [_decimal("score_active", "score_active")]
    of_signal = [
        Column("q_value", lambda row: probability(row["q_value"])),
        Column("q_documents", lambda row: probability(row["q_documents"])),
        _digits("Attribution", "attribution"),
        *given(_digits("with curvature", "attribution_curvature"), "attribution_curvature"),
        _digits("per active token", "attribution_per_token"),
        *given(Column("of the loss", lambda row: percent(row["attribution_share"], 2)), "attribution_share"),
        *given(Column("Role", lambda row: row["role"] or NOTHING, is_text=True), "role"),
    ]
    return _table(
        answer,
        [
            Column("Feature", lambda row: f"{row['layer']}:{row['feature']}"),
            Column("Fires most on", lambda row: Tokens(tuple(row["top_tokens"] or ())), is_text=True),
            _counted("Active tokens", "n_active"),
            _decimal("Score", "score"),
            _decimal("Cosine", "cosine"),
            _decimal("t_specific", "t_specific", 1),
            Column("q_specific", lambda row: probability(row["q_specific"])),
            *(of_control if is_control else of_signal),
        ],
        chosen=lambda row: row["energy"] == energy and row["is_control"] == is_control,
    )
