"""Reading values out of a TOML file: every problem is told with its line and what is allowed, not the first alone."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from archiver.errors import ArchiverError, UsageError
from archiver.jobs.toml_lines import Path, lines_of
from formats.errors import FormatError

T = TypeVar("T")
From = Literal["file", "default", "environment", "machine"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(?:[0-9]{1,6}[smhdw])+")
_LONGEST = 36525 * 86400  # seconds: what is later than in a hundred years has no date
_LONGEST_SHOWN = 60
_DEEPEST = 64
# So many dots between keys cost the parser the square of them in time and room.
_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DEEP = re.compile(rf"(?:^|[\[{{,])[ \t]*(?:{_KEY}[ \t]*\.[ \t]*){{{_DEEPEST}}}", re.MULTILINE)
_TOO_DEEP = "its arrays or tables are nested too deeply"
_LARGE_NUMBER = re.compile(r"[0-9_]{4000}")
_AT_LINE = re.compile(r"(.*) \(at line (\d+), column \d+\)", re.DOTALL)
_AT_END = re.compile(r"(.*) \(at end of document\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in a file, and where; ``line`` None where something is missing. ``is_error``: nothing can be done
    with such a file; else it is worth telling."""

    file: str
    line: int | None
    text: str
    is_error: bool = True

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line is not None else f"{self.file}: {self.text}"

    def as_json(self) -> dict[str, Any]:
        return {"file": self.file, "line": self.line, "text": self.text, "level": "error" if self.is_error else "note"}


@dataclass(frozen=True, slots=True)
class Origin:
    """A value and where it is from; ``source`` names the variable of the environment, or the kernel's fact."""

    value: Any
    place: From
    line: int | None = None
    source: str | None = None


def span_of(text: str) -> int:
    """Seconds of ``90s``, ``10m``, ``36h``, ``2d``, ``1w``, ``1d12h``. Raises ValueError."""
    parts = re.findall(r"([0-9]+)([smhdw])", text) if _SPAN.fullmatch(text) else []
    total = sum(int(number) * _SECONDS[unit] for number, unit in parts)
    if not total or len({unit for _, unit in parts}) < len(parts):
        raise ValueError("a time span such as 90s, 10m, 36h, 2d, 1w or 1d12h")
    if total > _LONGEST:
        raise ValueError("a time span of at most a hundred years")
    return total


def shown(value: object) -> str:
    """A value as it may stand in a sentence."""
    if isinstance(value, str):
        return ascii(_cut(value))
    try:
        return _cut(str(value).lower() if isinstance(value, bool) else repr(value))
    except ValueError:  # Python writes no number that has thousands of digits
        return "a very large number"
    except RecursionError:
        return "a very deep table"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


@dataclass(slots=True)
class File:
    """A parsed file, and what was found out about it so far."""

    path: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: Mapping[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)

    @classmethod
    def parse(cls, path: str, data: bytes) -> File:
        """One that is no TOML has no values but a problem."""
        file = cls(path)
        try:
            text = data.decode().replace("\r\n", "\n")
            deep = _DEEP.search(text)
            if deep is not None:
                file.problems.append(Problem(path, text.count("\n", 0, deep.end()) + 1, _TOO_DEEP))
                return file
            file.values = tomllib.loads(text)
            file.lines = lines_of(text)
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            file.problems.append(Problem(path, line, "this is no UTF-8 text, which TOML has to be"))
        except tomllib.TOMLDecodeError as error:
            file.problems.append(_no_toml(path, str(error), text))
        except RecursionError:
            file.problems.append(Problem(path, None, _TOO_DEEP))
        except ValueError:  # TOML knows no numbers so large, and the parser says so in an error that is not its own
            at = _line_of_large_number(text)
            file.problems.append(Problem(path, at, "this is no TOML: a number has thousands of digits"))
        return file

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.is_error]

    @property
    def table(self) -> Table:
        return Table(self, self.values, ())


