"""kill -9 at any moment: the store opens without repair, earlier snapshots are whole, the next backup works (P1)."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from tests.random_trees import build_plain, mutate, noise
from tests.stores import (
    GROUP,
    ROOT,
    Heard,
    archiver,
    command,
    damage,
    every_snapshot,
    new_chunks,
    restored_differences,
    save,
)

DIGEST = re.compile(r"[0-9a-f]{64}")
CALL = re.compile(r"(\d+) +(\w+)\(")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Store.create(tmp_path / "store")
    return tmp_path / "store"


def backup(path: Path, source: Path) -> list[str]:
    return command("--store", path, "backup", source, "--id", GROUP.id, "--chunk-size", "64")


def check_after_kill(path: Path, source: Path, published: list[SnapshotRef], scratch: Path) -> list[SnapshotRef]:
    """Everything P1 promises; returns the snapshots that are there now, the killed run's may be one of them."""
    with Store.open(path) as store:
        found = every_snapshot(store)
        assert all(store.is_finished(ref) for ref in found), "a half-visible snapshot"
        assert set(published) <= set(found) and len(found) <= len(published) + 1
    assert damage(path) == []
    shutil.rmtree(scratch, ignore_errors=True)
    if found != published:
        assert restored_differences(path, found[-1], source, scratch) == []
        shutil.rmtree(scratch)
    heard = Heard()
    result = save(path, source, heard=heard)
    assert not [text for text in heard.notices if "not usable" in text or "cannot be used" in text]
    left = os.listdir(path / ".archiver" / "sessions")
    assert [name for name in left if not name.startswith(".new-")] == []  # those are empty, and removed when old
    assert restored_differences(path, result.snapshot, source, scratch) == []
    return [*found, result.snapshot]


# -- at a random moment ----------------------------------------------------------------------------------------------


