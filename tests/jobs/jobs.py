"""A job for a test: its profile, its stores, its clock, and everything that its runs told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from archiver.core.events import Event, Notice
from archiver.jobs.history import History, Run, StepResult, state_directory
from archiver.jobs.load import load
from archiver.jobs.profile import Profile
from archiver.jobs.run import run_job
from archiver.jobs.standing import Standing, Trouble, standing
from archiver.jobs.surroundings import Surroundings
from archiver.store.store import Store
from tests.stores import SetClock

NIGHT = 1_795_600_800  # 2026-11-25T10:00:00Z
DAY = 86400


class Job:
    """Its profile says ``text`` besides the store and the sources, which are made."""

    def __init__(self, place: Path, text: str = "", *, files: int = 3, head: str | None = None) -> None:
        self.place = place
        self.source, self.store = place / "source", place / "store"
        self.source.mkdir()
        for number in range(files):
            (self.source / f"file-{number:03}.txt").write_text(f"contents {number}\n" * 20)
        Store.create(str(self.store))
        self.directory = Path(os.environ["XDG_CONFIG_HOME"]) / "archiver"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / "nightly.toml"
        self.head = f'store = "{self.store}"\nsources = ["{self.source}"]\n' if head is None else head
        self.say(text)
        self.clock = SetClock(NIGHT)
        self.told: list[str] = []
        self.around = Surroundings(
            os.environ, self.clock, self.hear, supplies=str(place / "no-supplies"), keep_awake=False
        )

    def say(self, text: str) -> None:
        """Of the profile all but the store and the sources."""
        self.path.write_text(self.head + text)
        os.utime(self.path, (NIGHT, NIGHT))

    def hear(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.told.append(event.text)

    @property
    def profile(self) -> Profile:
        return load("nightly", str(self.path))

    @property
    def history(self) -> History:
        return History(state_directory(os.environ, "nightly"), self.clock)

    @property
    def standing(self) -> Standing:
        return standing(self.profile, self.history, self.clock.now())

    def troubles(self) -> list[Trouble]:
        return list(self.standing.troubles)

    def run(self, *only: str, any_power: bool = False, **around: object) -> Run:
        surroundings = replace(self.around, **around)  # type: ignore[arg-type]
        return run_job(self.profile, self.history, surroundings, only=only, whatever_the_power=any_power)

    def snapshots(self, store: Path | None = None) -> list[str]:
        with Store.open(str(store or self.store), read_only=True) as opened:
            return sorted(str(ref) for ref in opened.snapshots())


def states(run: Run) -> dict[str, str]:
    """Of each step how it ended."""
    return {step.name if step.name != "hook" else step.target: step.state for step in run.steps}


def the_step(run: Run, name: str) -> StepResult:
    (found,) = run.steps_named(name)
    return found


def write_supplies(place: Path, supplies: Sequence[dict[str, str]]) -> Path:
    """A tree as the kernel shows it in /sys/class/power_supply."""
    place.mkdir(exist_ok=True)
    for number, files in enumerate(supplies):
        directory = place / f"supply{number}"
        directory.mkdir(exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text + "\n")
    return place
