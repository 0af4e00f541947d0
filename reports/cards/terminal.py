"""A feature's card in, the lines that a terminal shows of it out: plain text, painted where colours are wanted.

Every line fits the width that is given. A line that shows a number which cannot be told from noise says so itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from energy_lens.reports.cards.heat import Line, Span, fewer, quoted, rendered, shown, sparkline
from energy_lens.reports.cards.layout import beside, padded, paragraph, table
from energy_lens.reports.cards.reading import Card, Window
from energy_lens.reports.cards.terminal_examples import example_lines
from energy_lens.reports.cards.verdicts import of_attribution, of_doses, of_halves, of_interval, of_score
from energy_lens.reports.formatting import count, fixed, interval, percent, plural, probability, significant
from energy_lens.warehouse.terminal import cut, visible, width

Row = Mapping[str, Any]

#: Narrower than this no line of numbers is whole.
NARROWEST = 80

#: What is read of examples for a card on a terminal.
WINDOW = Window(before=24, after=16, n_top=5, n_each=2)

#: Neighbours by each measure, attractors, and interventions with their controls that are shown.
N_NEIGHBOURS, N_ATTRACTORS, N_INTERVENTIONS = 5, 5, 4

#: Predictions with curvature, the best first.
CURVED = ("blended", "aligned", "norm_curvature")

#: What intervention_effects calls a direction of its own, by control; the first is the feature itself.
_DIRECTIONS = {None: "the feature", "isotropic": "isotropic", "covariance": "covariance", "decoder": "other row"}


def card_lines(card: Card, columns: int = NARROWEST, colours: bool = False) -> list[str]:
    """The whole card, each line at most so many columns wide."""
    return [rendered(line, colours) for line in _lines(card, columns)]


def _lines(card: Card, columns: int) -> Iterator[Line]:
    yield from _head(card, columns)
    sections: Sequence[tuple[str, Callable[[Card, int], Iterable[str]]]] = (
        ("", _histograms),
        ("", _tokens),
        (f"Scores: decoder gradient, {_within_all(card)}", _scores),
        ("The same on each half of the documents", _halves),
        ("Predicted: what ablating it adds to an energy over all tokens, to first order", _attributions),
        ("Neighbours", _neighbours),
        ("Measured: nats a token edited, beside control directions of the same norm", _interventions),
        ("Attractors of the layer", _attractors),
    )
    for heading, section in sections:
        if lines := [line for line in section(card, columns) if line is not None]:
            yield []
            if heading:
                yield [Span(cut(heading, columns), is_bold=True)]
            yield from ([Span(line)] for line in lines)
    yield from example_lines(card, columns)


# ------------------------------------------------------------------------------------------------ what it is


def _head(card: Card, columns: int) -> Iterator[Line]:
    facts = card.facts
    name = f"Feature {card.name}"
    hook = visible(facts["hook_name"])
    if facts["hook_name_out"] != facts["hook_name"]:
        hook += f" to {visible(facts['hook_name_out'])}"
    yield [Span(name, is_bold=True), Span(cut(f"  {hook}, {visible(facts['architecture'])}", columns - len(name)))]
    fires = (
        f"fires at {count(facts['n_active'])} of {count(facts['n_tokens'])} tokens ({percent(facts['density'], 2)}); "
        f"activation: mean {significant(facts['mean_activation'])}, largest {significant(facts['max_activation'])}"
    )
    yield from ([Span(line)] for line in paragraph(fires, columns))
    yield from ([Span(line)] for line in paragraph(_class(card), columns))


def _class(card: Card) -> str:
    rows = card.parts["classes"]
    name = card.facts["class"]
    if name is None:
        return "class: too few tokens to test"
    assigned = next((row for row in rows if row["is_assigned"] and row["class"] == name), None)
    if assigned is None:
        return "class: general; that it keeps to any class of tokens is not told from noise"
    return (
        f"class: {visible(name)}, {percent(assigned['share'], 0)} of its tokens"
        + (f" (control: {percent(assigned['mates_share'], 0)})" if assigned["mates_share"] is not None else "")
        + f", q {probability(assigned['q_value'])}"
    )  # fmt: skip


def _histograms(card: Card, columns: int) -> Iterator[str]:
    parts = (("activations", "activation_histogram"), ("logits", "logit_histogram"))
    rows = [(label, row) for label, part in parts for row in card.parts[part]]
    lows = [significant(row["low"]) for _, row in rows]
    for (label, row), low in zip(rows, lows, strict=True):
        bars = sparkline(fewer(row["counts"], columns - 30))
        yield f"{label:11}  {padded(low, max(map(width, lows)), True)} {bars} {significant(row['high'])}"


def _tokens(card: Card, columns: int) -> Iterator[str]:
    each = (columns - 4) // 3

    def block(heading: str, rows: Iterable[tuple[str, str]]) -> list[str]:
        lines = []
        for text, number in rows:
            room = each - width(number) - 1
            lines.append(f"{padded(quoted(text, room), room)} {number}")
        return [heading, *lines]

    fires = [(row["text"], f"{count(row['n_active'])} of {count(row['n_tokens'])}") for row in card.parts["tokens"]]
    blocks = [block("Fires on", fires)]
    for direction, heading in (("promoted", "Promotes, logits"), ("suppressed", "Suppresses, logits")):
        of_direction = [row for row in card.parts["logits"] if row["direction"] == direction]
        if of_direction:
            blocks.append(block(heading, [(row["text"], fixed(row["logit"], 2)) for row in of_direction]))
    yield from beside(
        blocks if len(blocks) == 3 else [*blocks, ["Its row is not written into the residual"], []], columns
    )


# ------------------------------------------------------------------------------------------------ scores


def _within_all(card: Card) -> str:
    scores = card.scores_of("decoder")
    return (
        f"over {count(scores[0]['n_tokens'])} tokens of {plural(scores[0]['n_documents'], 'document')}"
        if scores
        else ""
    )


def _energy_name(name: str) -> str:
    return cut(visible(name), 10)


def _scores(card: Card, columns: int) -> Iterator[str]:
    rows = [
        [
            _energy_name(row["energy"]), fixed(row["score"]), interval(row["ci_low"], row["ci_high"]),
            fixed(row["z"], 1), probability(row["q_specific"]), probability(row["q_documents"]), of_score(row).words,
        ]
        for row in card.scores_of("decoder")
    ]  # fmt: skip
    if rows:
        heads = ["energy", "score", "95 % interval", "z", "q_spec", "q_docs", ""]
        yield from table([heads, *rows], "lrlrrrl", columns, flexible=6)
        yield "q_spec: is it this direction? q_docs: would it hold in other documents?"


def _halves(card: Card, columns: int) -> Iterator[str]:
    by_energy: dict[str, dict[str, Row]] = {}
    for row in card.parts["halves"]:
        by_energy.setdefault(row["energy"], {})[row["half"]] = row
    null = {row["energy"]: row["z_null"] for row in card.scores_of("decoder")}
    rows = [["energy", "score A", "z", "score B", "z", "z_null", ""]]
    for energy, halves in by_energy.items():
        cells = [_energy_name(energy)]
        for half in ("A", "B"):
            row = halves.get(half, {})
            cells += [fixed(row.get("score")), fixed(row.get("z"), 1)]
        rows.append([*cells, fixed(null.get(energy), 1), of_halves(halves.get("A"), halves.get("B"))])
    if len(rows) > 1:
        yield from table(rows, "lrrrrrl", columns, flexible=6)
        yield "z_null: z with another context's gradients; chance alone leaves ±1.96 once in 20"


def _attributions(card: Card, columns: int) -> Iterator[str]:
    rows = [
        [
            _energy_name(row["energy"]), significant(row["attribution"]),
            interval(row["attribution_low"], row["attribution_high"], None), probability(row["q_attribution"]),
            of_attribution(row),
        ]
        for row in card.scores_of("decoder")
    ]  # fmt: skip
    if rows:
        yield from table([["energy", "sum of a·g", "95 % interval", "q", ""], *rows], "lrlrl", columns, flexible=4)


# ------------------------------------------------------------------------------------------------ what it goes with


def _neighbours(card: Card, columns: int) -> Iterator[str]:
    measures = (("decoder_cosine", "decoder cosine"), ("jaccard", "fires together, Jaccard"), ("pmi", "PMI, bits"))
    each = (columns - 4) // 3
    blocks = []
    for measure, heading in measures:
        lines = [heading]
        for row in card.parts["neighbours"]:
            if row["measure"] == measure and row["place"] <= N_NEIGHBOURS:
                head = f"{card.layer}:{row['neighbour']}"
                texts = list(dict.fromkeys(row["top_tokens"]))
                number = fixed(row["value"], 2)
                room = each - max(9, width(head)) - width(number) - 2
                text = quoted(texts[0], room) if texts and room > 0 else ""
                lines.append(f"{padded(head, max(9, width(head)))} {number} {text}")
        blocks.append(lines if len(lines) > 1 else [*lines, "none"])
    if any(len(block) > 1 for block in blocks):
        yield from beside(blocks, columns)


def _interventions(card: Card, columns: int) -> Iterator[str]:
    by_run: dict[int, list[Row]] = {}
    for row in card.parts["interventions"]:
        by_run.setdefault(row["intervention_id"], []).append(row)
    for number, rows in list(by_run.items())[-N_INTERVENTIONS:]:
        first = rows[0]
        value = "" if first["value"] is None else f" {significant(first['value'])}"
        yield cut(
            f"{visible(first['kind'])}{value} at {plural(first['n_edited'], 'token')} of "
            f"{plural(first['n_contexts'], 'context')}, intervention {number}",
            columns,
        )
        cells = [["", "measured", "95 % interval", "1st order", "curved", ""]]
        for row in rows:
            n = row["n_edited"] or 1
            curved = next((row[name] for name in CURVED if row[name] is not None), None)
            cells.append(
                [
                    _DIRECTIONS.get(row["control"], visible(str(row["control"]))),
                    fixed(row["delta_per_token"], 4), interval(row["delta_low"], row["delta_high"], 4),
                    fixed(row["first_order"] / n, 4),
                    "–" if curved is None else fixed(curved / n, 4),
                    of_interval(row["delta_low"], row["delta_high"], unknown="too few documents"),
                ]
            )  # fmt: skip
        yield from table(cells, "lrlrrl", columns, flexible=5)
        if doses := of_doses(row for row in card.parts["doses"] if row["intervention_id"] == number):
            yield cut(doses, columns)


def _attractors(card: Card, columns: int) -> Iterator[str]:
    rows = [["attractor", "type", "its weight", "falls there", "tokens", "label"]]
    for row in card.parts["attractors"][:N_ATTRACTORS]:
        place = row["place"] or 0
        rows.append(
            [
                str(row["attractor"]), visible(row["type"]), fixed(row["weights"][place - 1], 2) if place else "–",
                count(row["n_active"]), count(row["n_tokens"]),
                "no label confirmed" if row["label"] is None else shown(row["label"]),
            ]
        )  # fmt: skip
    if len(rows) > 1:
        yield from table(rows, "rlrrrl", columns, flexible=5)
