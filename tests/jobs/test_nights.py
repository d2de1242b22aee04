"""Thirty nights of a laptop: its tree changes, its drive is plugged in every third night, and things go wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from archiver.core import disk
from archiver.jobs import steps as steps_module
from archiver.jobs.history import Run
from archiver.jobs.notify.after import tell
from archiver.store.sessions import Session
from archiver.store.store import Store
from tests.cli.command import call
from tests.compare import differences
from tests.jobs.jobs import DAY, NIGHT, Job, states, the_step
from tests.random_trees import build_plain, mutate

pytestmark = pytest.mark.in_memory

NIGHTS = 30
CRASH_IN_BACKUP, FULL_DISK, FORGOTTEN, CRASH_IN_VERIFY, JUMP = 5, 9, 12, 17, 21
YEAR = 400 * DAY
MORNING = 5 * 3600

PROFILE = """
[keep]
last = 3
daily = 6
weekly = 3
[gc]
every = "3d"
[verify]
budget = "all"
[drill]
every = "10d"
files = 5
[max-age]
snapshot = "3d"
verify = "3d"
drill = "15d"
[[sync]]
target = "{copy}"
every = "12h"
max-age = "5d"
[[notify]]
kind = "command"
to = "cat >> {log}; echo >> {log}"
"""


class Laptop(Job):
    """With what it has told its user, and a model of what must be in its store."""

    def __init__(self, place: Path) -> None:
        self.copy, self.drawer, self.log = place / "copy", place / "drawer", place / "log"
        super().__init__(place, PROFILE.format(copy=self.copy, log=self.log), files=0)
        build_plain(self.source, 8, 60)
        Store.create(str(self.drawer))
        self.expected: list[int] = []
        self.verified: int | None = None
        self.trees: dict[int, Path] = {}

    @contextmanager
    def plugged(self, is_plugged: bool) -> Iterator[None]:
        if is_plugged:
            self.drawer.rename(self.copy)
        try:
            yield
        finally:
            if is_plugged:
                self.copy.rename(self.drawer)

    def time_of(self, run: Run) -> int:
        """Of the snapshot that a run has made."""
        from formats.naming import parse_time

        return parse_time(str(the_step(run, "backup").figures["snapshot"]).rsplit("/", 1)[1])

    def saved(self, when: int) -> None:
        self.expected.append(when)
        self.trees[when] = self.place / f"tree-{when}"
        shutil.copytree(self.source, self.trees[when], symlinks=True)

    def pruned(self) -> None:
        """As the profile's keep options say; the newest that was verified stays too."""
        kept = sorted(self.expected, reverse=True)[:3]
        for form, count in (("%Y-%m-%d", 6), ("%G-%V", 3)):
            covered = {time.strftime(form, time.localtime(when)) for when in kept}
            found: dict[str, int] = {}
            for when in sorted(set(self.expected) - set(kept), reverse=True):
                found.setdefault(time.strftime(form, time.localtime(when)), when)
            kept += [when for period, when in found.items() if period not in covered][:count]
        if self.verified in self.expected:
            kept.append(self.verified)
        self.expected = sorted(set(kept))

    def times(self, store: Path) -> list[int]:
        with Store.open(str(store), read_only=True) as opened:
            return [ref.time for ref in reversed(list(opened.snapshots()))]

    def morning(self) -> set[str]:
        """Somebody looks: the troubles that are told, by their kinds and steps."""
        tell(self.profile, self.standing, None, self.history.directory, self.hear, self.clock)
        return {
            trouble.key.replace(str(self.store), "store").replace(str(self.copy), "copy") for trouble in self.troubles()
        }

    def messages(self) -> list[str]:
        """Each line that the user was sent."""
        lines: list[str] = []
        for text in self.log.read_text().splitlines():
            lines += json.loads(text)["items"]
        return [line for line in lines if not line.startswith("more: ")]


def killed(job: Job, at: Callable[[], None]) -> None:
    """The run in a process of its own, which is killed when it comes to what ``at`` has put into its way."""
    child = os.fork()
    if child == 0:
        try:
            at()
            job.run()
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_backup() -> None:
    Session.publish = kill  # type: ignore[method-assign,assignment]


def in_verify() -> None:
    setattr(steps_module, "verify", kill)  # noqa: B010  it is nobody's export