def _line_of_large_number(text: str) -> int | None:
    found = _LARGE_NUMBER.search(text)
    return None if found is None else text.count("\n", 0, found.start()) + 1


def _no_toml(path: str, message: str, text: str) -> Problem:
    found = _AT_LINE.fullmatch(message)
    if found:
        return Problem(path, int(found[2]), f"this is no TOML: {_in_a_sentence(found[1])}")
    found = _AT_END.fullmatch(message)
    reason = found[1] if found else message
    return Problem(path, max(text.rstrip("\n").count("\n") + 1, 1), f"this is no TOML: {_in_a_sentence(reason)}")


def _in_a_sentence(text: str) -> str:
    return text[:1].lower() + text[1:]


class Table:
    """One table. Each method takes a key's value, which counts as known then; ``end`` tells the unknown ones. A value
    that is not allowed is told, and the default taken."""

    def __init__(self, file: File, values: Mapping[str, Any], path: Path) -> None:
        self.file = file
        self._values = values
        self._path = path
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def line(self, key: str | None = None) -> int | None:
        path = self._path if key is None else (*self._path, key)
        return self.file.lines.get(path)

    def name(self, key: str | int | None = None) -> str:
        text = ""
        for part in self._path if key is None else (*self._path, key):
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
        return text

    def tell(self, key: str | None, text: str, *, is_error: bool = True) -> None:
        self.file.problems.append(Problem(self.file.path, self.line(key), text, is_error))

    # -- values ------------------------------------------------------------------------------------------------------

    def text(self, key: str, default: str | None = None, *, origin: Origin | None = None) -> str | None:
        return self._value(key, default, _text, origin)

    def demand(self, key: str, what: str) -> None:
        """Tell when there is no such key; ``what`` it would be."""
        if key not in self._values:
            self.tell(None, f"{self.name(key)} is missing: {what}")

    def path(self, key: str, default: str | None = None) -> str | None:
        return self._value(key, default, _path)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default, _flag)
        return default if value is None else value

    def choice(self, key: str, allowed: Sequence[str], default: str | None) -> str | None:
        return self._value(key, default, lambda value: _one_of(value, allowed))

    def count(self, key: str, default: int | None, *, least: int = 1, most: int = 1_000_000) -> int | None:
        return self._value(key, default, lambda value: _number(value, least, most))

    def percent(self, key: str, default: float) -> float:
        value = self._value(key, default, _percent)
        return default if value is None else value

    def span(self, key: str, default: str | None) -> int | None:
        """Seconds."""
        made = None if default is None else span_of(default)
        return self._value(key, made, _span, Origin(default, "default"))

    def age(self, key: str, default: str) -> int | None:
        """Seconds; None for "never"."""
        made: int | None = span_of(default)
        found: int | None = self._value(key, made, _age, Origin(default, "default"))
        return found

    def parsed(
        self, key: str, parse: Callable[[str], T], default: T | None = None, shown_default: Any = None
    ) -> T | None:
        """What ``parse`` makes of a text; it raises UsageError, FormatError or ValueError."""
        return self._value(key, default, lambda value: parse(_text(value)), Origin(shown_default, "default"))

    def texts(self, key: str, check: Callable[[str], T], at_least: str | None = None) -> tuple[T, ...]:
        """An array of texts, or one text; ``check`` as ``parse`` above. Each wrong one is told in its own line.
        ``at_least``: what there has to be one of."""
        self._known.append(key)
        if key not in self._values:
            self._note(key, Origin([], "default"))
            return ()
        value = self._values[key]
        self._note(key, Origin(value, "file", self.line(key)))
        found: list[T] = []
        if isinstance(value, str):
            self._take(found, (*self._path, key), self.name(key), value, check)
        elif not isinstance(value, list):
            self.tell(key, f"{self.name(key)} is {shown(value)}; a text or an array of texts is allowed")
        elif not value and at_least is not None:
            self.tell(key, f"{self.name(key)} is empty; at least one {at_least} is allowed")
        else:
            for number, each in enumerate(value):
                path = (*self._path, key, number)
                self._take(found, path, f"{self.name(key)}[{number}]", each, check)
        return tuple(found)

    def _take(self, found: list[T], path: Path, name: str, value: Any, check: Callable[[str], T]) -> None:
        try:
            found.append(check(_text(value)))
        except (ArchiverError, FormatError, ValueError) as error:
            self.file.problems.append(Problem(self.file.path, self.file.lines.get(path), _sentence(name, value, error)))

    def _value(
        self, key: str, default: T | None, check: Callable[[Any], T | None], origin: Origin | None = None
    ) -> T | None:
        self._known.append(key)
        if key not in self._values:
            self._note(key, origin if origin is not None else Origin(default, "default"))
            return default
        value = self._values[key]
        self._note(key, Origin(value, "file", self.line(key)))
        try:
            return check(value)
        except (ArchiverError, FormatError, ValueError) as error:
            self.tell(key, _sentence(self.name(key), value, error))
            return default

    def _note(self, key: str, origin: Origin) -> None:
        self.file.origins[self.name(key)] = origin

    # -- tables ------------------------------------------------------------------------------------------------------

    def table(self, key: str) -> Table:
        """An empty one where there is none."""
        self._known.append(key)
        value = self._values.get(key, {})
        if not isinstance(value, Mapping):
            self.tell(key, f"{self.name(key)} is {shown(value)}; a table is allowed: [{self.name(key)}]")
            value = {}
        return Table(self.file, value, (*self._path, key))

    def optional(self, key: str) -> Table | None:
        self._known.append(key)
        return self.table(key) if key in self._values else None

    def tables(self, key: str) -> list[Table]:
        """An array of tables."""
        self._known.append(key)
        value = self._values.get(key, [])
        if isinstance(value, Mapping) or not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
            self.tell(key, f"{self.name(key)} is one of several: write [[{self.name(key)}]] above each of them")
            return []
        return [Table(self.file, each, (*self._path, key, number)) for number, each in enumerate(value)]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Of a table with keys of the user's own, each with its text."""
        for key in self._values:
            value = self._value(key, None, _text)
            if value is not None:
                yield key, value

    def end(self) -> None:
        for key in self._values:
            if key in self._known:
                continue
            near = difflib.get_close_matches(key, self._known, 1)
            allowed = f"{'here' if not self._path else f'in {self.name()}'} are allowed: {', '.join(self._known)}"
            self.tell(key, f"{_cut(self.name(key))} is unknown; {f'is {near[0]} meant?' if near else allowed}")


