"""Exclude patterns: rules by example, golden selection, a naive matcher, git, and hostile patterns."""

from __future__ import annotations

import functools
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import FormatError, LimitExceeded
from formats.patterns import MAX_PATTERN, Pattern, PatternList, parse_exclude_file, parse_exclude_option
from tests.golden_data import GOLDEN, content


def matches(pattern: bytes, path: bytes, is_directory: bool = False) -> bool:
    return bool(PatternList([Pattern.parse(pattern)]).match(path, is_directory))


def no_problem(number: int, text: str) -> None:
    raise AssertionError(f"line {number}: {text}")


def test_fields() -> None:
    assert Pattern.parse(b"a/b") == Pattern(b"a/b", include=False, directories_only=False, anchored=False)
    assert Pattern.parse(b"!/a//") == Pattern(b"/a", include=True, directories_only=True, anchored=True)
    assert Pattern.parse(b"//") == Pattern(b"/", include=False, directories_only=True, anchored=True)
    assert Pattern.parse(b"!!x") == Pattern(b"!x", include=True, directories_only=False, anchored=False)


@pytest.mark.parametrize(
    "text", [b"*.o", b"/secret", b"!keep/", b"a/b/", b"!!x", b"//", b"\\!x", b"/", b"[!/]x", b"\xff\xfe"]
)
def test_line_is_what_parse_reads(text: bytes) -> None:
    pattern = Pattern.parse(text)
    assert Pattern.parse(pattern.line().removesuffix(b"\n")) == pattern
    assert pattern.line().endswith(b"\n")


def test_line_of_a_leading_exclamation_mark() -> None:
    pattern = parse_exclude_option(b"./!x")
    assert not pattern.include
    again = Pattern.parse(pattern.line().removesuffix(b"\n"))
    assert not again.include
    for each in (pattern, again):
        assert PatternList([each]).match(b"/!x", False) == "exclude"


@pytest.mark.parametrize(
    ("text", "what", "offset"),
    [
        (b"", "empty", None),
        (b"!", "empty", None),
        (b"a\0b", "zero byte", 1),
        (b"a\\", "backslash", 1),
        (b"a\\/", "backslash", 1),
        (b"f[oo", "not closed", 1),
        (b"f[", "not closed", 1),
        (b"f[!", "not closed", 1),
        (b"f[a-", "not closed", 1),
        (b"f[a\\", "not closed", 1),
        (b"f[a\\]", "not closed", 1),
        (b"[[:nope:]]", "named set", 1),
        (b"x[[:alpha]", "named set", 2),
        (b"[a[:]", "named set", 2),
    ],
)
def test_what_is_refused(text: bytes, what: str, offset: int | None) -> None:
    with pytest.raises(FormatError, match=what) as caught:
        Pattern.parse(text)
    assert caught.value.offset == offset


def test_length_is_limited() -> None:
    assert Pattern.parse(b"a" * MAX_PATTERN)
    with pytest.raises(LimitExceeded):
        Pattern.parse(b"a" * (MAX_PATTERN + 1))


