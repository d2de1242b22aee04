"""Exclude patterns (spec pxar.md 13): gitignore-like, tried from the last to the first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from formats.errors import FormatError

Match = Literal["exclude", "include"]


@dataclass(frozen=True, slots=True)
class Pattern:
    text: bytes
    include: bool = False
    directories_only: bool = False
    anchored: bool = False

    @classmethod
    def parse(cls, text: bytes) -> Pattern:
        include = text.startswith(b"!")
        if include:
            text = text[1:]
        stripped = text.rstrip(b"/")
        pattern = cls(stripped or text[:1], include, len(stripped) < len(text))
        _regex(pattern)
        return pattern

    def line(self) -> bytes:
        return (b"!" if self.include else b"") + self.text + (b"/" if self.directories_only else b"") + b"\n"


def _regex(pattern: Pattern) -> re.Pattern[bytes]:
    text = pattern.text
    if not text or b"\0" in text:
        raise FormatError("empty pattern or NUL byte")
    out, i, n = [], 0, len(text)
    while i < n:
        c = text[i : i + 1]
        if c == b"*":
            starts = i == 0 or text[i - 1 : i] == b"/"
            whole = starts and text[i : i + 2] == b"**" and text[i + 2 : i + 3] in (b"", b"/")
            if whole:
                i += 2
                if text[i : i + 1] == b"/":
                    out.append(rb"(?:[^/]*/)*")
                    i += 1
                else:
                    out.append(rb".*")
                continue
            out.append(rb"[^/]*")
        elif c == b"?":
            out.append(rb"[^/]")
        elif c == b"[":
            end = text.find(b"]", i + 2)
            if end < 0:
                raise FormatError("unclosed class in a pattern", got=repr(text))
            body = text[i + 1 : end]
            negate = body[:1] in (b"!", b"^")
            body = body[1:] if negate else body
            body = body.replace(b"\\", b"\\\\").replace(b"[", b"\\[")
            out.append(rb"(?!/)[" + (b"^" if negate else b"") + body + b"]")
            i = end
        elif c == b"\\":
            i += 1
            if i >= n:
                raise FormatError("pattern ends with a backslash")
            out.append(re.escape(text[i : i + 1]))
        else:
            out.append(re.escape(c))
        i += 1
    lead = rb"\A" if pattern.anchored or text.startswith(b"/") else rb"(?:\A|(?<=/))"
    return re.compile(lead + b"".join(out) + rb"\Z", re.DOTALL)


def parse_exclude_option(text: bytes) -> Pattern:
    return Pattern.parse(text)


def parse_exclude_file(data: bytes, directory: bytes, problem: Callable[[int, str], None]) -> list[Pattern]:
    found = []
    base = re.sub(rb"([*?\[\\])", rb"\\\1", directory.rstrip(b"/"))
    for number, line in enumerate(data.split(b"\n"), 1):
        text = line.strip(b" \t\r\f\v")
        if not text or text.startswith(b"#"):
            continue
        include = text.startswith(b"!")
        body = text[1:] if include else text
        try:
            if body.startswith(b"/"):
                parsed = Pattern.parse(base + body)
                found.append(Pattern(parsed.text, include, parsed.directories_only, True))
            else:
                parsed = Pattern.parse(body)
                found.append(Pattern(parsed.text, include ^ parsed.include, parsed.directories_only))
        except FormatError as error:
            problem(number, str(error))
    return found


class PatternList:
    def __init__(self, patterns: Iterable[Pattern] = ()) -> None:
        self._patterns = [(pattern, _regex(pattern)) for pattern in patterns]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def extended(self, more: Iterable[Pattern]) -> PatternList:
        result = PatternList(more)
        result._patterns = self._patterns + result._patterns
        return result

    def rule(self, path: bytes, is_directory: bool | Callable[[], bool]) -> Pattern | None:
        for pattern, regex in reversed(self._patterns):
            if regex.search(path):
                if pattern.directories_only and not (is_directory() if callable(is_directory) else is_directory):
                    continue
                return pattern
        return None

    def match(self, path: bytes, is_directory: bool | Callable[[], bool]) -> Match | None:
        rule = self.rule(path, is_directory)
        return None if rule is None else "include" if rule.include else "exclude"
