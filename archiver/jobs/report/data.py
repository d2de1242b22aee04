"""What reports are made of: the history of a job's runs, how it stands, and what its stores have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from archiver.errors import ArchiverError, NotFound
from archiver.jobs.history import History, Run
from archiver.jobs.profile import Profile
from archiver.jobs.report.grown import Grown, grown
from archiver.jobs.standing import Standing, standing
from archiver.store.coverage import Coverage, coverage
from archiver.store.layout import SnapshotRef, parse_reference
from archiver.store.snapshots import verify_state
from archiver.store.store import Store


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """``verify``: ok, failed or None, as the last verification of all of it found."""

    time: int
    size: int
    verify: str | None

    def as_json(self) -> dict[str, Any]:
        return {"time": self.time, "size": self.size, "verify": self.verify}


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """``absent``: why nothing is known of it now, as when its drive is in a drawer."""

    path: str
    absent: str | None
    snapshots: tuple[SnapshotFacts, ...] = ()
    coverage: Coverage | None = None
    grown: Grown | None = None
    total: int = 0
    available: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "absent": self.absent,
            "total": self.total,
            "available": self.available,
            "snapshots": [snapshot.as_json() for snapshot in self.snapshots],
            "coverage": None if self.coverage is None else self.coverage.as_json(),
            "grown": None if self.grown is None else self.grown.as_json(),
        }


@dataclass(frozen=True, slots=True)
class Overview:
    """Of a job at the moment ``now``. ``runs``: the newest first."""

    job: str
    host: str
    now: int
    standing: Standing
    stores: tuple[StoreFacts, ...]
    runs: tuple[Run, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "job": self.job,
            "host": self.host,
            "time": self.now,
            "standing": self.standing.as_json(),
            "stores": [store.as_json() for store in self.stores],
            "items": [run.as_json() for run in self.runs],
        }


@dataclass(frozen=True, slots=True)
class RunReport:
    """Of one run. ``grown``: by store, of the snapshots that are still there."""

    job: str
    host: str
    now: int
    run: Run
    grown: tuple[Grown, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "job": self.job,
            "host": self.host,
            "time": self.now,
            "run": self.run.as_json(),
            "items": [each.as_json() for each in self.grown],
        }


def overview(profile: Profile, history: History) -> Overview:
    now = history.clock.now()
    stores = tuple(_store_facts(path, profile, now) for path in profile.stores)
    return Overview(
        profile.name, os.uname().nodename, now, standing(profile, history, now), stores, tuple(history.settled())
    )


def run_report(profile: Profile, history: History, number: int | None) -> RunReport:
    """Of the run with this number, of the newest one for None. Raises NotFound."""
    runs = history.settled()
    run = next((run for run in runs if number in (None, run.number)), None)
    if run is None:
        what = f"no run {number}" if number is not None else "no run yet"
        hint = f"runs are numbered {runs[-1].number} to {runs[0].number}" if runs else None
        raise NotFound(f"there is {what} of the job {profile.name}", hint=hint)
    found = [each for step in run.steps_named("backup") if (each := _grown_by(step.target, step.figures)) is not None]
    return RunReport(profile.name, os.uname().nodename, history.clock.now(), run, tuple(found))


def _store_facts(path: str, profile: Profile, now: int) -> StoreFacts:
    try:
        with Store.open(path) as store:
            refs = [
                ref for when in store.times(profile.group) if store.is_finished(ref := SnapshotRef(profile.group, when))
            ]
            facts, known = [], []
            for ref in refs:
                try:
                    manifest = store.manifest(ref)
                except ArchiverError:
                    continue  # verify tells about it
                state = verify_state(manifest)
                size = sum(file.size for file in manifest.files)
                facts.append(SnapshotFacts(ref.time, size, None if state is None else state.state))
                known.append(ref)
            space = os.statvfs(path)
            return StoreFacts(
                path,
                None,
                tuple(facts),
                coverage(store, known, now),
                _between(store, known),
                space.f_blocks * space.f_frsize,
                space.f_bavail * space.f_frsize,
            )
    except ArchiverError as error:
        return StoreFacts(path, str(error))


def _between(store: Store, refs: Sequence[SnapshotRef]) -> Grown | None:
    """Of the two newest; None where there are none, or they cannot be compared."""
    if len(refs) < 2:
        return None
    try:
        return grown(store, *refs[-2:])
    except ArchiverError:
        return None


def _grown_by(path: str, figures: Any) -> Grown | None:
    name = figures.get("snapshot")
    if not isinstance(name, str):
        return None
    try:
        with Store.open(path) as store:
            ref = parse_reference(name)
            if not isinstance(ref, SnapshotRef):
                return None
            times = [when for when in store.times(ref.group) if when <= ref.time]
            refs = [each for when in times if store.is_finished(each := SnapshotRef(ref.group, when))]
            return _between(store, refs) if refs and refs[-1] == ref else None
    except ArchiverError:
        return None