@pytest.mark.parametrize(
    ("pattern", "hit", "missed"),
    [
        (b"foo", [b"/foo", b"/a/foo"], [b"/foo/a", b"/xfoo", b"/foox", b"/FOO"]),
        (b"/foo", [b"/foo"], [b"/a/foo", b"/foo/a"]),
        (b"a/b", [b"/a/b", b"/x/a/b"], [b"/xa/b", b"/a/b/c", b"/a/x/b"]),
        (b"/a/b", [b"/a/b"], [b"/x/a/b"]),
        (b"*.o", [b"/x.o", b"/a/b/x.o", b"/.o"], [b"/x.o/y", b"/x.oo", b"/xo"]),
        (b"/*.o", [b"/x.o"], [b"/a/x.o"]),
        (b"?", [b"/a", b"/b/c", b"/\n"], [b"/ab"]),
        (b"a?b", [b"/axb"], [b"/a/b", b"/ab"]),
        (b"a*b", [b"/ab", b"/aXXb"], [b"/a/b"]),
        (b"fo*o", [b"/foo", b"/d/foo", b"/fo\no"], [b"/fo/o"]),
        (b"a*b*c", [b"/abc", b"/abbcbc", b"/aXbYc"], [b"/acb", b"/abcd"]),
        (b"*ab*ab", [b"/abab", b"/ababab"], [b"/ab", b"/aba"]),
        (b"a**b", [b"/ab", b"/axxb"], [b"/a/b"]),
        (b"***", [b"/a", b"/a/b"], []),
        (b"/a/***/b", [b"/a/x/b"], [b"/a/b", b"/a/x/y/b"]),
        (b"/**x", [b"/x", b"/ax"], [b"/a/x"]),
        (b"**", [b"/a", b"/a/b"], []),
        (b"/**", [b"/a", b"/a/b"], []),
        (b"d/**", [b"/d/a", b"/d/a/b", b"/x/d/a"], [b"/d", b"/xd/a"]),
        (b"/d/**", [b"/d/a", b"/d/a/b"], [b"/d", b"/x/d/a"]),
        (b"/d/**/**", [b"/d/a", b"/d/a/b"], [b"/d"]),
        (b"**/x", [b"/x", b"/a/x", b"/a/b/x"], [b"/xx", b"/x/a"]),
        (b"/**/x", [b"/x", b"/a/x", b"/a/b/x"], [b"/a/b/xx"]),
        (b"/a/**/b", [b"/a/b", b"/a/x/b", b"/a/x/y/b"], [b"/ab", b"/a/xb", b"/x/a/b"]),
        (b"/a/**/b/c", [b"/a/b/c", b"/a/b/b/c", b"/a/b/x/b/c"], [b"/a/b/x/c"]),
        (b"a/**/b/**/c", [b"/a/b/c", b"/x/a/y/b/z/c", b"/a/a/b/b/c"], [b"/b/a/c", b"/a/c", b"/a/b"]),
        (b"a/**/**/b", [b"/a/b", b"/a/x/b"], [b"/b"]),
        (b"*/x", [b"/x", b"/a/x"], [b"/a/y"]),  # the tail can be the whole path, whose first component is empty
        (b"\\*", [b"/*"], [b"/a"]),
        (b"\\a\\[b", [b"/a[b"], [b"/a"]),
        (b"a\\/b", [b"/a/b"], [b"/ab"]),
        (b"\\!a", [b"/!a"], [b"/a"]),
        (b"a.c", [b"/a.c"], [b"/abc"]),
        (b"#a", [b"/#a"], []),
        (b"\xff*", [b"/\xff", b"/\xff\xfe"], [b"/\xfe"]),
        (b"//x", [], [b"/x", b"/a/x"]),
    ],
)
def test_rules(pattern: bytes, hit: list[bytes], missed: list[bytes]) -> None:
    assert [path for path in [*hit, *missed] if matches(pattern, path)] == hit


@pytest.mark.parametrize(
    ("pattern", "hit", "missed"),
    [
        (b"[!z]oo", b"fF!", b"z/"),
        (b"[^z]oo", b"fF!", b"z/"),
        (b"[z^!]oo", b"z^!", b"a"),
        (b"[a-c]oo", b"abc", b"d-"),
        (b"[c-a]oo", b"abc", b"d-"),
        (b"[-a]oo", b"-a", b"b"),
        (b"[a-]oo", b"-a", b"b"),
        (b"[!-a]oo", b"b", b"-a"),
        (b"[\\]a\\\\]oo", b"]a\\", b"b"),
        (b"[\\a-\\c]oo", b"abc", b"-\\"),
        (b"[+--]oo", b"+,-", b"./"),
        (b"[.-0]oo", b".0", b"/-1"),
        (b"[/]oo", b"", b"/a"),
        (b"[a/]oo", b"a", b"/"),
        (b"[[]oo", b"[", b"a"),
        (b"[[a]oo", b"[a", b"b"),
        (b"[*?]oo", b"*?", b"a"),
        (b"[!]oo", b"abc]!", b"/"),
        (b"[]oo", b"", b"abc]"),
        (b"[\xc3\xa9]oo", b"\xc3\xa9", b"\xc2"),
        (b"[&&~~||]oo", b"&~|", b"a"),
        (b"[[:digit:]x]oo", b"059x", b"a:["),
        (b"[![:digit:]x]oo", b"a:[", b"059x/"),
        (b"[[:alpha:][:digit:]]oo", b"aZ5", b"-_"),
        (b"[[:digit:]-a]oo", b"0-a", b"b"),
    ],
)
def test_sets(pattern: bytes, hit: bytes, missed: bytes) -> None:
    for byte in hit + missed:
        path = b"/d" + bytes([byte]) + b"oo" if byte == ord("/") else b"/" + bytes([byte]) + b"oo"
        # A slash would have to be matched as "d/oo" by "d[...]oo".
        text = b"d" + pattern if byte == ord("/") else pattern
        assert matches(text, path) == (byte in hit), (pattern, path)


