"""What a restore would do, as a value: which snapshots, and of which media which files are read for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from archiver.errors import Damaged, NotFound
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from archiver.tape.members import Member, SetCatalog
from archiver.tape.problem import Problem
from archiver.tape.restore.routes import Routes, snapshot_on_medium

_HOLES_NAMED = 20

Action = Literal["restore", "skip"]


@dataclass(frozen=True, slots=True)
class Step:
    """A snapshot on the media: ``source`` store, place of its medium, number of its file, what it becomes where."""

    source: str
    ref: SnapshotRef
    seq_nr: int
    file: int
    targets: tuple[SnapshotRef, ...]
    action: Action
    reason: str

    @property
    def name(self) -> str:
        return f"{self.source}:{self.ref}"

    def as_json(self) -> dict[str, Any]:
        return {
            "snapshot": self.name,
            "targets": [str(target) for target in self.targets],
            "action": self.action,
            "reason": self.reason,
            "media_seq_nr": self.seq_nr,
            "file": self.file,
        }


@dataclass(slots=True)
class Visit:
    """A medium that is needed. ``snapshots`` and ``chunks``: numbers of the files to be read; ``chunks`` None: known
    only when the snapshots' archives were read; ``all_files``: it has no catalog here, so every file is read."""

    member: Member
    snapshots: list[int] = field(default_factory=list)
    chunks: list[int] | None = None
    all_files: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "label": self.member.label,
            "seq_nr": self.member.seq_nr,
            "all_files": self.all_files,
            "snapshot_files": self.snapshots,
            "chunk_files": self.chunks,
        }


@dataclass(slots=True)
class RestorePlan:
    """``whole``: medium by medium from the first on, every needed file in its order; else the snapshots' archives
    first, from the last medium on, then only the files that hold chunks which are missing here. ``bytes``: about how
    much is read, None where that is not known."""

    whole: bool
    steps: list[Step] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    bytes: int | None = None

    @property
    def work(self) -> list[Step]:
        return [step for step in self.steps if step.action == "restore"]

    def as_json(self) -> dict[str, Any]:
        return {
            "whole": self.whole,
            "media": [visit.as_json() for visit in self.visits],
            "items": [step.as_json() for step in self.steps],
            "bytes": self.bytes,
        }


def make_plan(catalog: SetCatalog, routes: Routes) -> RestorePlan:
    """Raises NotFound for a snapshot that was asked for and is not in the set, UsageError."""
    plan = RestorePlan(routes.is_whole)
    for entry in sorted(catalog.snapshots(), key=lambda found: (found.position, found.file)):
        try:
            ref = snapshot_on_medium(entry.path)
        except Damaged as error:
            plan.problems.append(Problem(f"{entry.store}:{entry.path}", error))
            continue
        store = routes.store(entry.store)
        targets = routes.targets(entry.store, ref)
        if store is not None and targets:
            plan.steps.append(_step(store, entry.store, ref, entry.position, entry.file, targets))
    _latest_only(plan.steps)
    for selected in routes.selected:
        if not any(selected.is_it(step.source, step.ref) for step in plan.steps):
            name = f"{selected.store}:{selected.ref}" if selected.store else str(selected.ref)
            raise NotFound(f"the media set has no snapshot {name}", hint="see: archiver tape media content")
    unknown = [member for member in catalog.members if catalog.log(member) is None]
    if routes.is_whole:
        _plan_whole(plan, catalog, unknown)
    else:
        _plan_chosen(plan, catalog)
    return plan


def _step(
    store: Store, source: str, ref: SnapshotRef, seq_nr: int, file: int, targets: tuple[SnapshotRef, ...]
) -> Step:
    missing = tuple(target for target in targets if not store.is_finished(target))
    if missing:
        return Step(source, ref, seq_nr, file, missing, "restore", "not there")
    return Step(source, ref, seq_nr, file, targets, "skip", "there")


def _latest_only(steps: list[Step]) -> None:
    """A snapshot may be on the media twice, as a later run did not know of the first: the newer one is as good."""
    last = {(step.source, step.ref): place for place, step in enumerate(steps)}
    steps[:] = [step for place, step in enumerate(steps) if last[step.source, step.ref] == place]


def _plan_whole(plan: RestorePlan, catalog: SetCatalog, unknown: Sequence[Member]) -> None:
    """What is left to do decides about media; which chunk archives are needed is asked of the stores when a medium is
    in the drive."""
    work = plan.work
    last = max((step.seq_nr for step in work), default=-1)
    for member in catalog.members:
        if member in unknown:
            plan.visits.append(Visit(member, all_files=True))
        elif member.seq_nr <= last:
            files = sorted(step.file for step in work if step.seq_nr == member.seq_nr)
            plan.visits.append(Visit(member, files))
    holes = [hole for hole in catalog.holes if hole <= last or unknown]
    for hole in holes[:_HOLES_NAMED]:
        plan.problems.append(Problem(f"medium {hole}", NotFound(f"medium number {hole} of the set is not known")))
    more = len(holes) - _HOLES_NAMED
    if more > 0:
        plan.problems.append(Problem(f"{more} more media", NotFound(f"{more} more media of the set are not known")))


def _plan_chosen(plan: RestorePlan, catalog: SetCatalog) -> None:
    by_medium: dict[int, list[int]] = {}
    for step in plan.work:
        by_medium.setdefault(step.seq_nr, []).append(step.file)
    for member in reversed(catalog.members):
        if member.seq_nr in by_medium:
            plan.visits.append(Visit(member, sorted(by_medium[member.seq_nr])))
