"""The record of a job's runs: one small file for each, written when it begins and after each of its steps.

So what a crash has left is told from what is running, by the lock: the directory's flock is held by the run. Runs are
numbered, as the clock may be set back between two of them. No record holds names of files or contents: what a step has
to tell of them is numbers.

    NAME/runs/00000042.json   a run
    NAME/ack.json             up to which run a person has accepted what the guard held back
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from archiver.core.clock import Clock
from archiver.core.disk import Disk, explain, explained
from archiver.core.locks import DirectoryLock
from archiver.errors import ArchiverError, Locked, TooNew, UsageError
from formats.naming import MAX_TIME

State = Literal["ok", "partial", "deferred", "skipped", "held", "failed", "interrupted"]
RunState = Literal["running", "done", "crashed"]

_SCHEMA = 1
_FILE = re.compile(r"([0-9]{8})\.json")
_KEPT = 1000  # runs
_LARGEST = 4 << 20  # bytes
_PATIENCE = 2.0  # seconds: who only looks whether a run is going on holds the lock for a moment
_STATES, _RUN_STATES = get_args(State), get_args(RunState)
SKEW = 300  # seconds that a record may be ahead of the clock


@dataclass(frozen=True, slots=True)
class StepResult:
    """``name``: hook, backup, guard, prune, gc, verify, sync, tape or drill; ``target``: the store, the store or pool
    that it copies to, or when a hook is run. ``began`` in Unix seconds. ``figures``: numbers that reports are made of.
    """

    name: str
    target: str
    state: State
    exit_code: int
    text: str
    began: int
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same step in other runs."""
        return f"{self.name} {self.target}"

    @property
    def is_good(self) -> bool:
        return self.state in ("ok", "partial")

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "target": self.target,
            "state": self.state,
            "exit_code": self.exit_code,
            "text": self.text,
            "began": self.began,
            "duration_s": self.seconds,
            "figures": dict(self.figures),
        }

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> StepResult:
        """Raises KeyError, TypeError, ValueError."""
        state = known["state"]
        if state not in _STATES:
            raise ValueError("no state of a step")
        return cls(
            str(known["name"]),
            str(known["target"]),
            state,
            _whole(known["exit_code"]),
            str(known["text"]),
            _whole(known["began"]),
            float(_whole(known["duration_s"] * 1000)) / 1000,
            dict(known["figures"]),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One run. ``ended`` and ``exit_code`` are None while it runs, or when it crashed. ``text``: what kept it from
    being done; ``due``: until when it should have been."""

    job: str
    number: int
    began: int
    state: RunState = "running"
    ended: int | None = None
    exit_code: int | None = None
    text: str = ""
    due: int | None = None
    steps: tuple[StepResult, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": _SCHEMA,
            "job": self.job,
            "run": self.number,
            "state": self.state,
            "began": self.began,
            "ended": self.ended,
            "exit_code": self.exit_code,
            "text": self.text,
            "due": self.due,
            "items": [step.as_json() for step in self.steps],
        }

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> Run:
        """Raises KeyError, TypeError, ValueError."""
        state, ended, code, due = (known[name] for name in ("state", "ended", "exit_code", "due"))
        if known["schema"] != _SCHEMA or state not in _RUN_STATES:
            raise ValueError("no record of a run")
        return cls(
            str(known["job"]),
            _whole(known["run"]),
            _whole(known["began"]),
            state,
            None if ended is None else _whole(ended),
            None if code is None else _whole(code),
            str(known["text"]),
            None if due is None else _whole(due),
            tuple(map(StepResult.of, known["items"])),
        )

    def steps_named(self, name: str, target: str | None = None) -> list[StepResult]:
        return [step for step in self.steps if step.name == name and target in (None, step.target)]


class History:
    """The runs of one job. Reading writes nothing."""

    def __init__(self, directory: str, clock: Clock | None = None, disk: Disk | None = None) -> None:
        self.directory = directory
        self.clock = clock if clock is not None else Clock()
        self._disk = disk if disk is not None else Disk()
        self._lock: DirectoryLock | None = None
        self._known: dict[int, Run] = {}  # those that are over: nobody writes them again

    @property
    def job(self) -> str:
        return os.path.basename(self.directory)

    # -- reading -----------------------------------------------------------------------------------------------------

    def numbers(self) -> list[int]:
        """Of all runs, the newest first. Raises ArchiverError."""
        try:
            found = map(_FILE.fullmatch, os.listdir(self._runs))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise explain(error, "read", self._runs) from error
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def runs(self, most: int = _KEPT) -> list[Run]:
        """The newest first. A record that cannot be read is left out. Raises TooNew for one of a later version, which
        may say what must not be passed over, as that the guard holds something back; ArchiverError."""
        found = (self.run(number) for number in self.numbers()[:most])
        return [run for run in found if run is not None]

    def run(self, number: int) -> Run | None:
        if number in self._known:
            return self._known[number]
        try:
            with open(self._path(number), "rb") as file:
                known = json.loads(file.read(_LARGEST))
            self._check_version(known)
            run = Run.of(known)
            if run.state != "running":
                self._known[number] = run
            return run
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def settled(self) -> list[Run]:
        """The same, and a run that ended without a word is told as crashed."""
        runs, is_running = self.runs(), self.is_running()
        newest = runs[0].number if runs and is_running else None
        return [crashed(run) if run.state == "running" and run.number != newest else run for run in runs]

    def is_running(self) -> bool:
        if self._lock is not None:
            return True
        try:
            with DirectoryLock(self.directory, exclusive=False):
                return False
        except BlockingIOError:
            return True
        except OSError:
            return False

    @property
    def acknowledged(self) -> int:
        """The newest run that a person has accepted; 0 when there is none."""
        try:
            with open(self._acknowledgment, "rb") as file:
                known = json.loads(file.read(_LARGEST))
            self._check_version(known)
            return _whole(known["run"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0

    def _check_version(self, known: Mapping[str, Any]) -> None:
        if isinstance(known["schema"], int) and known["schema"] > _SCHEMA:
            raise TooNew(f"the history of the job {self.job} was written by a newer archiver", hint="update archiver")

    # -- writing -----------------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Be the only one who runs this job. Raises Locked, ArchiverError."""
        with explained("make", self._runs):
            self._disk.make_directories(self._runs, 0o700)
        try:
            self._lock = DirectoryLock(self.directory, wait_seconds=_PATIENCE)
        except BlockingIOError as error:
            raise Locked(
                f"the job {self.job} is running already", hint=f"see: archiver job status {self.job}"
            ) from error
        except OSError as error:
            raise ArchiverError(f"cannot lock {self.directory}: {(error.strerror or str(error)).lower()}") from error

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def begin(self) -> Run:
        """A new run, which is not recorded yet; those that crashed are told to have. Call ``lock`` first."""
        numbers = self.numbers()
        for number in numbers[:_KEPT]:
            run = self.run(number)
            if run is not None and run.state == "running":
                with suppress(ArchiverError):
                    self.put(crashed(run))
        for number in numbers[_KEPT - 1 :]:
            self._disk.remove_file(self._path(number))
        return Run(self.job, (numbers[0] if numbers else 0) + 1, self.clock.now())

    def put(self, run: Run) -> None:
        """Durable. Raises ArchiverError."""
        path = self._path(run.number)
        self._known.pop(run.number, None)
        with explained("write", path):
            self._disk.put(path, [json.dumps(run.as_json()).encode() + b"\n"], 0o600, sync=True)

    def acknowledge(self, number: int) -> None:
        """What the guard held back up to this run is right. Raises ArchiverError."""
        path = self._acknowledgment
        with explained("write", path):
            data = json.dumps({"schema": _SCHEMA, "run": number, "time": self.clock.now()})
            self._disk.put(path, [data.encode() + b"\n"], 0o600, sync=True)

    @property
    def _runs(self) -> str:
        return os.path.join(self.directory, "runs")

    @property
    def _acknowledgment(self) -> str:
        return os.path.join(self.directory, "ack.json")

    def _path(self, number: int) -> str:
        return os.path.join(self._runs, f"{number:08d}.json")


def _whole(value: Any) -> int:
    """A number of seconds, or a smaller one, that a date can be made of. Raises TypeError, ValueError."""
    if not 0 <= value <= MAX_TIME:
        raise ValueError("no number that was recorded")
    return int(value)


def crashed(run: Run) -> Run:
    return replace(run, state="crashed", text="it ended without a word: a crash, a kill or a power cut")


def state_directory(environment: Mapping[str, str], job: str) -> str:
    """Where the history of ``job`` is, and what else is remembered of it. Raises UsageError where there is no home."""
    base = environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return checked_home(os.path.join(base, "archiver", "jobs", job))


def checked_home(path: str) -> str:
    """A user without a home directory, or a relative one, has another one in each directory that a run starts in."""
    if not os.path.isabs(path):
        raise UsageError(f"{path} is relative, and a nightly run starts anywhere", hint="set HOME to a path from /")
    return path


def newest_good(runs: Sequence[Run], name: str, target: str, now: int) -> StepResult | None:
    """The last time that a step was done well. One of a time that is still to come, as the clock was wrong then, proves
    nothing: who trusted it would call a job fresh for years."""
    for run in runs:
        for step in reversed(run.steps):
            if step.name == name and step.target == target and step.is_good and step.began <= now + SKEW:
                return step
    return None