def _sentence(name: str, value: Any, error: Exception) -> str:
    """Checks say what is allowed in a ValueError, the rooms in a sentence of their own."""
    if isinstance(error, ArchiverError):
        return f"{name}: {error}" + (f"; {error.hint}" if error.hint else "")
    if isinstance(error, FormatError):
        return f"{name} is {shown(value)}: {error}"
    return f"{name} is {shown(value)}; {error} is allowed"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("a text")
    return value


def _path(value: Any) -> str:
    return full_path(_text(value))


def full_path(text: str) -> str:
    """``~`` is the home directory; UsageError for a relative path: nobody knows where a nightly run starts."""
    path = os.path.expanduser(text)
    if not os.path.isabs(path):
        raise UsageError(f"{shown(text)} is relative", hint="a path from / or ~ is allowed")
    return os.path.normpath(path)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _one_of(value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed or not isinstance(value, str):
        raise ValueError(" or ".join(allowed))
    return value


def _number(value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"a whole number from {least} to {most}")
    return value


def _percent(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise ValueError("a number from 0 to 100")
    return float(value)


def _span(value: Any) -> int:
    return span_of(_text(value))


def _age(value: Any) -> int | None:
    if value == "never":
        return None
    try:
        return _span(value)
    except ValueError as error:
        raise ValueError(f'{error}, or "never",') from error
