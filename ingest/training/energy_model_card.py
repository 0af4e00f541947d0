"""A trained model in, its folder out: weights, tokenizer, loss curve, figures, and a card that says what it is.

FIGURES holds every number, for programs; README.md tells them to people, beside those of a second model where one is
named (a plain transformer that saw the same text). A card is written anew from the folders alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from energy_lens.errors import UsageError
from energy_lens.ingest.training.energy_model_descent import descent
from energy_lens.ingest.training.energy_model_evaluation import Loss
from energy_lens.ingest.training.energy_models import CURVE, Trained
from energy_lens.version import __version__
from energy_lens.warehouse.files import whole

FIGURES, CARD, BESIDE_CURVE = "figures.json", "README.md", "beside.loss.jsonl"

#: Points of a loss curve that a card shows.
SHOWN_POINTS = 10


def save_trained(trained: Trained, output: Path, scratch: Path, half: bool) -> None:
    """Write a trained model's folder; config.json, by which a model is known, comes last.

    scratch: a folder on the same disk; half: weights in float16.
    """
    place = scratch / "finished"
    place.mkdir(exist_ok=True)
    (place / FIGURES).write_text(json.dumps(_figures(trained, half), indent=1) + "\n", encoding="utf-8")
    (place / CURVE).write_text("".join(json.dumps(row) + "\n" for row in trained.curve), encoding="utf-8")
    trained.module.to(torch.float16 if half else torch.float32).save_pretrained(place)
    trained.tokenizer.save_pretrained(place)
    (place / CARD).write_text(_card(_read(place), None), encoding="utf-8")
    for file in sorted(place.iterdir(), key=lambda file: file.name == "config.json"):
        file.chmod(0o644)
        file.replace(output / file.name)


def write_card(folder: Path, beside: Path | None) -> Path:
    """Write the card of a folder anew, with the figures and the loss curve of another model beside its own.

    Raises UsageError for a folder that `save_trained` did not write, and for two that were measured on other text.
    """
    figures = _read(folder)
    other = None if beside is None else _read(beside)
    if other is not None and other["documents"]["test"] != figures["documents"]["test"]:
        raise UsageError(f"{beside} was measured on other documents than {folder}: name a model trained on the same.")
    card = folder / CARD
    with whole(card) as (scratch,):
        scratch.write_text(_card(figures, other), encoding="utf-8")
    if other is not None:
        kept = {name: value for name, value in other.items() if name != "curve"}
        with whole(folder / FIGURES, folder / BESIDE_CURVE) as (figures_file, curve_file):
            own = {name: value for name, value in figures.items() if name != "curve"}
            figures_file.write_text(json.dumps(own | {"beside": kept}, indent=1) + "\n", encoding="utf-8")
            curve_file.write_text("".join(json.dumps(row) + "\n" for row in other["curve"]), encoding="utf-8")
    return card


def _figures(trained: Trained, half: bool) -> dict[str, Any]:
    module, held_out = trained.module, trained.held_out
    named = dict(module.named_parameters())
    figures: dict[str, Any] = {
        "architecture": type(module).__name__,
        "parameters": sum(parameter.numel() for parameter in named.values()),
        "stored_as": "float16" if half else "float32",
        "options": asdict(trained.options),
        "training": {
            "tokens": trained.options.n_steps * trained.options.step_tokens,
            "distinct_tokens": trained.train_tokens,
            "seconds": round(trained.seconds),
            "began_from": trained.began_from,
        },
        "documents": {name: [document.sha256[:16] for document in part] for name, part in trained.documents.items()},
        "test_documents": [document.path for document in trained.documents["test"]],
        "versions": {"energy-lens": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    }
    if held_out is not None:
        figures["held_out"] = {
            name: _as_dict(loss) for name, loss in [*held_out.categories.items(), ("all", held_out.all)]
        }
    if not trained.options.plain and trained.test_contexts is not None:
        figures["descent"] = descent(module, trained.test_contexts)
    return figures


def _as_dict(loss: Loss) -> dict[str, float]:
    figures = {"nats_per_token": round(loss.nats_per_token, 4), "nats_per_byte": round(loss.nats_per_byte, 4)}
    return {"tokens": loss.tokens, "bytes": loss.bytes, **figures}


def _read(folder: Path) -> dict[str, Any]:
    """What `save_trained` kept, with the loss curve. Raises UsageError where it is not there."""
    try:
        figures: dict[str, Any] = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        lines = (folder / CURVE).read_text(encoding="utf-8").splitlines()
        return figures | {"curve": [json.loads(line) for line in lines]}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{folder} holds no {FIGURES} and {CURVE} of elw energy-model train ({type(error).__name__}): name the "
            "folder of a model that it trained."
        ) from error


# ------------------------------------------------------------------------------------------------ the card


def _card(figures: Mapping[str, Any], beside: Mapping[str, Any] | None) -> str:
    """Markdown on a model, with another beside it."""
    options, training = figures["options"], figures["training"]
    is_plain = options["plain"]
    kind = "plain transformer" if is_plain else "energy transformer"
    passes = training["tokens"] / training["distinct_tokens"]
    parts = [
        "---\npipeline_tag: text-generation\nlibrary_name: transformers\n---",
        f"# A small {kind}",
        f"{figures['parameters']:,} parameters, stored as {figures['stored_as']}: {_sizes(options)}. Trained by "
        f"`elw energy-model train` on {training['tokens']:,} tokens, {passes:.2g} passes over "
        f"{training['distinct_tokens']:,}, in {training['seconds'] / 3600:.1f} hours"
        + (", from the weights of an earlier training on." if training["began_from"] else "."),
    ]
    if not is_plain:
        parts += [_ENERGY, _USE]
    if "held_out" in figures:
        parts += ["## Losses on held-out documents", _losses(figures, beside)]
    parts += ["## Loss curve", _curve(figures["curve"], None if beside is None else beside["curve"])]
    if "descent" in figures:
        parts += ["## What the steps do", _descent(figures["descent"])]
    parts += ["## What to expect", _LIMITS]
    return "\n\n".join(parts) + "\n"


_ENERGY = """\
Its forward pass descends an energy: every step takes each token's residual x some way down one landscape E, which all
steps share, along −P·∂E/∂x with P positive semi-definite. E is a causal attention energy and one of memories (Hoover
et al. 2023, arXiv 2302.07253; Dehmamy, Hoover et al. 2025, arXiv 2512.16762); `layer` k is the residual after step k.
The formulas, and a bound under which no step raises E, are in `energy_lens/ingest/model/energy_landscape.py`."""

_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from energy_lens.ingest.model.energy_transformer import register

register()  # the class comes with energy-lens; nothing of this folder is run
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```"""