NAMED: dict[bytes, Callable[[int], bool]] = {
    b"alnum": lambda c: chr(c).isalnum(),
    b"alpha": lambda c: chr(c).isalpha(),
    b"blank": lambda c: c in b" \t",
    b"cntrl": lambda c: c < 32 or c == 127,
    b"digit": lambda c: chr(c).isdigit(),
    b"graph": lambda c: 32 < c < 127,
    b"lower": lambda c: chr(c).islower(),
    b"print": lambda c: 32 <= c < 127,
    b"punct": lambda c: 32 < c < 127 and not chr(c).isalnum(),
    b"space": lambda c: c in b" \t\n\v\f\r",
    b"upper": lambda c: chr(c).isupper(),
    b"xdigit": lambda c: c in b"0123456789abcdefABCDEF",
}


@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_sets(name: bytes) -> None:
    listed = PatternList([Pattern.parse(b"/[[:" + name + b":]]")])
    found = {c for c in range(256) if c != ord("/") and listed.match(b"/" + bytes([c]), False)}
    assert found == {c for c in range(128) if c != ord("/") and NAMED[name](c)}


# Lists.


def test_last_match_decides() -> None:
    listed = PatternList(Pattern.parse(text) for text in (b"*.o", b"!keep*", b"/x/keep.o"))
    assert listed.match(b"/a.o", False) == "exclude"
    assert listed.match(b"/keep.o", False) == "include"
    assert listed.match(b"/x/keep.o", False) == "exclude"
    assert listed.match(b"/a.c", False) is None
    deciding = listed.rule(b"/keep.o", False)
    assert deciding is not None and deciding.text == b"keep*"
    assert listed.rule(b"/a.c", False) is None


def test_type_is_asked_for_only_when_it_matters() -> None:
    asked = []

    def is_directory() -> bool:
        asked.append(1)
        return False

    listed = PatternList(Pattern.parse(text) for text in (b"d*", b"d/", b"dd/", b"*d/", b"late"))
    assert listed.match(b"/late", is_directory) == "exclude"
    assert listed.match(b"/other", is_directory) is None
    assert not asked
    assert listed.match(b"/dd", is_directory) == "exclude"
    deciding = listed.rule(b"/dd", is_directory)
    assert deciding is not None and deciding.text == b"d*"
    assert len(asked) == 2  # once for each question
    deciding = listed.rule(b"/dd", True)
    assert deciding is not None and deciding.text == b"*d"


def test_directories_only() -> None:
    assert matches(b"a/", b"/a", True) and not matches(b"a/", b"/a", False)
    assert matches(b"/x/a/", b"/x/a", True) and not matches(b"/x/a/", b"/x/a", False)


def test_extended_lists() -> None:
    empty = PatternList()
    assert not empty and not PatternList([])
    assert empty.match(b"/a", False) is None
    root = empty.extended([Pattern.parse(b"*.tmp")])
    below = root.extended([Pattern.parse(b"!a.tmp"), Pattern.parse(b"b")])
    assert root and below
    assert (root.match(b"/s/a.tmp", False), below.match(b"/s/a.tmp", False)) == ("exclude", "include")
    assert (root.match(b"/s/b", False), below.match(b"/s/b", False)) == (None, "exclude")
    assert below.match(b"/s/c.tmp", False) == "exclude"
    assert not empty.extended([])
    deciding = below.rule(b"/s/c.tmp", False)
    assert deciding is not None and deciding.text == b"*.tmp"


def test_a_pattern_made_by_hand_is_checked() -> None:
    with pytest.raises(FormatError):
        PatternList([Pattern(b"[", include=False, directories_only=False, anchored=False)])


# Sources.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"a", b"a\n"),
        (b"./a", b"a\n"),
        (b"/a/./b//c/", b"/a/b/c/\n"),
        (b"/a/../b", b"/b\n"),
        (b"a/b/../../c", b"c\n"),
        (b"../a", b"a\n"),
        (b"/../a", b"/a\n"),
        (b"!./a//b", b"!a/b\n"),
        (b"..a/.b/c..", b"..a/.b/c..\n"),
        (b"/", b"//\n"),
    ],
)
def test_exclude_option(text: bytes, line: bytes) -> None:
    assert parse_exclude_option(text).line() == line


