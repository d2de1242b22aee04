"""What a person is told: troubles that there are, and that some are over.

Promise P6: a message goes through mail servers and lock screens. All text in it is that of troubles, which are made of
the records of runs, and these name jobs, steps, stores and numbers, never a file of a backup.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from archiver.jobs.standing import Trouble

EventName = Literal["failure", "held", "overdue", "recovery", "success", "test"]

_WORST_FIRST: dict[str, EventName] = {"crash": "failure", "failure": "failure", "held": "held", "overdue": "overdue"}
_IN_SUBJECT: dict[EventName, str] = {
    "failure": "failed",
    "held": "waits for you",
    "overdue": "is overdue",
    "recovery": "is well again",
    "success": "is done",
    "test": "can tell you",
}


@dataclass(frozen=True, slots=True)
class Over:
    """A trouble that was told and is over."""

    text: str
    since: int


@dataclass(frozen=True, slots=True)
class Message:
    """What a channel sends, in one piece."""

    job: str
    host: str
    time: int
    event: EventName
    lines: tuple[str, ...]

    @property
    def subject(self) -> str:
        return f"archiver: {self.job} on {self.host} {_IN_SUBJECT[self.event]}"

    @property
    def body(self) -> str:
        return "\n".join(self.lines)

    @property
    def is_urgent(self) -> bool:
        return self.event in _WORST_FIRST.values()

    def as_json(self) -> dict[str, Any]:
        """``text`` is what chat services show of a webhook's document."""
        return {
            "schema": 1,
            "event": self.event,
            "job": self.job,
            "host": self.host,
            "time": self.time,
            "subject": self.subject,
            "text": f"{self.subject}\n{self.body}",
            "items": list(self.lines),
        }


def compose(
    job: str, host: str, now: int, troubles: Sequence[Trouble], over: Sequence[Over], done: str | None
) -> Message:
    """One message about all of them; it is about the worst. ``done``: that a run went well."""
    kinds = {trouble.kind for trouble in troubles}
    event = next((event for kind, event in _WORST_FIRST.items() if kind in kinds), "recovery" if over else "success")
    lines = [one_line(trouble.text) for kind in _WORST_FIRST for trouble in troubles if trouble.kind == kind]
    for each in over:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.since))
        lines.append(f"over: {one_line(each.text)} (since {since})")
    if done is not None:
        lines.append(one_line(done))
    if troubles:
        lines.append(f"more: archiver job status {job}")
    return Message(job, host, now, event, tuple(lines))


def one_line(text: str) -> str:
    """Printable, in one line: it goes into headers, and what is in it may be anybody's."""
    return "".join(char if char.isprintable() else " " for char in text.encode("utf-8", "replace").decode())
