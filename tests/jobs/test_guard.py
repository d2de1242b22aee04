"""The guard: what it takes for an accident, what it takes for a usual night, and what it holds back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archiver.errors import Held
from archiver.jobs.guard import Change, judge
from archiver.jobs.history import Run
from archiver.jobs.profile import Guard
from tests.cli.command import ask, call
from tests.jobs.jobs import DAY, Job, states, the_step

pytestmark = pytest.mark.in_memory

KEEP = "[keep]\nlast = 2\n[gc]\nevery = '1h'\n[verify]\nenabled = false\n"
FILES = 60
HELD = {"backup": "ok", "guard": "held", "prune": "skipped", "gc": "skipped"}
FREE = {"backup": "ok", "guard": "ok", "prune": "ok", "gc": "ok"}


def files(job: Job) -> list[Path]:
    return sorted(path for path in job.source.rglob("*") if path.is_file())


def encrypt_all(job: Job) -> None:
    for path in files(job):
        path.write_bytes(os.urandom(len(path.read_bytes())))
        path.rename(f"{path}.locked")


def remove_half(job: Job) -> None:
    for path in files(job)[::2]:
        path.unlink()


def rewrite_half(job: Job) -> None:
    for path in files(job)[::2]:
        path.write_text("other contents\n" * 20)


def add_many(job: Job) -> None:
    for number in range(5 * FILES):
        (job.source / f"new-{number}").write_text(f"new {number}")


def move_all(job: Job) -> None:
    (job.source / "moved").mkdir()
    for path in files(job):
        path.rename(job.source / "moved" / path.name)


def change_modes(job: Job) -> None:
    for path in files(job):
        path.chmod(0o600)


def remove_few(job: Job) -> None:
    for path in files(job)[:10]:
        path.unlink()


def nights(job: Job, count: int) -> list[Run]:
    """Nights in which a file changes."""
    runs: list[Run] = []
    for night in range(count):
        (job.source / "diary.txt").write_text("line\n" * (night + len(runs)))
        runs.append(job.run())
        job.clock.time += DAY
    return runs


@pytest.mark.parametrize("mode", ["metadata", "data"])
@pytest.mark.parametrize("accident", [encrypt_all, remove_half, rewrite_half])
def test_an_accident_is_held_until_a_person_has_looked(
    tmp_path: Path, accident: Callable[[Job], None], mode: str
) -> None:
    job = Job(tmp_path, f"mode = '{mode}'\n" + KEEP, files=FILES)
    assert [states(run) for run in nights(job, 3)] == [FREE] * 3
    good = job.snapshots()
    accident(job)
    run = job.run()
    assert states(run) == HELD and run.exit_code == Held.exit_code
    assert job.snapshots()[:-1] == good
    (trouble,) = job.troubles()
    assert (trouble.kind, trouble.key) == ("held", f"held guard {job.store}")
    for _ in range(2):  # quiet nights change nothing
        job.clock.time += DAY
        assert states(job.run()) == HELD
        assert job.troubles()[0].since == trouble.since
    assert job.snapshots()[:2] == good
    assert states(job.run("prune")) == {"prune": "skipped"}  # not by asking for it alone either
    done = ask("job", "ack", "nightly")
    assert [item["key"] for item in done["items"]] == [trouble.key]
    assert job.troubles() == []
    assert "nothing is held" in call("job", "ack", "nightly").out
    job.clock.time += DAY
    assert states(job.run()) == FREE
    assert not set(good) & set(job.snapshots())


@pytest.mark.parametrize("usual", [add_many, move_all, change_modes, remove_few])
def test_a_usual_night_is_not_held(tmp_path: Path, usual: Callable[[Job], None]) -> None:
    job = Job(tmp_path, KEEP, files=FILES)
    nights(job, 2)
    usual(job)
    assert states(job.run()) == FREE


def test_what_the_record_says(tmp_path: Path) -> None:
    """No part of a name, but for a person who looks at the terminal."""
    job = Job(tmp_path, KEEP, files=FILES)
    nights(job, 2)
    encrypt_all(job)
    run = job.run()
    step = the_step(run, "guard")
    assert step.figures["lost"] == FILES + 1 and step.figures["ending_share"] == 1.0
    assert step.text.startswith(f"{FILES + 1} of {FILES + 2} files (98 %) were changed or removed at once")
    assert "100 % of what is new has one and the same new ending" in step.text
    assert "locked" not in json.dumps(run.as_json())
    assert "many of the new files are called *.locked" in job.told


def test_a_guard_that_is_turned_off(tmp_path: Path) -> None:
    job = Job(tmp_path, KEEP + "[guard]\nenabled = false\n", files=FILES)
    nights(job, 2)
    encrypt_all(job)
    run = job.run()
    assert "guard" not in states(run) and states(run)["prune"] == "ok"


def test_deletion_in_legacy_mode(tmp_path: Path) -> None:
    """Where there are no counters of what is unchanged, the number of files is what is left."""
    job = Job(tmp_path, "mode = 'legacy'\n" + KEEP, files=FILES)
    assert [states(run) for run in nights(job, 2)] == [FREE] * 2
    remove_half(job)
    assert states(job.run()) == HELD


def test_an_encrypted_job(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    assert call("key", "create", key, "--kdf", "none").code == 0
    job = Job(tmp_path, KEEP + f"[key]\nfile = '{key}'\n", files=FILES)
    assert [states(run) for run in nights(job, 2)] == [FREE] * 2
    remove_half(job)
    run = job.run()
    assert states(run) == HELD and the_step(run, "backup").figures["encrypted"]
    key.unlink()
    run = job.run()
    assert (the_step(run, "backup").exit_code, run.exit_code) == (12, 12)


GUARD = Guard(True, 30.0)


def past(*shares: float, density: float | None = None) -> list[dict[str, Any]]:
    return [{"share": share, "density": density} for share in shares]


@pytest.mark.parametrize(
    ("change", "before", "held"),
    [
        (Change(1000, 290), past(0.01), False),
        (Change(1000, 310), past(0.01), True),
        (Change(1000, 310), [], True),  # there is no history yet
        (Change(1000, 310), past(0.01, 0.2), False),  # not more than three times what was right before
        (Change(1000, 610), past(0.01, 0.2), True),
        (Change(1000, 890), past(0.5), False),
        (Change(1000, 910), past(0.5), True),  # nearly all is always told
        (Change(19, 19), past(0.0), False),  # too few to say
        (Change(1000, 160, density=1.0), past(0.01, density=0.5), True),  # cannot be compressed
        (Change(1000, 160, density=1.0), past(0.01, density=0.99), False),  # it never could
        (Change(1000, 160, ending=".x", ending_share=0.9), past(0.01), True),
        (Change(1000, 140, density=1.0, ending=".x", ending_share=0.9), past(0.01, density=0.5), False),
    ],
)
def test_judge(change: Change, before: list[dict[str, Any]], held: bool) -> None:
    assert (judge(GUARD, change, before).reason is not None) is held


def test_an_accident_that_was_accepted_counts_as_usual(tmp_path: Path) -> None:
    job = Job(tmp_path, KEEP, files=FILES)
    nights(job, 2)
    rewrite_half(job)
    assert states(job.run()) == HELD
    assert call("job", "ack", "nightly").code == 0
    job.clock.time += DAY
    rewrite_half(job)
    os.utime(job.source / "diary.txt")
    assert states(job.run()) == FREE


def kill_before_the_guard(*_: object, **__: object) -> None:
    raise SystemExit


@pytest.mark.parametrize("how", ["crash after the backup", "crash in the backup", "the backup alone"])
def test_an_accident_that_the_guard_could_not_see_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The next run has nothing new in it, and holds what it must."""
    job = Job(tmp_path, KEEP, files=FILES)
    nights(job, 2)
    rewrite_half(job)
    if how == "the backup alone":
        job.run("backup")
    else:
        victim = "archiver.jobs.run._JobRun._guard" if "after" in how else "archiver.store.sessions.Session.publish"
        with monkeypatch.context() as patched:
            patched.setattr("archiver.jobs.run._JobRun._end", kill_before_the_guard)
            patched.setattr(victim, kill_before_the_guard)
            with pytest.raises(SystemExit):
                job.run()
    job.clock.time += DAY
    assert states(job.run()) == HELD


def test_it_stays_held_when_the_record_of_the_night_is_gone(tmp_path: Path) -> None:
    """As after a thousand more runs, or on a disk that is damaged."""
    job = Job(tmp_path, KEEP, files=FILES)
    nights(job, 3)
    good = job.snapshots()
    remove_half(job)
    assert states(job.run()) == HELD
    night = Path(job.history.directory, "runs", "00000004.json")
    job.run()
    night.write_bytes(b"")
    for _ in range(2):
        assert states(job.run()) == HELD
    assert job.troubles()[0].text.count("held since run 4") == 1
    assert job.snapshots()[:2] == good
    assert call("job", "ack", "nightly").code == 0
    assert states(job.run()) == FREE