@pytest.mark.parametrize("text", [b"", b"!", b".", b"a/..", b"./", b"!../", b"[", b"a\0"])
def test_exclude_option_refused(text: bytes) -> None:
    with pytest.raises(FormatError):
        parse_exclude_option(text)


def test_exclude_file() -> None:
    data = b"# no\n\n  *.tmp \t\r\n/x\n!/y/\n!z\n  # no\n!!w\n!!/v\n/k/../l\n"
    expected = [b"*.tmp\n", b"/d/x\n", b"!/d/y/\n", b"!z\n", b"w\n", b"/d/v\n", b"/d/l\n"]
    patterns = parse_exclude_file(data, b"/d", no_problem)
    assert [pattern.line() for pattern in patterns] == expected
    assert [pattern.anchored for pattern in patterns] == [line.lstrip(b"!").startswith(b"/") for line in expected]
    assert [p.line() for p in parse_exclude_file(b"/x\nx", b"/", no_problem)] == [b"/x\n", b"x\n"]
    assert parse_exclude_file(b"", b"/", no_problem) == []


def test_exclude_file_reports_bad_lines_and_goes_on() -> None:
    problems: list[tuple[int, str]] = []
    patterns = parse_exclude_file(b"a\n\n[b\nc\\\n/d\n!\n", b"/", lambda number, text: problems.append((number, text)))
    assert [pattern.text for pattern in patterns] == [b"a", b"/d"]
    assert [number for number, _ in problems] == [3, 4, 6]
    assert "not closed" in problems[0][1] and "backslash" in problems[1][1] and "empty" in problems[2][1]


@pytest.mark.parametrize("name", [b"a*b", b"[x]", b"q?", b"back\\slash", b"!n", b"**", b"]", b"new\nline", b"sp ace "])
def test_directory_of_an_exclude_file_is_taken_literally(name: bytes) -> None:
    listed = PatternList(parse_exclude_file(b"/x*", b"/" + name + b"/s", no_problem))
    assert listed.match(b"/" + name + b"/s/xy", False) == "exclude"
    for other in (b"aXb", b"x", b"qq", b"backslash", b"n", b"z"):
        assert listed.match(b"/" + other + b"/s/xy", False) is None


# Golden data.


