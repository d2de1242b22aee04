"""What a person is told: problems that hold, and that some are over.

Promise P6: a message goes through mail servers and lock screens. ``Problem.text`` names jobs, steps, stores and ages,
never a file of a backup; what an error said may name one, so it is ``detail`` and left out where the job encrypts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["failure", "held", "overdue"]
KINDS: tuple[Kind, ...] = ("failure", "held", "overdue")
EventName = Literal["failure", "held", "overdue", "recovery", "success", "test"]

_IN_SUBJECT: dict[EventName, str] = {
    "failure": "failed",
    "held": "waits for you",
    "overdue": "is overdue",
    "recovery": "is well again",
    "success": "is done",
    "test": "can tell you",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person should know as long as it lasts.

    Of each ``topic`` ("run", "overdue verify") there is one at a time; with another ``code`` it is another problem and
    told anew. ``text`` is one sentence.
    """

    topic: str
    kind: Kind
    code: str
    text: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Over:
    """A problem that was told and is over."""

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
        return self.event in KINDS

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
    job: str,
    host: str,
    now: int,
    problems: Sequence[Problem],
    over: Sequence[Over],
    done: str | None,
    *,
    encrypted: bool,
) -> Message:
    """One message about all of them. It is about the worst of what is new. ``done``: that a run went well."""
    lines: list[str] = []
    for kind in KINDS:
        for problem in problems:
            if problem.kind == kind:
                lines.append(one_line(problem.text))
                if problem.detail is not None and not encrypted:
                    lines.append("  " + one_line(problem.detail))
    for each in over:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.since))
        lines.append(f"over: {one_line(each.text)} (since {since})")
    kinds = {problem.kind for problem in problems}
    event: EventName = next((kind for kind in KINDS if kind in kinds), "recovery" if over else "success")
    if done is not None:
        lines.append(one_line(done))
    if problems:
        lines.append(f"more: archiver job status {job}")
    return Message(job, host, now, event, tuple(lines))


def one_line(text: str) -> str:
    """Printable, in one line: it goes into headers, and what is in it may be anybody's."""
    return "".join(char if char.isprintable() else " " for char in text.encode("utf-8", "replace").decode())
