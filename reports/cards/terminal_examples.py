"""A card's examples in, lines of text out: the activation as the background, the gradient as the colour of the text.

The token itself is underlined, or between « and » without colours; its numbers stand before the text in either case.
"""

from __future__ import annotations

from collections.abc import Iterator

from energy_lens.reports.cards.heat import BLACK, BLUE, RED, SCALE, Line, Span, around, fitted, marked, shown, step
from energy_lens.reports.cards.layout import padded, paragraph
from energy_lens.reports.cards.reading import Card, Example
from energy_lens.reports.formatting import count, fixed, significant
from energy_lens.warehouse.terminal import cut, visible

#: Columns of a context's number with the position in it, of an activation and of a gradient, before the text.
_PLACE, _NUMBER = 11, 9


def example_lines(card: Card, columns: int) -> Iterator[Line]:
    """The examples of a card, the strongest first, then those of each interval of activations."""
    if not card.examples:
        return
    largest = card.facts["max_activation"]
    sizes = [abs(g) for example in card.examples for g in example.gradients if g is not None]
    strong = max(sizes, default=0) / 2
    yield []
    yield [Span("Contexts", is_bold=True)]
    for line in paragraph(_legend(card), columns):
        yield [Span(line, is_faint=True)]
    yield _heading()
    for number in sorted({example.interval for example in card.examples}):
        examples = card.examples_of(number)
        yield [Span(cut(_interval(examples[0], number), columns), is_faint=True)]
        for example in examples:
            yield _example(example, largest, strong, columns)


def _legend(card: Card) -> str:
    energy, first = visible(card.energy), card.examples[0]
    return (
        f"a: activation, the background from 0 to {significant(card.facts['max_activation'])}; g: decoder gradient of "
        f"{energy}, the text: blue above 0 (more of the feature lowers {energy}), red below 0, bold from half of the "
        f"largest here; « » or underlined: the token. elw context {first.context_id} --token {first.position} shows "
        f"more of {first.context_id}@{first.position}."
    )


def _heading() -> Line:
    return [Span(f"{padded('context', _PLACE)}{padded('a', _NUMBER, True)}{padded('g', _NUMBER, True)}")]


def _interval(example: Example, number: int) -> str:
    if number == 0:
        return f"the strongest of {count(example.n_tokens)}"
    n = example.n_tokens
    return f"activation {significant(example.low)} to {significant(example.high)}: {count(n)} token{'s' * (n != 1)}"


def _example(example: Example, largest: float, strong: float, columns: int) -> Line:
    place = padded(f"{example.context_id}@{example.position}", _PLACE)
    g = example.gradients[example.mark]
    numbers = padded(significant(example.activation), _NUMBER, True)
    numbers += padded("–" if g is None else fixed(g, 4), _NUMBER, True)
    head = f"{place}{numbers}  "
    texts = [shown(text) for text in example.texts]
    texts[example.mark] = marked(texts[example.mark])
    first, end = around(texts, example.mark, columns - len(head))
    spans = [
        _token(texts[i], example.activations[i], example.gradients[i], largest, strong, i == example.mark)
        for i in range(first, end)
    ]
    return [Span(head), *fitted(spans, columns - len(head))]


def _token(
    text: str, activation: float, gradient: float | None, largest: float, strong: float, is_marked: bool
) -> Span:
    if not activation:
        return Span(text)
    background = SCALE[step(activation, 0, largest, len(SCALE)) or 0]
    return Span(text, background, _colour(gradient), _is_strong(gradient, strong), is_marked=is_marked)


def _colour(gradient: float | None) -> int:
    if gradient is None or gradient == 0:
        return BLACK
    return BLUE if gradient > 0 else RED


def _is_strong(gradient: float | None, strong: float) -> bool:
    return gradient is not None and abs(gradient) >= strong > 0
