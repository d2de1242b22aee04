"""The plan of a restore: every action, and what they come to. Actions may be millions: they are kept sealed, and beyond
a bound on disk."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from archiver.core.spill import SpillTable

Deed = Literal["create", "replace", "update", "remove", "blocked"]

_BATCH = 256  # actions


@dataclass(frozen=True, slots=True)
class Action:
    """What happens to one entry. ``update``: of its attributes alone; ``remove``: it is moved to the quarantine;
    ``blocked``: it cannot be restored. ``bytes`` of contents are written. ``reasons``: what of it cannot be restored.
    """

    path: bytes
    deed: Deed
    kind: str
    bytes: int = 0
    reasons: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "path": os.fsdecode(self.path),
            "action": self.deed,
            "kind": self.kind,
            "bytes": self.bytes,
            "reasons": list(self.reasons),
        }

    @classmethod
    def of(cls, known: dict[str, Any]) -> Action:
        reasons = tuple(known["reasons"])
        return cls(os.fsencode(known["path"]), known["action"], known["kind"], known["bytes"], reasons)


@dataclass(slots=True)
class Totals:
    """Numbers of entries; ``bytes`` to be written; ``space``: what the target must have free, at most (files with holes
    and compressing file systems take less); ``incomplete``: entries of which something cannot be restored."""

    create: int = 0
    replace: int = 0
    update: int = 0
    remove: int = 0
    blocked: int = 0
    kept: int = 0
    unchanged: int = 0
    incomplete: int = 0
    bytes: int = 0
    space: int = 0


@dataclass(slots=True)
class Plan:
    """``available``: bytes free in the target's file system. Close it."""

    available: int = 0
    totals: Totals = field(default_factory=Totals)
    _batches: SpillTable = field(default_factory=lambda: SpillTable(tempfile.gettempdir()))
    _count: int = 0
    _recent: list[Action] = field(default_factory=list)

    def add(self, action: Action) -> None:
        self._recent.append(action)
        if len(self._recent) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        batch = json.dumps([action.as_json() for action in self._recent]).encode()
        self._batches.put(self._count.to_bytes(8, "big"), batch)
        self._count += 1
        self._recent = []

    def __iter__(self) -> Iterator[Action]:
        for number in range(self._count):
            batch = self._batches.get(number.to_bytes(8, "big"))
            assert batch is not None
            yield from map(Action.of, json.loads(batch))
        yield from self._recent

    def close(self) -> None:
        self._batches.close()

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self.totals), "available": self.available}
