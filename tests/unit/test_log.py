"""Log lines: no value from a request can start a line, or control a terminal."""

import json
import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ownpod import log

CONTROLS = st.sampled_from("\n\r\t\x00\x0b\x0c\x1b\x1c\x7f\x85\x9b\u2028\u2029\u202e\u2066\ud800")
HOSTILE = st.text(st.one_of(CONTROLS, st.characters()), max_size=40)


def line_of(form, message, *args, error=None):
    exc_info = None
    if error is not None:
        try:
            raise error
        except type(error):
            exc_info = sys.exc_info()
    record = logging.LogRecord("ownpod", logging.INFO, "x.py", 1, message, args, exc_info)
    formatter = log.formatter("api", "json") if form == "json" else log.formatter("api", "text")
    return formatter.format(record)


@given(text=HOSTILE, as_argument=st.booleans())
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_record_is_one_line_of_printable_characters_whatever_a_caller_sends(
    form, text, as_argument
):
    line = line_of(form, "got %s", text) if as_argument else line_of(form, text)
    assert len(line.splitlines()) == 1
    line.encode("utf-8")
    assert not any(unicodedata.category(c) in {"Cc", "Zl", "Zp", "Cs"} for c in line)
    if form == "json":
        # Two halves of a pair that stand beside each other are one character in JSON.
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        assert json.loads(line)["message"] == (f"got {whole}" if as_argument else whole)


@given(text=HOSTILE)
def test_a_traceback_with_a_callers_text_begins_no_line_of_the_log(text):
    first, *more = line_of("text", "failed", error=ValueError(f"bad\n{text}")).split("\n")
    assert first.endswith("failed")
    assert "Traceback" in more[0]
    for line in more:
        assert line.startswith("  ")
        assert len(line.splitlines()) == 1


def test_plain_text_stays_as_it_is():
    assert log.escaped("job-1 → größer, 日本, 'x\\n'") == "job-1 → größer, 日本, 'x\\n'"
    assert log.escaped("a\nb\x1b[2J\u2028") == r"a\nb\x1b[2J\u2028"