def children(paths: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in paths - {"/"}:
        found.setdefault(path.rpartition("/")[0] or "/", []).append(path)
    return found


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_golden_selection(version: str) -> None:
    """The archived tree plus files that its patterns leave out: the selection is the archive again."""
    listing: list[dict[str, Any]] = json.loads((GOLDEN / "pxar" / f"exclude.{version}.json").read_text())
    entries = {entry["path"]: entry for entry in listing if entry["kind"] not in ("version", "prelude")}
    stored = entries.pop("/.pxarexclude-cli", None)
    directories = [path for path, entry in entries.items() if entry["kind"] == "dir"]
    kept = set(entries)
    extra = {f"{directory.rstrip('/')}/{name}" for directory in directories for name in ("x.o", ".o", "y.tmp")}
    extra |= {"/only-root", "/secret", "/spaces", "/c.tmp", "/other/c.tmp", "/sub/y", "/sub/x/skip", "/sub/cache/skip"}
    extra |= {"/sub/z.o/keep.tmp", "/sub/z.o"}  # nothing is looked for below what is excluded
    tree = children(kept | extra)

    options = [parse_exclude_option(b"*.o"), parse_exclude_option(b"/secret")]

    def select(directory: str, listed: PatternList) -> Iterator[str]:
        if (file := directory.rstrip("/") + "/.pxarexclude") in entries:
            listed = listed.extended(
                parse_exclude_file(content(entries[file]["content"]), directory.encode(), no_problem)
            )
        for path in tree.get(directory, []):
            if listed.match(path.encode(), path in tree) != "exclude":
                yield path
                yield from select(path, listed)

    assert extra.isdisjoint(kept)
    assert set(select("/", PatternList(options))) == kept - {"/"}

    text = b"".join(pattern.line() for pattern in options)
    if version == "v1":
        assert stored is not None and content(stored["content"]) == text
    else:
        prelude = next(entry for entry in listing if entry["kind"] == "prelude")
        assert json.loads(prelude["data"])["exclude-patterns"].encode() == text


# Against a naive matcher.

TOKENS: dict[bytes, set[int]] = {
    b"a": {97},
    b"b": {98},
    b"\\a": {97},
    b"\\*": {42},
    b"?": set(range(256)) - {47},
    b"[ab]": {97, 98},
    b"[!a]": set(range(256)) - {47, 97},
    b"[^/b]": set(range(256)) - {47, 98},
    b"[[:alpha:]*]": {*range(65, 91), *range(97, 123), 42},
}
Component = tuple[bytes, ...]  # of TOKENS and b"*"


def naive(components: tuple[Component, ...], names: tuple[bytes, ...]) -> bool:
    """All tails of the path, all ways to share names among "**" and bytes among "*"."""

    @functools.cache
    def name_matches(tokens: Component, name: bytes) -> bool:
        if not tokens:
            return not name
        if tokens[0] == b"*":
            return name_matches(tokens[1:], name) or (name != b"" and name_matches(tokens, name[1:]))
        return name != b"" and name[0] in TOKENS[tokens[0]] and name_matches(tokens[1:], name[1:])

    @functools.cache
    def tail_matches(i: int, j: int) -> bool:
        if i == len(components):
            return j == len(names)
        if components[i] == (b"*", b"*"):
            if i == len(components) - 1:
                return j < len(names)
            return tail_matches(i + 1, j) or (j < len(names) and tail_matches(i, j + 1))
        return j < len(names) and name_matches(components[i], names[j]) and tail_matches(i + 1, j + 1)

    return any(tail_matches(0, j) for j in range(len(names)))


token = st.sampled_from([*TOKENS, b"a", b"b", b"*", b"*", b"*"])
component = st.one_of(st.just((b"*", b"*")), st.lists(token, min_size=1, max_size=7).map(tuple))
pattern_components = st.builds(
    lambda anchor, rest: (((),) if anchor else ()) + tuple(rest),
    st.booleans(),
    st.lists(component, min_size=1, max_size=5),
)
paths = st.lists(st.text("ab*", min_size=1, max_size=7).map(str.encode), min_size=1, max_size=6)


@settings(max_examples=400, deadline=None)
@given(pattern_components, st.lists(paths, min_size=1, max_size=12))
def test_equal_to_the_naive_matcher(components: tuple[Component, ...], tried: list[list[bytes]]) -> None:
    text = b"/".join(b"".join(tokens) for tokens in components)
    listed = PatternList([Pattern.parse(text)])
    for names in tried:
        path = b"/" + b"/".join(names)
        assert bool(listed.match(path, False)) == naive(components, (b"", *names)), (text, path)


def random_component(rng: random.Random) -> Component:
    if rng.random() < 0.2:
        return (b"*", b"*")
    return tuple(rng.choice([*TOKENS, b"a", b"b", b"*", b"*", b"*"]) for _ in range(rng.randint(1, 6)))


def test_equal_to_the_naive_matcher_on_many() -> None:
    rng, hits = random.Random(1), 0
    for _ in range(1500):
        components = (((),) if rng.random() < 0.4 else ()) + tuple(
            random_component(rng) for _ in range(rng.randint(1, 4))
        )
        text = b"/".join(b"".join(tokens) for tokens in components)
        listed = PatternList([Pattern.parse(text)])
        for _ in range(6):
            names = tuple(bytes(rng.choices(b"aab*", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 5)))
            expected = naive(components, (b"", *names))
            hits += expected
            assert bool(listed.match(b"/" + b"/".join(names), False)) == expected, (text, names)
    assert 500 < hits < 8500


@settings(max_examples=100, deadline=None)
@given(st.lists(pattern_components, min_size=1, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6), paths)
def test_lists_decide_as_one_by_one(
    several: list[tuple[Component, ...]], includes: list[bool], names: list[bytes]
) -> None:
    texts = [b"/".join(b"".join(tokens) for tokens in components) for components in several]
    parsed = [Pattern.parse(b"!" * include + text) for include, text in zip(includes, texts, strict=False)]
    path = b"/" + b"/".join(names)
    deciding = [pattern for pattern in parsed if PatternList([pattern]).match(path, False)]
    expected = deciding[-1] if deciding else None
    assert PatternList(parsed).rule(path, False) == expected
    assert PatternList(parsed[:2]).extended(parsed[2:3]).extended(parsed[3:]).rule(path, False) == expected


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_equal_to_git_where_it_means_the_same(tmp_path: Path) -> None:
    """Patterns of one component, anchored ones and directories; git also reports what lies below an excluded one."""
    directories = [b"a", b"b", b"a/a", b"a/b", b"b/ab", b"a/b/a"]
    files = [
        directory + name for directory in (b"", *(d + b"/" for d in directories)) for name in (b"ba", b"x.o", b"bb")
    ]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for directory in directories:
        (tmp_path / directory.decode()).mkdir()
    for file in files:
        (tmp_path / file.decode()).touch()
    every = directories + files
    rng, excluded_count = random.Random(2), 0
    for _ in range(40):
        lines = []
        for _ in range(rng.randint(1, 4)):
            body = b"".join(
                rng.choice([b"a", b"b", b"*", b"?", b"[ab]", b"[!a]", b"*.o"]) for _ in range(rng.randint(1, 3))
            )
            form = rng.choice([b"%s", b"/%s", b"**/%s", b"/a/**/%s", b"/%s/**", b"/a/%s", b"/*/%s"])
            lines.append(rng.choice([b"", b"", b"!"]) + form % body + rng.choice([b"", b"", b"/"]))
        (tmp_path / ".gitignore").write_bytes(b"\n".join(lines) + b"\n")
        answer = subprocess.run(
            ["git", "check-ignore", "--no-index", "-z", "--stdin"],
            cwd=tmp_path, input=b"\0".join(every) + b"\0", stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
        listed = PatternList(parse_exclude_file(b"\n".join(lines), b"/", no_problem))
        excluded: list[bytes] = []
        for path in sorted(every):
            parent = path.rpartition(b"/")[0]
            if parent in excluded or listed.match(b"/" + path, path in directories) == "exclude":
                excluded.append(path)
        assert sorted(answer.stdout.split(b"\0")[:-1]) == excluded, lines
        excluded_count += len(excluded)
    assert excluded_count > 100


# Hostile input.


@pytest.mark.parametrize(
    "pattern",
    [
        b"*a" * 2000 + b"b",
        b"*a*a*a*a*a*a*a*a*a*b",
        b"*?" * 100 + b"b",
        b"*" * 5000 + b"b",
        b"a*" * 120 + b"b",
        b"**/a/" * 800 + b"b",
        b"**/*a*/" * 500 + b"b",
        b"/**/*a/*a/*a/*a/*a/**/b",
        b"*/" * 300 + b"b",
        b"*a*/" * 200 + b"*a*b",
        b"[!b]*" * 1000 + b"b",
        b"[[:alpha:]a-z]" * 1100 + b"b",
    ],
)
def test_no_pattern_takes_long(pattern: bytes) -> None:
    long_names = b"/" + b"/".join([b"a" * 255] * 16)
    short_names = b"/a" * 2048
    one_name = b"/" + b"a" * 4095
    started = time.process_time()
    listed = PatternList([Pattern.parse(pattern)])
    for path in (long_names, short_names, one_name):
        assert listed.match(path, False) is None
    assert time.process_time() - started < 30


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_golden_lines_parse_or_fail_cleanly(data: st.DataObject) -> None:
    text = bytearray(b"# comment\n*.tmp\n/only-root\nsub/*/skip\n!keep.tmp\n  /spaces  \n[a-z]\\x/**/y")
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(text) - 1))
        text[position : position + data.draw(st.integers(0, 3))] = bytes(
            data.draw(st.lists(st.sampled_from(b"*?[]!^-:\\/.#\n\0a\xff"), max_size=4))
        ) + bytes([data.draw(st.integers(0, 255))])
    problems: list[int] = []
    patterns = parse_exclude_file(bytes(text), b"/[d", lambda number, _: problems.append(number))
    assert problems == sorted(set(problems))
    listed = PatternList(patterns)
    for path in (b"/[d/only-root", b"/[d/sub/x/skip", b"/" + b"a" * 200):
        assert listed.match(path, False) in (None, "exclude", "include")
    for pattern in patterns:
        assert Pattern.parse(pattern.line().removesuffix(b"\n")).include == pattern.include


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"*", b"?", b"[", b"]", b"!", b"^", b"-", b"[:", b":]", b"alpha", b"\\", b"/", b"a", b"\0"])
    )
)
def test_any_text_parses_or_fails_cleanly(parts: list[bytes]) -> None:
    try:
        pattern = Pattern.parse(b"".join(parts))
    except FormatError:
        return
    PatternList([pattern]).match(b"/a/alpha", True)
    assert Pattern.parse(pattern.line().removesuffix(b"\n")) == pattern
