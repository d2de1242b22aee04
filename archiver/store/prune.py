"""Which snapshots of a group are kept, exactly as PBS decides it (spec datastore.md 9). Values in, marks out.

The keep options count periods (hours, days, ISO weeks, ...) of local time, each option those that no earlier one has
covered; of a period the newest snapshot is kept. A snapshot that an option passes over because a newer one has its
period is lost for good; one in a period that was covered before may still be taken by a later option.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

Mark = Literal["keep", "keep-partial", "protected", "remove"]
LocalTime = Callable[[int], time.struct_time]  # Unix seconds -> local time

# In the order in which they are applied. None: every snapshot is a period of its own.
_PERIODS: dict[str, str | None] = {
    "last": None,
    "hourly": "%Y/%m/%d/%H",
    "daily": "%Y/%m/%d",
    "weekly": "%G/%V",
    "monthly": "%Y/%m",
    "yearly": "%Y",
}


class Keep(NamedTuple):
    """How many periods of each kind to keep; None: the option is not given."""

    last: int | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None

    @property
    def keeps_nothing(self) -> bool:
        """No option is given, or all are zero."""
        return not any(self)


class Candidate(NamedTuple):
    """What of a snapshot matters; ``time`` in Unix seconds, ``finished``: it has a manifest."""

    time: int
    finished: bool = True
    protected: bool = False


class Marked(NamedTuple):
    """``reason``: why, as words behind "keep" or "remove"."""

    time: int
    mark: Mark
    reason: str


def mark_all(candidates: Iterable[Candidate], keep: Keep, local_time: LocalTime = time.localtime) -> list[Marked]:
    """The marks of all snapshots of one group, newest first."""
    ordered = sorted(candidates, key=lambda candidate: candidate.time, reverse=True)
    marks: dict[int, Marked] = {}
    for position, candidate in enumerate(ordered):
        if not candidate.finished:
            marks[candidate.time] = _unfinished(candidate.time, newest=position == 0)
    for option, pattern in _PERIODS.items():
        count = getattr(keep, option)
        if count is not None:
            _apply(option, pattern, count, ordered, marks, local_time)
    return [_result(candidate, marks.get(candidate.time)) for candidate in ordered]


def _unfinished(when: int, *, newest: bool) -> Marked:
    if newest:
        return Marked(when, "keep-partial", "unfinished, but the newest: its backup may be running")
    return Marked(when, "remove", "unfinished")


def _apply(
    option: str,
    pattern: str | None,
    count: int,
    ordered: Sequence[Candidate],
    marks: dict[int, Marked],
    local_time: LocalTime,
) -> None:
    def period(when: int) -> str:
        return str(when) if pattern is None else time.strftime(pattern, local_time(when))

    covered = {period(marked.time) for marked in marks.values() if marked.mark == "keep"}
    seen: set[str] = set()
    for when, _, protected in ordered:
        if when in marks:
            continue
        if protected:
            marks[when] = _protected(when)
            continue
        name = period(when)
        if name in covered:
            continue  # a later option may still take it
        shown = "" if pattern is None else f" ({name})"
        if name in seen:
            marks[when] = Marked(when, "remove", f"keep-{option} has a newer one{shown}")
            continue
        if len(seen) >= count:
            return
        seen.add(name)
        marks[when] = Marked(when, "keep", f"keep-{option} {len(seen)} of {count}{shown}")


def _protected(when: int) -> Marked:
    return Marked(when, "protected", "protected")


def _result(candidate: Candidate, marked: Marked | None) -> Marked:
    if candidate.protected:
        return _protected(candidate.time)
    return marked or Marked(candidate.time, "remove", "no keep option takes it")