def kill_at_random_moments(path: Path, source: Path, scratch: Path, seed: int, count: int) -> None:
    """The first run of a changed source is measured, then runs are killed at moments spread over that time."""
    rng = random.Random(seed)
    published = [save(path, source).snapshot]
    mutate(source, seed, 30)
    spare = path.with_name("spare")
    shutil.copytree(path, spare)
    began = time.monotonic()
    subprocess.run(backup(spare, source), cwd=ROOT, check=True, capture_output=True)
    whole = time.monotonic() - began
    for number in range(count):
        (source / "changing").write_bytes(noise(seed * 1000 + number, 16 << 20))
        with subprocess.Popen(
            backup(path, source), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                process.wait(whole * (number + rng.random()) / count * 1.3)
            except subprocess.TimeoutExpired:
                process.kill()
        published = check_after_kill(path, source, published, scratch)


def build_source(source: Path) -> None:
    build_plain(source, 5, files=800, max_size=40_000)
    (source / "large").write_bytes(noise(6, 8 << 20))


def test_killed_at_some_moments(path: Path, tmp_path: Path) -> None:
    build_source(tmp_path / "source")
    kill_at_random_moments(path, tmp_path / "source", tmp_path / "out", 1, 5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_killed_at_many_moments(path: Path, tmp_path: Path, seed: int) -> None:
    build_source(tmp_path / "source")
    kill_at_random_moments(path, tmp_path / "source", tmp_path / "out", seed, 10)


# -- at a place ------------------------------------------------------------------------------------------------------

CALLS = (
    "rename",
    "fsync",
    "fdatasync",
    "syncfs",
    "pwrite64",
    "writev",
    "mkdir",
    "flock",
    "unlink",
    "rmdir",
    "utimensat",
)


def traced(call: str, *inject: str) -> list[str]:
    return ["strace", "-f", "-qq", "-e", f"trace={call}", *inject]


@pytest.fixture(scope="module")
def tracing() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-qq", "-f", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not trace others")


@pytest.fixture
def prepared(path: Path, tmp_path: Path) -> Path:
    """A small store with one snapshot and a source that has changed since: little to do, all steps of a run."""
    build_plain(tmp_path / "source", 7, files=20, max_size=100_000)
    save(path, tmp_path / "source")
    mutate(tmp_path / "source", 8, 12)
    return path


def count_calls(path: Path, source: Path) -> Counter[str]:
    """How often one thread of a run that is not killed makes each of CALLS at most."""
    spare = path.with_name("spare")
    shutil.copytree(path, spare, symlinks=True)
    log = path.with_name("log")
    done = subprocess.run(
        [*traced(",".join(CALLS)), "-o", str(log), *backup(spare, source)], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(spare)
    by_thread = Counter(match.groups() for line in log.read_text().splitlines() if (match := CALL.match(line)))
    most: Counter[str] = Counter()
    for (_, call), count in by_thread.items():
        most[call] = max(most[call], count)
    return most


def killed_at(path: Path, source: Path, call: str, occurrence: int) -> bool:
    """Run a backup that is killed when a thread enters that call for the ``occurrence``-th time; False when none does,
    as threads share the work differently each time."""
    inject = ["-e", f"inject={call}:signal=SIGKILL:when={occurrence}"]
    done = subprocess.run([*traced(call, *inject), *backup(path, source)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    return done.returncode != 0


@pytest.mark.usefixtures("tracing")
def test_killed_at_some_places(prepared: Path, tmp_path: Path) -> None:
    kill_at_places(prepared, tmp_path, ("rename", "fsync", "pwrite64", "writev", "flock"), most=1)


@pytest.mark.slow
@pytest.mark.usefixtures("tracing")
def test_killed_at_every_place(prepared: Path, tmp_path: Path) -> None:
    kill_at_places(prepared, tmp_path, CALLS, most=1000)


def kill_at_places(path: Path, tmp_path: Path, places: Sequence[str], most: int) -> None:
    source = tmp_path / "source"
    calls = count_calls(path, source)
    assert {"rename", "fsync", "pwrite64", "writev", "mkdir", "flock"} <= calls.keys()
    rng = random.Random(9)
    kept = tmp_path / "kept"
    path.rename(kept)
    killed = runs = 0
    for call in places:
        for occurrence in sorted(rng.sample(range(1, calls[call] + 1), min(most, calls[call]))):
            shutil.copytree(kept, path, symlinks=True)
            with Store.open(path) as store:
                published = every_snapshot(store)
            runs += 1
            killed += killed_at(path, source, call, occurrence)
            check_after_kill(path, source, published, tmp_path / "out")
            shutil.rmtree(path)
    assert killed > runs / 2


# -- errors of the disk ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize("call", ["fsync", "syncfs"])
def test_sync_error_is_fatal_and_publishes_nothing(path: Path, tmp_path: Path, call: str) -> None:
    """Every fsync fails from the first chunk's on: exit 1, no snapshot, and it was not tried again."""
    source = tmp_path / "source"
    build_plain(source, 10, files=30, max_size=60_000)
    if call == "syncfs":
        (source / "large").write_bytes(noise(11, 30 << 20))
    with Store.open(path) as store:
        assert store.database is not None
    log = tmp_path / "log"
    inject = ["-e", f"inject={call}:error=EIO:when=1+", "-y", "-o", str(log)]
    done = subprocess.run(
        [*traced("fsync,syncfs", *inject), *backup(path, source)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("archiver: cannot ")
    failed = [line for line in log.read_text().splitlines() if "EIO" in line]
    assert len(failed) == 1
    with Store.open(path) as store:
        assert every_snapshot(store) == []
    assert os.listdir(path / ".archiver" / "sessions") == []
    result = save(path, source)
    assert damage(path) == []
    assert restored_differences(path, result.snapshot, source, tmp_path / "out") == []


@pytest.mark.usefixtures("tracing")
def test_short_writes_and_interruptions_do_no_harm(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    build_plain(source, 12, files=30, max_size=60_000)
    inject = ["-e", "inject=writev:error=EINTR:when=2+3", "-e", "inject=fsync:error=EINTR:when=1"]
    done = archiver(*backup(path, source)[3:], wrapper=traced("writev,fsync", *inject))
    # An interrupted call is made again by Python; an fsync that fails in whatever way is not believed.
    assert done.returncode == 0, done.stderr
    assert damage(path) == []
    with Store.open(path) as store:
        (ref,) = every_snapshot(store)
    assert restored_differences(path, ref, source, tmp_path / "out") == []


# -- leftovers and interruption --------------------------------------------------------------------------------------


def test_second_run_uses_the_chunks_of_a_killed_one(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(noise(13, 60 << 20))
    process = subprocess.Popen(backup(path, source), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    chunks = path / ".chunks"
    while process.poll() is None and len(os.listdir(chunks)) < 100:
        time.sleep(0.01)
    process.kill()
    process.wait()
    left = sum(1 for file in chunks.glob("*/*") if DIGEST.fullmatch(file.name))
    result = save(path, source)
    whole = sum(1 for file in chunks.glob("*/*") if DIGEST.fullmatch(file.name))
    assert left > 90  # of some there may be the shard alone
    assert new_chunks(result) == whole - left
    assert damage(path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_cleans_up_and_says_130(path: Path, tmp_path: Path, number: signal.Signals) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(noise(14, 60 << 20))
    process = subprocess.Popen(
        backup(path, source), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(os.listdir(path / ".chunks")) < 50:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert os.listdir(path / ".archiver" / "sessions") == []
    with Store.open(path) as store:
        assert every_snapshot(store) == []
    assert list((path / ".chunks").rglob("*.tmp_*")) == []
    result = save(path, source)
    assert restored_differences(path, result.snapshot, source, tmp_path / "out") == []
