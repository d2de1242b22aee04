"""Which groups a copy is about, into a store or onto media (spec datastore.md 11.1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from archiver.errors import UsageError
from archiver.store.layout import GroupRef
from formats.naming import BACKUP_TYPES

_HINT = "write type:host, group:host/laptop or regex:PATTERN, with exclude: before it to leave groups out"


@dataclass(frozen=True, slots=True)
class GroupFilter:
    """``[include:|exclude:]type:TYPE``, ``group:TYPE/ID`` or ``regex:PATTERN`` (found anywhere in ``TYPE/ID``)."""

    text: str
    excludes: bool
    matches: Callable[[GroupRef], bool]

    @classmethod
    def parse(cls, text: str) -> GroupFilter:
        """Raises UsageError."""
        rest = text.removeprefix("include:")
        excludes = rest == text and text.startswith("exclude:")
        rest = rest.removeprefix("exclude:") if excludes else rest
        kind, _, value = rest.partition(":")
        if kind == "type" and value in BACKUP_TYPES:
            return cls(text, excludes, lambda group: group.type == value)
        if kind == "group" and value.partition("/")[0] in BACKUP_TYPES and value.partition("/")[2]:
            return cls(text, excludes, lambda group: _name(group) == value)
        if kind == "regex" and value:
            try:
                pattern = re.compile(value)
            except (re.error, OverflowError, RecursionError) as error:
                raise UsageError(f"{value!r} is no regular expression: {error}", hint=_HINT) from error
            return cls(text, excludes, lambda group: pattern.search(_name(group)) is not None)
        raise UsageError(f"{text!r} is no group filter", hint=_HINT)


def _name(group: GroupRef) -> str:
    return f"{group.type}/{group.id}"


def chosen(group: GroupRef, filters: Sequence[GroupFilter]) -> bool:
    """In when no filter includes any or one includes it, and none excludes it."""
    including = [each for each in filters if not each.excludes]
    if including and not any(each.matches(group) for each in including):
        return False
    return not any(each.matches(group) for each in filters if each.excludes)
