"""How a job stands: what is newest of everything it is to do, what is older than it allows, what went wrong.

Silence is never taken for success: what was never done is as old as the first run that should have done it, or as the
profile; a snapshot that was forgotten or found damaged meanwhile does not count.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from archiver.errors import ArchiverError
from archiver.jobs.history import SKEW, History, Run, StepResult
from archiver.jobs.profile import Profile
from archiver.store.layout import SnapshotRef, parse_reference
from archiver.store.snapshots import verify_state
from archiver.store.store import Store

Kind = Literal["failure", "overdue", "held", "crash"]

_WORDS = {
    "backup": "snapshot in",
    "verify": "verify of",
    "sync": "copy in",
    "tape": "copy on tape, pool",
    "drill": "restore drill of",
}


@dataclass(frozen=True, slots=True)
class Age:
    """``step``: backup, verify, sync, tape or drill. ``newest``: when it was last done well, None for never; ``since``:
    what its age is counted from. Unix seconds, ``max_age`` in seconds."""

    step: str
    target: str
    newest: int | None
    since: int
    max_age: int | None
    now: int

    @property
    def due(self) -> int | None:
        return None if self.max_age is None else self.since + self.max_age

    @property
    def is_stale(self) -> bool:
        return self.due is not None and self.now > self.due

    @property
    def what(self) -> str:
        return f"{_WORDS[self.step]} {self.target}"

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "target": self.target,
            "newest": self.newest,
            "age_s": None if self.newest is None else max(self.now - self.newest, 0),
            "max_age_s": self.max_age,
            "due": self.due,
            "stale": self.is_stale,
        }


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that a person should know. ``key`` stays the same while it lasts; ``since`` in Unix seconds."""

    key: str
    kind: Kind
    text: str
    since: int

    def as_json(self) -> dict[str, Any]:
        return {"key": self.key, "kind": self.kind, "text": self.text, "since": self.since}


@dataclass(frozen=True, slots=True)
class Standing:
    job: str
    last: Run | None
    is_running: bool
    ages: tuple[Age, ...]
    troubles: tuple[Trouble, ...]

    @property
    def is_stale(self) -> bool:
        return any(age.is_stale for age in self.ages)

    @property
    def due(self) -> int | None:
        """Until when a snapshot should be made."""
        return min((age.due for age in self.ages if age.step == "backup" and age.due is not None), default=None)

    def as_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "running": self.is_running,
            "stale": self.is_stale,
            "due": self.due,
            "last_run": None if self.last is None else self.last.as_json(),
            "ages": [age.as_json() for age in self.ages],
            "troubles": [trouble.as_json() for trouble in self.troubles],
        }


def standing(profile: Profile, history: History, now: int) -> Standing:
    runs = history.settled()
    ages = all_ages(profile, runs, now)
    last = runs[0] if runs else None
    troubles = _troubles(profile, runs, ages, history.acknowledged)
    return Standing(profile.name, last, history.is_running(), ages, tuple(troubles))


def wanted(profile: Profile) -> list[tuple[str, str, int | None]]:
    """What the job is to do: the step, its target, the age that it allows."""
    ages, found = profile.max_age, [("backup", store, profile.max_age.snapshot) for store in profile.stores]
    if profile.verify is not None:
        found += [("verify", store, ages.verify) for store in profile.stores]
    found += [("sync", sync.target, sync.max_age) for sync in profile.syncs]
    found += [("tape", tape.pool, tape.max_age) for tape in profile.tapes]
    if profile.drill is not None:
        found += [("drill", store, ages.drill) for store in profile.stores]
    return found


def all_ages(profile: Profile, runs: Sequence[Run], now: int) -> tuple[Age, ...]:
    """``runs``: the newest first."""
    kept = _Kept(profile)
    return tuple(_age(step, target, most, runs, now, profile, kept) for step, target, most in wanted(profile))


def _age(step: str, target: str, most: int | None, runs: Sequence[Run], now: int, profile: Profile, kept: _Kept) -> Age:
    tried = now
    for run in runs:
        for result in reversed(run.steps):
            if (result.name, result.target) != (step, target):
                continue
            if result.began <= now + SKEW:  # else the clock was wrong, and proves nothing
                if result.is_good and (step != "backup" or kept.has(result)):
                    return Age(step, target, result.began, result.began, most, now)
                tried = min(tried, result.began)
    if tried == now:
        with suppress(OSError):
            tried = min(int(os.stat(profile.path).st_mtime), now)
    return Age(step, target, None, tried, most, now)


class _Kept:
    """Whether snapshots are still there and good; of stores that are not there now, nobody knows it better."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def has(self, result: StepResult) -> bool:
        text = result.figures.get("snapshot")
        if not isinstance(text, str):
            return True
        try:
            with Store.open(result.target, read_only=True) as store:
                if store.uuid != result.figures.get("uuid"):
                    return True
                ref = parse_reference(text)
                if not isinstance(ref, SnapshotRef) or not store.is_finished(ref):
                    return False
                state = verify_state(store.manifest(ref))
                return state is None or state.state == "ok"
        except ArchiverError:
            return True


def crash_of(runs: Sequence[Run]) -> Run | None:
    """The first of those that crashed one after the other until now. One that was skipped or interrupted since then
    heals nothing."""
    crashes = list(takewhile(lambda run: run.state == "crashed", (run for run in runs if not run.is_put_off)))
    return crashes[-1] if crashes else None


def _troubles(profile: Profile, runs: Sequence[Run], ages: Sequence[Age], acknowledged: int) -> list[Trouble]:
    found = []
    crash = crash_of(runs)
    if crash is not None:
        found.append(Trouble(f"crash {crash.number}", "crash", f"the run did not end: {crash.text}", crash.began))
    for key, ends in _ends(profile, runs).items():
        run, step = ends[0]
        since = _since(step, ends)
        text = f"{step.name} of {step.target}: {step.text}"
        if step.state == "failed":
            found.append(Trouble(f"failure {key}", "failure", text, since))
        elif step.state == "held" and run.number > acknowledged:
            found.append(Trouble(f"held {key}", "held", text, since))
    for age in ages:
        if age.is_stale:
            never = "there was never a" if age.newest is None else "too old is the newest"
            found.append(Trouble(f"overdue {age.step} {age.target}", "overdue", f"{never} {age.what}", age.due or 0))
    return found


def _ends(profile: Profile, runs: Sequence[Run]) -> dict[str, list[tuple[Run, StepResult]]]:
    """How each step that the profile still has has ended, the newest first, with the runs."""
    steps = {f"{step} {target}" for step, target, _ in wanted(profile)}
    steps |= {f"{step} {store}" for step in ("guard", "prune", "gc") for store in profile.stores}
    whens = [hook.when for hook in profile.hooks]
    steps |= {f"hook {when} {number}" for when in whens for number in range(1, whens.count(when) + 1)}
    found: dict[str, list[tuple[Run, StepResult]]] = {}
    for run in runs:
        for step in reversed(run.steps):
            if step.key in steps and _says(step):
                found.setdefault(step.key, []).append((run, step))
    return found


def _says(step: StepResult) -> bool:
    """Whether it tells how the step fares: a target that is absent heals nothing."""
    return step.state not in ("deferred", "skipped", "interrupted")


def _since(last: StepResult, ends: Sequence[tuple[Run, StepResult]]) -> int:
    """When a step began to end like this each time."""
    alike = takewhile(lambda end: end[1].state == last.state, ends)
    return min(step.began for _, step in alike)
