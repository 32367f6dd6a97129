"""Words and shapes that must not come back, in pages, docstrings, comments, help texts and messages.

`python tests/unit/test_words.py` prints what is found in these places.
The reasons, and the words to use: docs/glossary.md and CONTRIBUTING.md.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PAGES = ("README.md", "CHANGES.md", "SECURITY.md", "CONTRIBUTING.md", "docs")
CODE = ("ownpod",)

CHECKED = PAGES + CODE
"""The places that the test checks."""

COMPONENT = "the component: the node, the API, the sweep, the worker, the client"

INSTEAD = {
    # Subjects: a component instead of a pronoun.
    r"\b(whoever|whom|nobody|somebody|someone|anybody|anyone|everybody)\b": COMPONENT,
    r"\bwho (waits?|asks?|calls?|has|is|are|may|can|knows?|runs?|reads?|sends?|did|could)\b": COMPONENT,
    r"(?<!\w)Who\b": COMPONENT,
    r"\bwhat (it|they|he) (has|have|had|is|are) (at|begun|taken)\b": "running jobs, started runs",
    r"\bwhat it (has|had)\b": "running jobs, started runs, its settings",
    # Verbs of a conversation instead of a protocol's.
    r"\b(is|are|was|were|be|been|being) told\b": "is notified, is sent, is reported",
    r"\b(tells|telling)\b": "shows, returns, reports, notifies",
    r"\bhear(s|d)? (of|from)\b": "is notified of, receives from",
    r"\b(say|says|said) (so|that|it|of|how|what|which|why)\b": "reports, states, shows",
    r"\blook(s|ed|ing)? (at|after|into)\b": "checks, reads, probes, monitors",
    r"\b(stand|stands|standing|stood) in\b": "is in, is stored in",
    r"\b(go|goes|gone|going|went) on with\b": "adopts (a run), continues",
    r"\bin (its |their )?hands?\b(?! over)": "running, assigned",
    r"\bis at it\b": "is running it",
    r"\banew\b": "again; publishes again",
    # Words of the glossary that have another name now.
    r"\b(hand|hands|handed|handing) (\w+ )?back\b": "requeue",
    r"\b(give|gives|given|gave) (\w+ )?back\b": "requeue, return, release",
    r"\bgoes back to its queue\b": "is requeued",
    r"\b(take|takes|taken|took|taking) (\w+ )?over\b": "adopt (a run), acquire (a worker)",
    r"\b(take|takes|taken|took) up\b(?! to\b)": "requeue, start",
    r"\bgates?\b": "breaker",
    r"\bdispatchers?\b": "supervisor",
    r"\bheld slots?\b": "lingering slot",
    # Shapes of sentences.
    r"(?<!\w)So (old|long|many|much|often)\b": "Maximum age in seconds, maximum number, ...",
    r"(?<!\w)Not (by|before|from|for|with|here|there)\b": "a whole sentence with a subject and a verb",
    r"(?<!\w)(Else|Nor) \w": "Otherwise",
    r"\bor not any more\b": "a whole sentence",
    r"\bas (it|they) (is|are|was|were) none of\b": "because",
    r"\bfor ever\b": "indefinitely, without an end",
}

SHAPES = {
    # A space may be the end of a line, in a comment with its indentation and `#`.
    re.compile(shape.replace(" ", r"[^\S\n]*\n?[^\S\n]*(?<=\s)")): instead
    for shape, instead in INSTEAD.items()
}

LITERAL = re.compile(r"```.*?```|``[^`]+``|`[^`\n]*\n?[^`\n]*`|https?://\S+|\]\([^)]*\)", re.DOTALL)
"""Code, links: no prose."""

PROSE = re.compile(r"[A-Za-z]+,?\s+[a-z]+\s+[a-z]+")
"""A string that has three words in a row is a message."""


def blank(found: re.Match[str]) -> str:
    """As long as before, and on the same lines."""
    return re.sub(r"[^\n]", "\0", found[0])


def of_page(text: str) -> str:
    """A page of Markdown without its indented code."""
    return re.sub(r"(?m)^    .*$", blank, text)


def of_lua(text: str) -> str:
    """Only the comments."""
    return re.sub(r"(?m)^.*?(--+|$)", blank, text)


def of_python(text: str) -> str:
    """Only the comments and the strings that have words."""
    lines = [line.encode() for line in text.split("\n")]
    shown = [bytearray(len(line)) for line in lines]

    def show(line: int, start: int, end: int | None) -> None:
        shown[line - 1][start:end] = lines[line - 1][start:end]

    # Without its strings, because a comment begins at the first # outside of them. The tokens of all files take a second.
    code = [bytearray(line) for line in lines]
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.JoinedStr | ast.Constant) and node.end_lineno):
            continue
        if isinstance(node, ast.Constant) and not isinstance(node.value, str | bytes):
            continue
        words = (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and PROSE.search(node.value)
        )
        for line in range(node.lineno, node.end_lineno + 1):
            start = node.col_offset if line == node.lineno else 0
            end = node.end_col_offset if line == node.end_lineno else len(lines[line - 1])
            code[line - 1][start:end] = bytes(end - start)
            if words:
                show(line, start, end)
    for number, line in enumerate(code, 1):
        if (start := line.find(b"#")) >= 0:
            show(number, start, None)
    return "\n".join(line.decode() for line in shown)


READ = {".md": of_page, ".py": of_python, ".lua": of_lua}


def found_in(text: str, suffix: str) -> Iterator[tuple[int, str, str]]:
    """Line, words found, what to write instead."""
    prose = LITERAL.sub(blank, READ[suffix](text)).replace("\0", " ")
    if suffix == ".py":
        prose = re.sub(r"(?m)^( *)#", r"\1 ", prose)
    # Each shape takes as long as the text, most of which is blank.
    prose = re.sub(" {2,}", " ", prose)
    for shape, instead in SHAPES.items():
        for match in shape.finditer(prose):
            yield prose.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead


def files(places: tuple[str, ...]) -> Iterator[Path]:
    for place in places:
        path = ROOT / place
        yield from sorted(path.rglob("*")) if path.is_dir() else filter(Path.exists, [path])


def findings(places: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {words!r}; instead: {instead}"
        for path in files(places)
        if path.suffix in READ
        for line, words, instead in sorted(found_in(path.read_text(), path.suffix))
    ]


def test_no_page_and_no_text_of_the_code_has_a_word_that_is_not_to_come_back():
    found = findings(CHECKED)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("suffix", "text", "line"),
    [
        (".md", "Text.\nThe request\nwho waits.", 3),
        (".md", "Text.\n\nNot by a timer: by an event.", 3),
        (".py", "x = 1\n# The run is gone\n# on with.\n", 2),
        (".py", 'def f():\n    """Waits for\n    nobody."""\n', 3),
        (".py", 'raise Error(f"{x}: the gate of the node is closed")', 1),
        (".py", 'option(help="Jobs are handed back.")', 1),
        (".lua", "local x = 1 -- stands in the record", 1),
    ],
)
def test_a_word_is_found_with_its_line(suffix, text, line):
    assert [found[0] for found in found_in(text, suffix)] == [line]


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".md", "The service `dispatcher` starts:\n\n    chown nobody\n\n[the page](gate.md)"),
        (".md", "A gateway answers 502, and the owner hands over its runs."),
        (".py", 'gate = "gate"\nnobody = gate.dispatcher  # `gate`, ``dispatcher`` are old\n'),
        (".py", 'x = "stands"  # a\ny = 1\n# in the queue\n'),
        (".lua", "local gate = 'nobody here waits'"),
    ],
)
def test_code_and_other_words_are_no_finding(suffix, text):
    assert list(found_in(text, suffix)) == []


if __name__ == "__main__":
    everything = findings(PAGES + CODE)
    print("\n".join(everything))
    print(f"{len(everything)} findings", file=sys.stderr)