def fill(patched: pytest.MonkeyPatch, store: Path) -> None:
    """The file system of the store has no room for another byte."""
    real = disk.write_all

    def write_all(fd: int, parts: object) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{store}/"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, parts)  # type: ignore[arg-type]

    patched.setattr(disk, "write_all", write_all)


def forget(store: Path, when: int) -> None:
    from formats.naming import format_time

    (group,) = {path.parent.name for path in store.glob("host/*/*Z")}
    assert call("--store", store, "forget", f"host/{group}/{format_time(when)}").code == 0


def test_thirty_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laptop = Laptop(tmp_path)
    troubles: dict[int, set[str]] = {}
    future: list[int] = []
    for night in range(NIGHTS):
        laptop.clock.time = NIGHT + night * DAY + (YEAR if night == JUMP else 0)
        mutate(laptop.source, night, 5)
        is_plugged = night % 3 == 0 and night != FORGOTTEN
        with laptop.plugged(is_plugged):
            if night == CRASH_IN_BACKUP:
                killed(laptop, in_backup)
            elif night == CRASH_IN_VERIFY:
                killed(laptop, in_verify)
                laptop.saved(laptop.clock.time)
                laptop.pruned()
            else:
                with monkeypatch.context() as patched:
                    if night == FULL_DISK:
                        fill(patched, laptop.store)
                    run = laptop.run()
                tell(laptop.profile, laptop.standing, run, laptop.history.directory, laptop.hear, laptop.clock)
                ends = states(run)
                assert ends["backup"] == ("failed" if night == FULL_DISK else "ok"), run
                assert ends["verify"] == "ok" and ends.get("gc", "ok") == "ok"
                assert ends["sync"] == ("deferred" if not is_plugged else "failed" if night == JUMP + 3 else "ok")
                if night != FULL_DISK:
                    laptop.saved(laptop.time_of(run))
                assert ends["prune"] == ("held" if night == JUMP + 1 else "ok")
                if night != JUMP + 1:
                    laptop.pruned()
                laptop.verified = max(laptop.expected)
            laptop.clock.time += MORNING
            assert laptop.times(laptop.store) == laptop.expected
            found = laptop.morning()
            if found:
                troubles[night] = found
            # What the user does about a clock that was wrong.
            if night == JUMP + 1:
                future = laptop.expected[-2:]
                for when in future:
                    forget(laptop.store, when)
                    laptop.expected.remove(when)
                laptop.verified = None
            if night == JUMP + 3:
                forget(laptop.copy, future[0])
                laptop.run("sync")
                assert laptop.morning() == set()
                assert laptop.times(laptop.copy)[-1] == laptop.expected[-1]

    assert troubles == {
        CRASH_IN_BACKUP: {"crash 6"},
        FULL_DISK: {"failure backup store"},
        FORGOTTEN + 2: {"overdue sync copy"},
        CRASH_IN_VERIFY: {"crash 18"},
        JUMP + 1: {"held prune store"},
        JUMP + 2: {"overdue sync copy"},
        JUMP + 3: {"failure sync copy", "overdue sync copy"},
    }
    told = [line.removeprefix("over: ").split(" (since")[0] for line in laptop.messages()]
    problems = [line for line in laptop.messages() if not line.startswith("over: ")]
    assert len(problems) == 7 and len(told) == 14  # each began once and ended once
    assert sorted(told)[::2] == sorted(told)[1::2] == sorted(problems)
    for store in (laptop.store, laptop.drawer):
        for when in laptop.times(store):
            restore(laptop, store, when)


def restore(laptop: Laptop, store: Path, when: int) -> None:
    from formats.naming import format_time

    (group,) = {path.parent.name for path in store.glob("host/*/*Z")}
    out = laptop.place / "out"
    snapshot = f"host/{group}/{format_time(when)}"
    done = call("--store", store, "restore", snapshot, out, "--archive", "source.pxar")
    assert done.code == 0, done.err
    assert differences(laptop.trees[when], out) == []
    shutil.rmtree(out)


def test_the_model_can_fail(tmp_path: Path) -> None:
    laptop = Laptop(tmp_path)
    laptop.expected = [NIGHT + night * DAY for night in range(20)]
    laptop.pruned()
    assert 9 <= len(laptop.expected) < 13 and NIGHT + 19 * DAY in laptop.expected
