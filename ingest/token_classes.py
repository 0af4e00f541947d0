"""Concept classes of tokens, by rules on the text of their context: texts of the tokens in order in, a class each out.

whitespace   nothing but white space.
regex        inside a span of regular-expression syntax. A span needs an element that means nothing else: an escape
             such as \\d, \\w, \\s or \\b that no letter follows (so no \\beta, no C:\\docs); a group (?:…), (?=…),
             (?P<n>…); a bracket class with a range, a negation or an escape, quantified or of letters ([a-z]*, [^"]+,
             [A-Za-z0-9]); an alternation in quantified brackets; .* or .+ that is no operator. From there it reaches
             to the first and last regex element of the same run without spaces and quotes, literals between them
             included.
number       inside a numeral that no letter or _ precedes: 42, 3.14, 1,000, 6e-5, 0xFF. Its point and commas are part.
code         inside an identifier with _ or digits or a capital in the middle, a dotted or called name, an e-mail's or
             URL's parts; or anything else in a line that reads as code (ends in ; { or }, has ==, ->, ::, &&, an
             assignment or call at its start, …). Comments are no code lines.
word         letters, apostrophes among them, that are none of the above; of single letters only a, A, I and O.
punctuation  ASCII signs that are none of the above.
other        what is left: letters alone, other alphabets' signs, parts of characters.

A token that spans several goes to regex if half of its characters are, else to where most of them are; ties go to the
earlier character. The rules read a context alone, so a span that its edge cuts may be missed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

CLASSES = ("regex", "number", "word", "code", "punctuation", "whitespace", "other")

_QUANTIFIER = r"(?:[*+?]\??|\{\d+(?:,\d*)?\}\??)"
_BRACKETS = r"\[\^?\]?(?:\\.|[^\]\\\s])+\]"

#: An element that means nothing else.
_STRONG = re.compile(
    rf"""
    (?<!\\)(?:\\\\)*\\[dDwWsSbB](?![A-Za-z])                      # \d, but no \delta and no \\d of an escaped backslash
    | \(\?(?:[:=!>|]|<[=!]|P?<\w+>|[imsux-]+[:)])                 # (?:  (?=  (?<!  (?P<name>  (?i)
    | \[\^(?:\\.|[^\]\\\s])+\]                                    # [^"]
    | \[(?:\\.|[^\]\\\s])*\\(?:[dDwWsSbBnrt.\]\[\\/-])(?:\\.|[^\]\\\s])*\]{_QUANTIFIER}   # [\w.-]+
    | \[(?:\\.|[^\]\\\s])*(?:a-z|A-Z|a-f|A-F)(?:\\.|[^\]\\\s])*\]                          # [A-Za-z0-9]
    | \[(?:[^\]\\\s])*\w-\w(?:[^\]\\\s])*\]{_QUANTIFIER}                                   # [0-9]+
    | (?<![\w)\]])\((?=[^()\s]*\|)[^()\s]+\)[*+?]                 # (a|b)*
    | (?<![\d\s.])\.[*+]\??(?![\s;*=\w])(?<!\w\.\*;)              # ".*"
    | (?<=["'/^(|])\.[*+]\??
    """,
    re.VERBOSE,
)

#: Any element that a span may begin or end with.
_ELEMENT = re.compile(rf"\\.|{_BRACKETS}{_QUANTIFIER}?|\(\?[:=!<>|P]*(?:\w+>)?|[()|^$.]{_QUANTIFIER}?|{_QUANTIFIER}")

#: What a span cannot leave: a run without spaces, and without quotes but those in brackets.
_RUN = re.compile(r"""(?:\[\^?[^\]\s]*\]|[^\s"'`])+""")

_NUMBER = re.compile(
    r"(?<![\w.])(?:0[xX][0-9a-fA-F]+|\d[\d_]*(?:[.,]\d+)*(?:[eE][+-]?\d+)?)|(?<![\w.)\]])\.\d+(?:[eE][+-]?\d+)?"
)

_IDENTIFIER = re.compile(
    r"""
    \b[A-Za-z]*_\w*\b | \b_\w+\b                                  # with _
    | \b[a-z]+[A-Z]\w*\b | \b[A-Z][a-z0-9]+[A-Z]\w*\b             # camelCase, PascalCase
    | \b[A-Za-z]+\d\w*\b                                          # x1, utf8
    | \b[A-Za-z_]\w*(?:(?:\.|::|->)[A-Za-z_]\w*)+\b(?:\(\))?      # os.path, std::string
    | \b[A-Za-z_]\w*\(\)                                          # main()
    | \b[a-z]+://[^\s"'<>)]+ | \b[\w.+-]+@[\w-]+\.[\w.]+\b        # a URL, an address
    | </?[A-Za-z][\w-]*(?:\s[^<>\n]*)?/?>                         # a tag
    """,
    re.VERBOSE,
)

_CODE_LINE = re.compile(
    r"""
    [;{}]\s*(?://.*|/\*.*|\#.*)?$ | ^\s*[}\])]+[;,)]*\s*$
    | ==|!=|->|=>|::|&&|\|\||\+\+|[-+*/|&^]=|:=|<<|>>
    | ^\s*\#\s*(?:include|define|if|ifdef|ifndef|endif|else|pragma|undef)\b
    | ^\s*(?:def|class|func|fn|function|struct|enum|interface|impl)\s+\w+\s*[({:<]
    | ^\s*(?:import|from|package|using|use)\s+[\w.:{}*]+(?:\s+(?:import|as)\s+.*)?;?$
    | ^\s*(?:if|elif|for|while|with|switch|except|catch)\b.*[:{]$ | ^\s*(?:else|try|finally)\s*[:{]
    | ^\s*(?:return|raise|throw|assert|print|yield|await|const|let|var|static|public|private|void|int|char|auto)\b
      \s*[\w"'({\[&*-]*(?:\s*[=(\[.,;{]|$)
    | ^\s*@[\w.]+(?:\(.*\))?$
    | ^\s*[A-Za-z_]\w[\w.\[\]"']*\s*(?:[-+*/|&]?=)\s*[^=\s]       # name = value
    | ^\s*[A-Za-z_][\w.]*\([^()]*(?:\([^()]*\))?[^()]*\)\s*[;{:,]?\s*$   # call(…)
    | ^\s*</?[A-Za-z!][^>]*>\s*$ | \w\[\w+\]\s*[=.;)] | \w\(\w*,\s*&?\w+[,)]
    """,
    re.VERBOSE | re.MULTILINE,
)

_COMMENT = re.compile(
    r"^\s*(?://|/\*|\*(?:\s|$)|\#(?!\s*(?:include|define|if|ifdef|ifndef|endif|else|pragma|undef)\b))"
)

_LONE_LETTER = re.compile(r"(?<![^\W_])(?<!['’])[^\W\d_](?![^\W_])(?!['’]\w)")

#: Bytes of a character that is split between tokens (`ingest.model.token_texts`).
_BYTE_CODES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")

#: Letters that are words alone.
_LETTER_WORDS = frozenset("aAIO")


def token_classes(texts: Sequence[str]) -> list[str]:
    """The class of each token of a context, of CLASSES."""
    texts = [_BYTE_CODES.sub("\N{REPLACEMENT CHARACTER}", text) for text in texts]
    text = "".join(texts)
    labels = _character_classes(text)
    result, start = [], 0
    for token_text in texts:
        spanned = labels[start : start + len(token_text)]
        start += len(token_text)
        counts = Counter(label for label in spanned if label != "whitespace")
        if not counts:
            result.append("whitespace")
        elif 2 * counts["regex"] >= counts.total():
            result.append("regex")
        else:
            result.append(counts.most_common(1)[0][0])  # of equal counts the one that came first
    return result


def _character_classes(text: str) -> list[str]:
    labels = [_of_character(character) for character in text]

    def paint(start: int, stop: int, name: str) -> None:
        for i in range(start, stop):
            if labels[i] != "whitespace":
                labels[i] = name

    for match in _LONE_LETTER.finditer(text):
        if match[0] not in _LETTER_WORDS:
            paint(*match.span(), "other")
    for match in re.finditer(r"(?<=\w)['’](?=\w)", text):  # don't
        paint(*match.span(), "word")
    for match in _IDENTIFIER.finditer(text):
        paint(*match.span(), "code")
    start = 0
    for line in text.splitlines(keepends=True):
        if not _COMMENT.match(line) and not _reads_as_prose(line) and _CODE_LINE.search(line.rstrip("\r\n")):
            paint(start, start + len(line), "code")
        start += len(line)
    for match in _NUMBER.finditer(text):
        paint(*match.span(), "number")
    for start, stop in _regex_spans(text):
        paint(start, stop, "regex")
    return labels


def _reads_as_prose(line: str) -> bool:
    """A long line of hardly anything but letters and spaces: a paragraph that mentions code."""
    return len(line) > 60 and sum(c.isalpha() or c == " " for c in line) > 0.92 * len(line)


def _of_character(character: str) -> str:
    if character.isspace():
        return "whitespace"
    if character.isalpha():
        return "word"
    return "punctuation" if character.isascii() and not character.isdigit() and character.isprintable() else "other"


def _regex_spans(text: str) -> Iterator[tuple[int, int]]:
    """Runs without spaces and quotes that hold a strong element, cut to their first and last element."""
    strong = [match.span() for match in _STRONG.finditer(text)]
    if not strong:
        return
    for run in _RUN.finditer(text):
        inside = [span for span in strong if span[0] < run.end() and span[1] > run.start()]
        if not inside:
            continue
        elements = [match.span() for match in _ELEMENT.finditer(text, run.start(), run.end())]
        start = min([inside[0][0], *(first for first, _ in elements)])
        stop = max([inside[-1][1], *(last for _, last in elements)])
        if text[stop - 1 : stop] == "." and stop == run.end() and inside[-1][1] < stop:
            stop -= 1  # a sentence ends here
        yield start, stop
