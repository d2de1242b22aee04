"""What the engine tells about its work. Only ``cli`` turns events into text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Notice:
    """One sentence that a person should see."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True)
class FileProblem:
    """Something about one file or directory; ``path`` is relative to the archive root, as stored bytes."""

    path: bytes
    reason: str
    kind: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long task is. ``total`` is None when it is not known; units are in the name of ``task``."""

    task: str
    files: int
    bytes: int
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class SpaceShort:
    """There may not be room enough: ``needed`` and ``free`` bytes. ``basis``: what is known, how much the last runs of
    the group stored, or how large the sources are."""

    needed: int
    free: int
    basis: Literal["runs", "sources"]


Event = Notice | FileProblem | Progress | SpaceShort
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener for callers that do not care."""
