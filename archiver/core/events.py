"""What the engine tells about its work. Only ``cli`` turns events into text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple


class Notice(NamedTuple):
    """One sentence that a person should see."""

    text: str
    level: Literal["info", "warning"] = "info"


class FileProblem(NamedTuple):
    """Something about one file or directory; ``path`` is relative to the archive root, as stored bytes."""

    path: bytes
    reason: str
    kind: str


class Progress(NamedTuple):
    """How far a long task is. ``total`` is None when it is not known; units are in the name of ``task``."""

    task: str
    files: int
    bytes: int
    total_bytes: int | None = None


class SpaceShort(NamedTuple):
    """There may not be room enough: ``needed`` and ``free`` bytes. ``basis``: what is known, how much the last runs of
    the group stored, or how large the sources are."""

    needed: int
    free: int
    basis: Literal["runs", "sources"]


Event = Notice | FileProblem | Progress | SpaceShort
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener for callers that do not care."""
