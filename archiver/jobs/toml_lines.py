"""In which line of a TOML document each of its values stands: ``tomllib`` does not tell.

Only for documents that ``tomllib`` has accepted: what is not a key, a string, a bracket or a comment is passed over,
and nothing is checked again.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Path = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})|' r"'''.*?'''(?:'{0,2})|" r'"(?:[^"\\\n]|\\.)*"|' r"'[^'\n]*'", re.DOTALL
)
_PLAIN = re.compile(r"\d{4}-\d\d-\d\d[ Tt]\d\d:[^\s,\]}#]+|[^\s,\]}#]+")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def lines_of(text: str) -> dict[Path, int]:
    """The line, from 1, of every table, value, and element of an array, by its path in the parsed document."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[Path, int] = {}
        self._last: dict[Path, int] = {}  # of each array of tables, the number of the table that is filled

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self._lines

    def _header(self) -> Path:
        is_array = self._text.startswith("[[", self._at)
        self._at += 1 + is_array
        line, keys = self._line(), self._keys()
        self._at += 1 + is_array
        path = self._below((), keys[:-1])
        if is_array:
            own = (*path, keys[-1])
            self._lines.setdefault(own, line)
            self._last[own] = self._last.get(own, -1) + 1
        path = self._below(path, keys[-1:])
        self._note(path, line)
        return path

    def _below(self, path: Path, keys: list[str]) -> Path:
        """Where ``keys`` lead to: of arrays of tables, into the last one."""
        for key in keys:
            path = (*path, key)
            if path in self._last:
                path = (*path, self._last[path])
        return path

    def _pair(self, table: Path) -> None:
        line, keys = self._line(), self._keys()
        self._at += 1  # the sign between key and value
        self._skip(_SPACE)
        path = (*table, *keys)
        self._note(path, line)
        self._value(path)

    def _note(self, path: Path, line: int) -> None:
        """Tables that are only named on the way stand where they are named first."""
        for length in range(1, len(path)):
            self._lines.setdefault(path[:length], line)
        self._lines[path] = line

    def _keys(self) -> list[str]:
        """A key and those behind its dots, and the space around them."""
        keys = []
        while True:
            self._skip(_SPACE)
            match = _STRING.match(self._text, self._at)
            if match is not None:
                keys.append(str(tomllib.loads(f"key = {match[0]}")["key"]))
            else:
                match = _BARE_KEY.match(self._text, self._at)
                assert match is not None
                keys.append(match[0])
            self._at = match.end()
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _value(self, path: Path) -> None:
        opening = self._text[self._at]
        if opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline_table(path)
        else:
            match = _STRING.match(self._text, self._at) or _PLAIN.match(self._text, self._at)
            assert match is not None
            self._at = match.end()

    def _array(self, path: Path) -> None:
        number = 0
        while self._goes_on("]"):
            self._lines[(*path, number)] = self._line()
            self._value((*path, number))
            number += 1

    def _inline_table(self, path: Path) -> None:
        while self._goes_on("}"):
            self._pair(path)

    def _goes_on(self, closing: str) -> bool:
        """Passes over the bracket, or over the comma before the next element, and tells whether there is one."""
        if self._text[self._at] in "[{":
            self._at += 1
        self._skip(_BLANK)
        if self._text[self._at] == ",":
            self._at += 1
            self._skip(_BLANK)
        if self._text[self._at] != closing:
            return True
        self._at += 1
        return False

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _line(self) -> int:
        return bisect_right(self._starts, self._at)
