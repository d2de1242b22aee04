"""A removal that is killed anywhere: each snapshot is there completely, or it is gone (P1)."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from archiver.store.layout import SnapshotRef
from archiver.store.removal import plan_forget, remove
from archiver.store.store import Store
from tests.random_trees import build_plain, mutate
from tests.stores import (
    ROOT,
    Heard,
    command,
    damage,
    every_snapshot,
    make_store,
    restored_differences,
    save,
)

pytestmark = pytest.mark.in_memory

CALL = re.compile(r"(\d+) +(\w+)\(")
CALLS = ("rename", "unlink", "rmdir", "mkdir", "fsync", "flock", "pwrite64", "fdatasync")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 7, files=10, max_size=50_000)
    return tmp_path / "source"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


@pytest.fixture
def refs(path: Path, source: Path) -> list[SnapshotRef]:
    """Three snapshots; the last one is of ``source`` as it is."""
    found = []
    for number in range(3):
        mutate(source, number, 3)
        found.append(save(path, source, mode="metadata", time=1_700_000_000 + number).snapshot)
    return found


@pytest.fixture(scope="module")
def tracing() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-qq", "-f", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not trace others")


def traced(calls: str, *options: str) -> list[str]:
    return ["strace", "-f", "-qq", "-e", f"trace={calls}", *options]


def count_calls(path: Path, arguments: Sequence[str]) -> Counter[str]:
    """How often a command that is not killed makes each of CALLS; its store is a copy."""
    spare, log = path.with_name("spare"), path.with_name("log")
    shutil.copytree(path, spare)
    done = subprocess.run(
        [*traced(",".join(CALLS), "-o", str(log)), *command("--store", spare, *arguments)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(spare)
    return Counter(match[2] for line in log.read_text().splitlines() if (match := CALL.match(line)))


def check_after_kill(path: Path, refs: Sequence[SnapshotRef], source: Path, scratch: Path) -> None:
    """The last of ``refs`` was to stay."""
    assert damage(path) == []
    heard = Heard()
    with Store.open(path, listener=heard) as store:
        found = every_snapshot(store)
        assert set(found) <= set(refs) and refs[-1] in found
        assert all(store.is_finished(ref) for ref in found), "a half-visible snapshot"
        outcome = remove(store, plan_forget(store, [str(ref) for ref in found if ref != refs[-1]]))
        assert not outcome.skipped and not outcome.failed
        assert store.database is not None and store.database.check() == []
        assert set(store.database.stamps()) == {refs[-1].path}
    assert [text for text in heard.notices if "cannot be used" in text] == []
    assert not os.path.exists(path / ".archiver/removed") or os.listdir(path / ".archiver/removed") == []
    assert restored_differences(path, refs[-1], source, scratch) == []
    shutil.rmtree(scratch)


def kill_at_places(path: Path, refs: list[SnapshotRef], source: Path, tmp_path: Path, most: int) -> None:
    arguments = ["forget", str(refs[0]), str(refs[1])]
    calls = count_calls(path, arguments)
    assert calls["rename"] >= 2 and calls["unlink"] >= 6 and calls["fsync"] >= 4
    rng = random.Random(3)
    kept = tmp_path / "kept"
    path.rename(kept)
    killed = runs = 0
    for call in sorted(calls):
        for occurrence in sorted(rng.sample(range(1, calls[call] + 1), min(most, calls[call]))):
            shutil.copytree(kept, path)
            inject = f"inject={call}:signal=SIGKILL:when={occurrence}"
            done = subprocess.run(
                [*traced(call, "-e", inject), *command("--store", path, *arguments)],
                cwd=ROOT,
                capture_output=True,
                check=False,
            )
            assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
            runs += 1
            killed += done.returncode != 0
            check_after_kill(path, refs, source, tmp_path / "out")
            shutil.rmtree(path)
    assert killed > runs / 2


@pytest.mark.usefixtures("tracing")
def test_killed_at_some_places(path: Path, refs: list[SnapshotRef], source: Path, tmp_path: Path) -> None:
    kill_at_places(path, refs, source, tmp_path, most=1)


@pytest.mark.slow
@pytest.mark.usefixtures("tracing")
def test_killed_at_every_place(path: Path, refs: list[SnapshotRef], source: Path, tmp_path: Path) -> None:
    kill_at_places(path, refs, source, tmp_path, most=1000)
