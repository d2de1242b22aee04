"""The line of each value of a TOML document."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.jobs.toml_lines import Path, lines_of

DOCUMENT = '''# a comment = "no value"
store = "/mnt/x" # another
names = [
  "a",  # [table]
  'b', """c
# no comment \\" still c""",
  [1, 2],
]
when = 1979-05-27 07:32:00
"quoted key".'dotted' = {a = 1, b = {c = [true,
  false]}}

[keep]
daily = 7
[[sync]]
target = """
two lines"""
[[sync]]
target = \'\'\'x\'\'\'
[sync.more]
deep = -1.5
[[sync.list]]
x = ""
[[sync.list]]
x = ""
'''


def test_golden() -> None:
    assert lines_of(DOCUMENT) == {
        ("store",): 2,
        ("names",): 3,
        ("names", 0): 4,
        ("names", 1): 5,
        ("names", 2): 5,
        ("names", 3): 7,
        ("names", 3, 0): 7,
        ("names", 3, 1): 7,
        ("when",): 9,
        ("quoted key",): 10,
        ("quoted key", "dotted"): 10,
        ("quoted key", "dotted", "a"): 10,
        ("quoted key", "dotted", "b"): 10,
        ("quoted key", "dotted", "b", "c"): 10,
        ("quoted key", "dotted", "b", "c", 0): 10,
        ("quoted key", "dotted", "b", "c", 1): 11,
        ("keep",): 13,
        ("keep", "daily"): 14,
        ("sync",): 15,
        ("sync", 0): 15,
        ("sync", 0, "target"): 16,
        ("sync", 1): 18,
        ("sync", 1, "target"): 19,
        ("sync", 1, "more"): 20,
        ("sync", 1, "more", "deep"): 21,
        ("sync", 1, "list"): 22,
        ("sync", 1, "list", 0): 22,
        ("sync", 1, "list", 0, "x"): 23,
        ("sync", 1, "list", 1): 24,
        ("sync", 1, "list", 1, "x"): 25,
    }


def paths(value: Any, above: Path = ()) -> set[Path]:
    found = {above} if above else set()
    if isinstance(value, dict):
        return found.union(*(paths(each, (*above, key)) for key, each in value.items()))
    if isinstance(value, list):
        return found.union(*(paths(each, (*above, number)) for number, each in enumerate(value)))
    return found


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
KEYS = st.one_of(st.from_regex(r"\A[a-z0-9_-]{1,6}\Z"), TEXTS)
VALUES = st.recursive(
    st.one_of(st.integers(-9, 99), st.booleans(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)


def quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def written(value: Any) -> str:
    """As TOML, with line breaks and comments where there may be any."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{quoted(key)} = {written(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[ # ]\n" + ",\n".join(map(written, value)) + "\n]"
    return quoted(value)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4))
def test_every_value_has_its_line(tables: dict[str, dict[str, Any]]) -> None:
    """And that line has its key in it."""
    text = ""
    for table, values in tables.items():
        text += f"[ {quoted(table)} ]\n\n"
        text += "".join(f"{quoted(key)} = {written(value)} # x = 1\n" for key, value in values.items())
    assert tomllib.loads(text) == tables
    lines, found = text.split("\n"), lines_of(text)
    assert found.keys() == paths(tables)
    for path, line in found.items():
        if isinstance(path[-1], str):
            assert quoted(path[-1]) in lines[line - 1]
