"""What a run of a job will do, as a value: in which order, and which steps are not due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from archiver.errors import UsageError
from archiver.jobs.history import Run, newest_good
from archiver.jobs.profile import Profile

_EARLY = 3600  # seconds: what is due so soon is done now, for a nightly run is never exactly a day after the last
_PART = 4  # but no more than one part of so many of the time between two


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """``number``: of the sync or tape in the profile. ``reason``: why it is done, or is not."""

    name: str
    target: str
    is_due: bool
    reason: str
    number: int = 0

    def as_json(self) -> dict[str, Any]:
        return {"step": self.name, "target": self.target, "due": self.is_due, "reason": self.reason}


def check_steps(profile: Profile, names: Sequence[str]) -> None:
    """Raises UsageError for one that the profile says nothing of, and that cannot be done so."""
    parts = {
        "guard": profile.guard.enabled,
        "verify": profile.verify is not None,
        "sync": bool(profile.syncs),
        "tape": bool(profile.tapes),
        "drill": profile.drill is not None,
    }
    for name in names:
        if not parts.get(name, True):
            raise UsageError(f"there is no {name} in the profile of {profile.name}", hint=f"see: {profile.path}")


def plan_run(profile: Profile, runs: Sequence[Run], now: int) -> tuple[PlannedStep, ...]:
    """``runs``: those before, the newest first."""
    keeps_all = profile.retention.within is None and profile.retention.keep.keeps_nothing

    def each(name: str, target: str, every: int | None, number: int = 0) -> PlannedStep:
        if every is None:
            return PlannedStep(name, target, False, "the profile turns it off", number)
        last = newest_good(runs, name, target, now)
        if last is None:
            return PlannedStep(name, target, True, "it was never done", number)
        left = last.began + every - min(_EARLY, every // _PART) - now
        if left > 0:
            return PlannedStep(name, target, False, f"due in {left // 3600} hours", number)
        return PlannedStep(name, target, True, "it is due", number)

    steps: list[PlannedStep] = []
    for store in profile.stores:
        steps.append(PlannedStep("backup", store, True, "each run"))
        if profile.guard.enabled:
            steps.append(PlannedStep("guard", store, True, "each run"))
        steps.append(PlannedStep("prune", store, not keeps_all, "no keep option is given" if keeps_all else "each run"))
        steps.append(each("gc", store, profile.gc_every))
        steps.append(each("verify", store, None if profile.verify is None else profile.verify.every))
    steps += [each("sync", sync.target, sync.every, number) for number, sync in enumerate(profile.syncs)]
    steps += [each("tape", tape.pool, tape.every, number) for number, tape in enumerate(profile.tapes)]
    if profile.drill is not None:
        steps += [each("drill", store, profile.drill.every) for store in profile.stores]
    return tuple(steps)
