"""The drill: files really come back, others each time, and what differs is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archiver.browse.snapshot import Snapshot
from archiver.core.events import Event, FileProblem, ignore
from archiver.errors import Damaged
from archiver.jobs.drill import DrillOptions, drill, samples
from archiver.store.store import Store
from tests.cli.command import ask, call
from tests.jobs.jobs import DAY, Job, states, the_step
from tests.stores import chunk_files

pytestmark = pytest.mark.in_memory

TEXT = "[drill]\nevery = '1h'\nfiles = 5\n[guard]\nenabled = false\n"


def opened(job: Job) -> Snapshot:
    store = Store.open(str(job.store))
    return Snapshot(store, store.find("latest"))


def deep(job: Job) -> None:
    """Files in many directories, of all sizes, some without contents."""
    for number in range(24):
        directory = job.source / f"d{number % 5}" / f"e{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(os.urandom(number * 1000))
    (job.source / "link").symlink_to("d0")


def test_every_file_has_its_turn(tmp_path: Path) -> None:
    job = Job(tmp_path, TEXT)
    deep(job)
    job.run("backup")
    snapshot = opened(job)
    wanted = {os.fsencode(path.relative_to(job.source)) for path in job.source.rglob("*") if path.is_file()}
    wanted = {path for path in wanted if (job.source / os.fsdecode(path)).stat().st_size}
    seen: list[bytes] = []
    for turn in range(len(wanted) // 5):
        chosen = [path for sample in samples(snapshot, DrillOptions(5, turn=turn)) for path, _ in sample.chosen]
        assert len(chosen) + 1 >= 5 and not set(chosen) & set(seen)
        seen += chosen
        result = drill(snapshot, DrillOptions(5, turn=turn, sources={"source.pxar": str(job.source)}), ignore)
        assert (result.files, result.compared, result.recorded, result.different) == (
            len(chosen),
            *[len(chosen)] * 2,
            0,
        )
    assert set(seen) <= wanted and len(seen) >= len(wanted) - 5
    snapshot.store.close()


def test_no_more_bytes_than_allowed(tmp_path: Path) -> None:
    job = Job(tmp_path, TEXT)
    deep(job)
    job.run("backup")
    snapshot = opened(job)
    result = drill(snapshot, DrillOptions(1000, size=20_000), ignore)
    assert 0 < result.bytes <= 20_000
    snapshot.store.close()


def test_live_files_that_differ(tmp_path: Path) -> None:
    """One was changed and its time put back: rot, or somebody's work. One was changed as files are, one is gone."""
    job = Job(tmp_path, TEXT, files=5)
    job.run("backup")
    one, two, three, *_ = sorted(job.source.iterdir())
    status, data = one.stat(), bytearray(one.read_bytes())
    data[0] ^= 1
    one.write_bytes(data)
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))
    two.write_text("changed")
    three.unlink()
    told: list[Event] = []
    snapshot = opened(job)
    result = drill(snapshot, DrillOptions(5, sources={"source.pxar": str(job.source)}), told.append)
    assert (result.files, result.compared, result.different) == (5, 3, 1)
    assert [event.path for event in told if isinstance(event, FileProblem)] == [b"file-000.txt"]
    snapshot.store.close()
    job.clock.time += DAY
    run = job.run("drill")
    assert (the_step(run, "drill").state, run.exit_code) == ("failed", 4)
    assert "file-000" not in the_step(run, "drill").text
    assert call("--store", job.store, "drill", "--live", job.source).code == 4


def test_a_damaged_store(tmp_path: Path) -> None:
    job = Job(tmp_path, TEXT + "[verify]\nenabled = false\n")
    deep(job)
    job.run()
    for path in chunk_files(job.store):
        data = bytearray(path.read_bytes())
        if len(data) > 100_000:
            data[-1] ^= 1
            path.write_bytes(data)
    snapshot = opened(job)
    with pytest.raises(Damaged):
        drill(snapshot, DrillOptions(20), ignore)
    snapshot.store.close()
    job.clock.time += DAY
    run = job.run("drill")
    assert (states(run), run.exit_code) == ({"drill": "failed"}, 20)
    assert [trouble.kind for trouble in job.troubles()] == ["failure"]


def test_nothing_is_left(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    job = Job(tmp_path, f"[drill]\nscratch = '{scratch}'\n")
    run = job.run()
    assert the_step(run, "drill").figures["files"] == 3
    assert list(scratch.iterdir()) == []


def test_a_snapshot_of_images_alone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    Store.create(str(store))
    (tmp_path / "x").write_bytes(os.urandom(5000))
    assert call("--store", store, "backup", f"x.img:{tmp_path / 'x'}").code == 0
    document = ask("--store", store, "drill")
    assert document["files"] == 1 and document["compared"] == 0


def test_the_command(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run("backup")
    document = ask("--store", job.store, "drill", "latest", "--files", "2", "--live", job.source)
    assert document.keys() == {"schema", "snapshot", "files", "bytes", "in_catalog", "compared", "different"}
    assert (document["files"], document["compared"], document["different"]) == (2, 2, 0)
    assert call("--store", job.store, "drill", "host/absent").code == 10
    assert call("--store", job.store, "drill", "--files", "0").code == 2
    assert call("--store", job.store, "drill", "--scratch", "/absent/x").code == 1
