"""A context, or a token of the vocabulary, in; the lines that a terminal shows of it out: heat lines and tables.

In a heat line the background of a token is its energy; without colours a bar stands below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from energy_lens.reports.cards.contexts import ContextRead, Energy, Stretch, TokenFacts, TokenRead
from energy_lens.reports.cards.heat import (
    BLACK,
    BLOCKS,
    SCALE,
    Line,
    Span,
    around,
    broken,
    fitted,
    marked,
    quoted,
    rendered,
    shown,
    step,
)
from energy_lens.reports.cards.layout import padded, paragraph, table
from energy_lens.reports.formatting import count, interval, listing, percent, plural, significant
from energy_lens.warehouse.terminal import cut, visible, width

#: Columns of a position before a line of text.
_POSITION = 6

#: Tokens before and behind an occurrence that are read for a line of it.
BEFORE, AFTER = 24, 16


# ------------------------------------------------------------------------------------------------ a context


def context_lines(context: ContextRead, columns: int, colours: bool, n_features: int = 10) -> list[str]:
    """A context as a heat line, and the features of the token that was asked for.

    n_features: of each layer that are shown, 0 for all.
    """
    return [rendered(line, colours) for line in _context(context, columns, colours, n_features)]


def _context(context: ContextRead, columns: int, colours: bool, n_features: int) -> Iterator[Line]:
    facts, text = context.facts, context.text
    name = f"Context {facts['context_id']}"
    last = facts["first_token"] + facts["n_tokens"] - 1
    yield [Span(name, is_bold=True), Span(cut(f"  {shown(facts['path'])}", columns - len(name)))]
    where = (
        f"category {visible(facts['category'])}, document {facts['document_id']}, its tokens "
        f"{count(facts['first_token'])} to {count(last)}"
    )
    values = [value for value in text.values if value is not None]
    mean = (
        f"{visible(context.energy.place)}: mean here {significant(sum(values) / len(values) if values else None)}, "
        f"of all tokens {significant(context.energy.mean)} {visible(context.energy.units)}"
    )
    yield from _faint([where, mean, heat_legend(context.energy, colours)], columns)
    yield []
    mark = None if context.token is None else context.token.token["position"]
    yield from _heat_block(text, context.energy, columns, colours, mark)
    if context.token is not None:
        yield []
        yield from _token(context.token, columns, n_features)


def heat_legend(energy: Energy, colours: bool) -> str:
    """What a heat line shows, in a sentence."""
    what = "background" if colours else "bar below a token"
    follows = "; a token's loss is that of what follows it" if energy.is_loss else ""
    return (
        f"{what}: {visible(energy.place)} from {significant(energy.low)} (5 % of the run's tokens are below) to "
        f"{significant(energy.high)} (95 %){follows}"
    )


def _faint(texts: Sequence[str], columns: int) -> Iterator[Line]:
    for text in texts:
        yield from ([Span(line, is_faint=True)] for line in paragraph(text, columns))


def _heat_block(text: Stretch, energy: Energy, columns: int, colours: bool, mark: int | None = None) -> Iterator[Line]:
    """All of a text, its lines with the position of their first token before them."""
    tokens = zip(text.texts, text.values, strict=True)
    spans = [
        _heated(marked(shown(token)) if i == mark else shown(token), value, energy, i == mark)
        for i, (token, value) in enumerate(tokens)
    ]
    for line in broken(spans, columns - _POSITION):
        yield [Span(f"{padded(str(line[0][0]), _POSITION - 2, True)}  ", is_faint=True), *(span for _, span in line)]
        if not colours:
            bars = (_bar(text.values[number], energy) * width(span.text) for number, span in line)
            yield [Span(f"{' ' * _POSITION}{''.join(bars)}")]


def _heated(text: str, value: float | None, energy: Energy, is_marked: bool) -> Span:
    place = step(value, energy.low or 0.0, energy.high or 0.0, len(SCALE))
    if place is None:
        return Span(text, is_marked=is_marked)
    return Span(text, SCALE[place], BLACK, is_marked=is_marked)


def _bar(value: float | None, energy: Energy) -> str:
    place = step(value, energy.low or 0.0, energy.high or 0.0, len(BLOCKS))
    return " " if place is None else BLOCKS[place]


# ------------------------------------------------------------------------------------------------ a token in it


def _token(read: TokenRead, columns: int, n_features: int) -> Iterator[Line]:
    token = read.token
    head = f"Token {token['position']}"
    kind = f", {visible(token['class'])}" if token["class"] else ""
    text = quoted(token["text"], columns - len(head) - width(kind) - 24)
    yield [Span(head, is_bold=True), Span(f"  {text}  id {token['vocabulary_id']}{kind}")]
    rows = [
        [visible(row["energy"]), "output" if row["layer"] is None else f"layer {row['layer']}",
         significant(row["value"]), visible(row["units"])]
        for row in read.values
    ]  # fmt: skip
    yield from ([Span(line)] for line in table(rows, "llrl", columns, flexible=3))
    yield []
    energy = visible(read.energy)
    legend = (
        f"a: activation; g: decoder gradient of {energy}; a·g: what ablating the feature here is predicted to add to "
        "it, to first order. One token has no test: elw feature says which features are told from noise."
    )
    yield from _faint([legend], columns)
    why = {row["layer"]: row["reason"] for row in read.layers if not row["included"]}
    for layer in sorted({row["layer"] for row in read.features} | set(why)):
        yield from _features_of(layer, why.get(layer), read, columns, n_features)


def _features_of(layer: int, reason: str | None, read: TokenRead, columns: int, n_features: int) -> Iterator[Line]:
    of_layer = [row for row in read.features if row["layer"] == layer]
    heading = f"Layer {layer}: {plural(len(of_layer), 'feature')} active" if reason is None else (
        f"Layer {layer}: left out of all statistics ({visible(reason)})"
    )  # fmt: skip
    yield [Span(cut(heading, columns), is_bold=True)]
    rows = [["feature", "a", "g", "a·g", "fires at", "class", "fires most on"]]
    kept = of_layer[: n_features or None]
    for row in kept:
        texts = " ".join(quoted(text, 12) for text in dict.fromkeys(row["top_tokens"] or ()))
        rows.append(
            [
                f"{layer}:{row['feature']}", significant(row["activation"]), _signed(row["g"]), _signed(row["product"]),
                percent(row["density"], 2), visible(row["class"] or "–"), texts,
            ]
        )  # fmt: skip
    if len(rows) > 1:
        yield from ([Span(line)] for line in table(rows, "lrrrrll", columns, flexible=6))
    if len(kept) < len(of_layer):
        yield [Span(f"{len(of_layer) - len(kept)} more: --rows 0 shows all", is_faint=True)]


def _signed(x: float | None) -> str:
    text = significant(x)
    return f"+{text}" if x is not None and x > 0 else text


# ------------------------------------------------------------------------------------------------ wherever it occurs


def token_lines(found: TokenFacts, columns: int, colours: bool) -> list[str]:
    """Where a token occurs, its mean energies, the features that fire there and some of its occurrences."""
    return [rendered(line, colours) for line in _vocabulary(found, columns, colours)]


def _vocabulary(found: TokenFacts, columns: int, colours: bool) -> Iterator[Line]:
    places = found.places
    ids = ", ".join(str(row["vocabulary_id"]) for row in found.spellings)
    head = f"Token {quoted(found.spellings[0]['text'], 40)}"
    yield [Span(head, is_bold=True), Span(cut(f"  id {ids}", columns - width(head)))]
    n, n_all = places["n_tokens"], places["n_all"]
    categories = listing([visible(category) for category in places["categories"]])
    where = (
        f"{count(n)} of {count(n_all)} tokens ({percent(n / n_all, 2)}), in {plural(places['n_contexts'], 'context')} "
        f"of {plural(places['n_documents'], 'document')}: {categories}"
    )
    yield from ([Span(line)] for line in paragraph(where, columns))
    yield []
    yield [Span("Its mean energies", is_bold=True)]
    yield from ([Span(line)] for line in table(_means(found), "llrlrl", columns, flexible=5))
    yield []
    yield [Span("Features that are active there most often", is_bold=True)]
    yield from ([Span(line)] for line in table(_firing(found), "lrrrrll", columns, flexible=6))
    yield []
    yield [Span(cut(f"Occurrences, from the most {visible(found.energy.place)} to the least", columns), is_bold=True)]
    yield from _faint([heat_legend(found.energy, colours)], columns)
    for example in found.examples:
        yield from _occurrence(example, found.energy, columns, colours)


def _means(found: TokenFacts) -> list[list[str]]:
    rows = [["energy", "layer", "mean", "95 % interval", "all tokens", ""]]
    for row in found.energies:
        low, high, other = row["mean_low"], row["mean_high"], row["mean_all"]
        told = _compared(row["mean"], low, high, other)
        rows.append(
            [
                visible(row["energy"]), "output" if row["layer"] is None else str(row["layer"]),
                significant(row["mean"]), interval(low, high, None), significant(other), told,
            ]
        )  # fmt: skip
    return rows


def _compared(mean: float, low: float | None, high: float | None, other: float | None) -> str:
    if other is None:
        return ""
    unlike = "above all tokens" if mean > other else "below all tokens"
    if low is None or high is None:
        return "too few documents"
    return "not told from all tokens" if low <= other <= high else unlike


def _firing(found: TokenFacts) -> list[list[str]]:
    rows = [["feature", "active at", "share", "overall", "mean a", "class", "fires most on"]]
    for row in found.firing:
        texts = " ".join(quoted(text, 12) for text in dict.fromkeys(row["top_tokens"]))
        rows.append(
            [
                f"{row['layer']}:{row['feature']}", f"{count(row['n_active'])} of {count(row['n_tokens'])}",
                percent(row["share"], 0), percent(row["density"], 1), significant(row["mean_activation"]),
                visible(row["class"] or "–"), texts,
            ]
        )  # fmt: skip
    return rows


def _occurrence(example: Stretch, energy: Energy, columns: int, colours: bool) -> Iterator[Line]:
    head = padded(f"{example.context_id}@{example.position}", 11)
    head += padded(significant(example.values[example.mark]), 8, True) + "  "
    room = columns - len(head)
    texts = [shown(text) for text in example.texts]
    texts[example.mark] = marked(texts[example.mark])
    first, end = around(texts, example.mark, room)
    spans = [_heated(texts[i], example.values[i], energy, i == example.mark) for i in range(first, end)]
    spans = fitted(spans, room)
    yield [Span(head), *spans]
    if not colours:
        bars = (_bar(example.values[first + i], energy) * width(span.text) for i, span in enumerate(spans))
        yield [Span(f"{' ' * len(head)}{''.join(bars)}")]
