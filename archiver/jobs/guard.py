"""The guard: a night that changes or removes far more files than any before may be an accident, or somebody who
encrypts them. What is kept of the time before it must not be pruned then, until a person has looked.

What counts is how many files of the snapshot before are changed or gone; one that was moved is not, and new ones harm
nothing. Signs that make it worse: new data that cannot be compressed, unlike what came before, and names that have got
one and the same ending. A quiet night costs nothing: only where the counters of the backup leave it open the two
snapshots are compared, by their catalogs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archiver.browse.diff import Change as FileChange
from archiver.browse.sides import archive_names, tree_changes
from archiver.browse.snapshot import Snapshot
from archiver.jobs.profile import Guard

LOOKED_AT = 30  # runs

_FEWEST = 20  # files: of less nobody can tell a habit from an accident
_OPEN = 0.1  # share of files from which on the snapshots are compared
_TIMES = 3  # as many times the largest share that was ever right
_MOST = 90.0  # percent: all that is more is told whatever the history is
_LEAST = 10.0  # percent: however bad the signs are
_DENSE, _WAS_SOFTER = 0.97, 0.9  # stored bytes for a byte of new data
_MANY, _FEW = 0.5, 0.1  # share of the changed files with one ending, after and before
_MEBIBYTE = 1 << 20
_MOVES_KEPT = 100_000
_ENDINGS_KEPT = 1000
_NEW_CONTENTS = frozenset(("kind", "size", "mtime"))


@dataclass(frozen=True, slots=True)
class Change:
    """What a run found changed: ``lost`` of ``files`` that were there before are changed or gone. ``density``: stored
    bytes for each byte of new data; ``ending``: the one that took over, ``ending_share`` of what is new has it."""

    files: int
    lost: int
    density: float | None = None
    ending: str | None = None
    ending_share: float = 0.0

    @property
    def share(self) -> float:
        return self.lost / self.files if self.files else 0.0

    def figures(self) -> dict[str, Any]:
        """What is recorded: no part of a name."""
        return {
            "files_before": self.files,
            "lost": self.lost,
            "share": round(self.share, 4),
            "density": None if self.density is None else round(self.density, 3),
            "ending_share": round(self.ending_share, 3),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason``: why prune and gc are held, None when all is well. ``limit``: percent of the files."""

    change: Change
    limit: float
    reason: str | None

    def figures(self) -> dict[str, Any]:
        return self.change.figures() | {"limit": round(self.limit, 1)}


@dataclass(slots=True)
class _Tally:
    """Files of two snapshots that differ."""

    changed: int = 0
    removed: int = 0
    moved: int = 0
    gone: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    came: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    endings_before: Counter[str] = field(default_factory=Counter)
    endings_after: Counter[str] = field(default_factory=Counter)

    def add(self, change: FileChange) -> None:
        before, after = change.before, change.after
        if before is not None and before.kind == "file" and after is None:
            self.removed += 1
            self._note(self.gone, before)
            _count(self.endings_before, change.path)
        elif after is not None and after.kind == "file" and before is None:
            self._note(self.came, after)
            _count(self.endings_after, change.path)
        elif before is not None and before.kind == "file" and not _NEW_CONTENTS.isdisjoint(change.what):
            self.changed += 1
            _count(self.endings_before, change.path)
            _count(self.endings_after, change.path)

    def _note(self, where: Counter[tuple[int, int, int]], entry: Any) -> None:
        if entry.metadata is not None and len(where) < _MOVES_KEPT:
            stat = entry.metadata.stat
            where[entry.size, stat.mtime_secs, stat.mtime_nanos] += 1

    @property
    def lost(self) -> int:
        moved = sum(min(count, self.came[key]) for key, count in self.gone.items())
        return self.changed + self.removed - moved

    def ending(self) -> tuple[str | None, float]:
        """The ending that many have now and few had before, and the share of what is new that has it."""
        total = self.endings_after.total()
        for ending, count in self.endings_after.most_common(1):
            before = self.endings_before[ending] / max(self.endings_before.total(), 1)
            if ending and count >= _MANY * total and before <= _FEW:
                return ending, count / total
        return None, 0.0


def _count(endings: Counter[str], path: bytes) -> None:
    ending = os.path.splitext(os.fsdecode(path))[1]
    if ending in endings or len(endings) < _ENDINGS_KEPT:
        endings[ending] += 1


def lost_at_most(figures: Mapping[str, Any], before: Mapping[str, Any]) -> int:
    """How many of the files before may be changed or gone, as the counters of two backups have it: those that were not
    taken over."""
    return max(int(before["files"]) - int(figures["unchanged"]), 0)


def is_open(figures: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether the counters cannot say that all is well."""
    most = lost_at_most(figures, before)
    return most >= _FEWEST and most > _OPEN * int(before["files"])


def density(figures: Mapping[str, Any]) -> float | None:
    new = int(figures["new_bytes"])
    return int(figures["stored_bytes"]) / new if new >= _MEBIBYTE else None


def counted(figures: Mapping[str, Any], before: Mapping[str, Any]) -> Change:
    """Of a night in which the counters say enough."""
    return Change(int(before["files"]), lost_at_most(figures, before), density(figures))


def compared(old: Snapshot, new: Snapshot, figures: Mapping[str, Any], before: Mapping[str, Any]) -> Change:
    """Of one in which they do not. Raises ArchiverError."""
    tally = _Tally()
    for name, kind in archive_names(old, new).items():
        if kind == "tree":
            for change in tree_changes(old, new, name, b"/", contents=False):
                tally.add(change)
    return Change(int(before["files"]), tally.lost, density(figures), *tally.ending())


def judge(guard: Guard, change: Change, past: Sequence[Mapping[str, Any]]) -> Verdict:
    """``past``: what was recorded of the nights before that were right, the newest first."""
    shares = [float(each.get("share", 0.0)) for each in past[:LOOKED_AT]]
    limit = min(max(guard.share, *(_TIMES * 100 * share for share in shares), 0.0), _MOST)
    signs = list(_signs(change, past[:LOOKED_AT]))
    if signs:
        limit = max(limit / 2, _LEAST)
    if change.lost < _FEWEST or 100 * change.share <= limit:
        return Verdict(change, limit, None)
    usual = f", at most {100 * max(shares):.0f} % before" if shares else ""
    text = f"{change.lost} of {change.files} files ({100 * change.share:.0f} %) were changed or removed at once{usual}"
    return Verdict(change, limit, "; ".join([text, *signs]))


def _signs(change: Change, past: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    known = sorted(float(each["density"]) for each in past if each.get("density") is not None)
    if change.density is not None and change.density >= _DENSE and known and known[len(known) // 2] <= _WAS_SOFTER:
        yield "the new data cannot be compressed, unlike what came before"
    if change.ending is not None:
        yield f"{100 * change.ending_share:.0f} % of what is new has one and the same new ending"