_LIMITS = """\
A model of this size, trained on a few million tokens, knows spelling, common words, the shape of code and little else.
It is made to be looked into, not to be asked. It reads English, code, regular expressions and mathematical text, as the
documents it was trained on are, and contexts of at most the length it was trained with."""


def _sizes(options: Mapping[str, Any]) -> str:
    if options["plain"]:
        return f"{options['steps']} blocks, contexts of {options['context_length']} tokens"
    return (
        f"width {options['width']}, {options['steps']} steps, {options['heads']} heads, {options['memories']:,} "
        f"memories, contexts of {options['context_length']} tokens"
    )


def _name(figures: Mapping[str, Any]) -> str:
    kind = "plain" if figures["options"]["plain"] else "energy"
    return f"{kind} transformer, {figures['parameters']:,} parameters, {figures['training']['tokens']:,} tokens"


def _losses(figures: Mapping[str, Any], beside: Mapping[str, Any] | None) -> str:
    """Nats per byte and per token, a row a category."""
    models = [figures] if beside is None else [figures, beside]
    rows = [
        [category, f"{loss['bytes']:,}"]
        + [
            f"{model['held_out'][category][name]:.4f}"
            for model in models
            for name in ("nats_per_byte", "nats_per_token")
        ]
        for category, loss in figures["held_out"].items()
    ]
    head = ["category", "bytes"] + ["nats/byte", "nats/token"] * len(models)
    names = "; ".join(f"columns {2 * i + 3} and {2 * i + 4}: {_name(model)}" for i, model in enumerate(models))
    return f"{_table(head, rows)}\n\n{names.capitalize()}. Documents are held out by the hash of their content."


def _curve(curve: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]] | None) -> str:
    """Points of the loss on select documents, nats per token, at equal numbers of tokens."""

    def measured(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        name = "select_nats_per_token"
        with_figure = {row["tokens"]: row[name] for row in rows if row[name] is not None}
        return with_figure or {row["tokens"]: row["train_nats_per_token"] for row in rows}

    own, other = measured(curve), measured(beside or ())
    places = sorted(own)
    kept = sorted({places[round(i * (len(places) - 1) / (SHOWN_POINTS - 1))] for i in range(SHOWN_POINTS)})
    head = ["tokens", "nats/token"] + ["the other"] * bool(beside)
    rows = [
        [f"{place:,}", f"{own[place]:.3f}"] + [f"{other[place]:.3f}" if place in other else ""] * bool(beside)
        for place in kept
    ]
    return f"On documents that decide nothing; every point is in {CURVE}.\n\n{_table(head, rows)}"


def _descent(rows: Sequence[Mapping[str, Any]]) -> str:
    table = _table(
        ["step", "η", "mean E before", "mean E after", "E falls", "proved to"],
        [
            [
                str(row["step"]),
                f"{row['size']:.3g}",
                *(f"{row[name]:.2f}" for name in ("energy_before", "energy_after")),
                *(f"{row[name]:.1%}" for name in ("falls", "proved")),
            ]
            for row in rows
        ],
    )
    return (
        "On held-out text, each token's E with the keys of that step held fixed: the share of tokens whose energy "
        f"falls, and the share for which η lies below the bound under which it must.\n\n{table}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
