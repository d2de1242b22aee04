"""A job that keeps a copy on media: while they are there, and while they are not."""

from __future__ import annotations

from pathlib import Path

from archiver.jobs.run import STALE
from tests.cli.command import ask, call
from tests.jobs.jobs import DAY, Job, states, the_step

TEXT = "[[tape]]\npool = 'offline'\nevery = '1h'\nmax-age = '3d'\n"


def test_a_copy_on_media(tmp_path: Path) -> None:
    job, disk = Job(tmp_path, TEXT), tmp_path / "disk"
    done = call("job", "check", "nightly")
    assert done.code == 0 and f"note: {job.path}:4: " in done.out
    run = job.run()
    assert (the_step(run, "tape").state, run.exit_code) == ("failed", 10)  # there is no such pool
    disk.mkdir()
    ask("tape", "drive", "add", "usb", "--path", disk)
    ask("tape", "pool", "create", "offline")
    ask("tape", "label", "--label-text", "MONDAY", "--pool", "offline")
    assert "note" not in call("job", "check", "nightly").out
    job.clock.time += DAY
    run = job.run()
    assert states(run)["tape"] == "ok" and the_step(run, "tape").figures["snapshots"] == 2
    assert run.exit_code == 0 and job.troubles() == []
    assert len(ask("tape", "media", "content", "--label-text", "MONDAY")["items"]) == 2
    disk.rename(tmp_path / "drawer")
    codes = []
    for _ in range(4):
        job.clock.time += DAY
        codes.append(job.run().exit_code)
    assert codes == [13, 13, 13, STALE]
    (trouble,) = job.troubles()
    assert trouble.key == "overdue tape offline"
    (tmp_path / "drawer").rename(disk)
    assert job.run("tape").exit_code == 0 and job.troubles() == []
