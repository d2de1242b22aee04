"""A removal that ends anywhere, by kill -9 or a power cut: each snapshot is there completely, or it is gone (P1)."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pytest

from archiver.store.layout import SnapshotRef
from archiver.store.removal import plan_forget, remove
from archiver.store.store import Store
from tests.crash.recording import Killed, Recorder, Step
from tests.random_trees import build_plain, mutate
from tests.stores import (
    GROUP,
    ROOT,
    Heard,
    command,
    damage,
    every_snapshot,
    make_store,
    restored_differences,
    save,
)

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


# -- killed ----------------------------------------------------------------------------------------------------------


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
    kill_at_places(path, refs, source, tmp_path, most=2)


@pytest.mark.slow
@pytest.mark.usefixtures("tracing")
def test_killed_at_every_place(path: Path, refs: list[SnapshotRef], source: Path, tmp_path: Path) -> None:
    kill_at_places(path, refs, source, tmp_path, most=1000)


# -- power cuts ------------------------------------------------------------------------------------------------------


def durable(step: Step, later: Sequence[Step]) -> bool:
    """Whether ``later`` steps make it sure: a sync of every directory that it changed."""
    synced = {each.path for each in later if each.kind == "sync"}
    changed = {os.path.dirname(name) for name in (step.path, step.target) if name}
    return "" in synced or changed <= synced


def states(steps: Sequence[Step], limit: int, rng: random.Random) -> Iterator[list[Step]]:
    """What may have reached the disk at a power cut: any beginning, minus any of it that is not durable yet."""
    for stop in range(len(steps) + 1):
        done = steps[:stop]
        doubtful = [
            number for number, step in enumerate(done) if step.kind != "sync" and not durable(step, done[number + 1 :])
        ]
        subsets = [set(some) for size in range(len(doubtful) + 1) for some in combinations(doubtful, size)]
        for lost in subsets if len(subsets) <= limit else rng.sample(subsets, limit):
            yield [step for number, step in enumerate(done) if number not in lost and step.kind != "sync"]


def played(before: dict[str, frozenset[str]], steps: Sequence[Step], all_steps: Sequence[Step]) -> dict[str, set[str]]:
    """The files in each directory after ``steps``. A file belongs to its directory, whatever name that has by then."""
    home = {name: name for name in before}  # name while the program ran -> directory
    files = {name: set(names) for name, names in before.items()}
    names = {name: name for name in before}  # directory -> name on the disk
    for step in all_steps:
        if step.kind == "rename" and step.path in home:
            home[step.target] = home.pop(step.path)
            if step in steps:
                names[home[step.target]] = step.target
        elif step.kind == "unlink" and step in steps and os.path.dirname(step.path) in home:
            files[home[os.path.dirname(step.path)]].discard(os.path.basename(step.path))
        elif step.kind == "rmdir" and step in steps and step.path in home:
            names.pop(home[step.path], None)
    return {names[directory]: found for directory, found in files.items() if directory in names}


def contents(path: Path, refs: Sequence[SnapshotRef]) -> dict[str, frozenset[str]]:
    return {str(path / ref.path): frozenset(os.listdir(path / ref.path)) for ref in refs}


def check_states(
    before: dict[str, frozenset[str]], steps: Sequence[Step], group: Path, *, unfinished_allowed: bool
) -> int:
    count = 0
    for state in states(steps, 64, random.Random(4)):
        count += 1
        for name, files in played(before, state, steps).items():
            if not name.startswith(str(group)):
                continue  # in .archiver/removed
            whole = files == before[name]
            assert whole or (unfinished_allowed and "index.json.blob" not in files), (state, name, files)
    return count


def run_forget(path: Path, refs: Sequence[SnapshotRef]) -> None:
    with Store.open(path) as store:
        remove(store, plan_forget(store, [str(ref) for ref in refs if (path / ref.path).exists()]))


def test_power_cut(path: Path, refs: list[SnapshotRef]) -> None:
    before = contents(path, refs)
    with pytest.MonkeyPatch.context() as patched:
        recorder = Recorder(patched)
        run_forget(path, refs)
    kinds = Counter(step.kind for step in recorder.steps)
    assert kinds["rename"] == 3 and kinds["unlink"] >= 9
    assert check_states(before, recorder.steps, path / GROUP.path, unfinished_allowed=False) > 100


def test_power_cut_where_there_is_no_room_for_a_rename(path: Path, refs: list[SnapshotRef]) -> None:
    before = contents(path, refs)

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "rename", full)
        recorder = Recorder(patched)
        run_forget(path, refs)
    steps = [step for step in recorder.steps if step.kind != "rename"]
    assert not any((path / ref.path).exists() for ref in refs)
    assert check_states(before, steps, path / GROUP.path, unfinished_allowed=True) > 100


def test_power_cut_after_a_kill(path: Path, refs: list[SnapshotRef], tmp_path: Path) -> None:
    """Wherever the first run was killed, and whatever the second one had done by then."""
    before = contents(path, refs)
    kept = tmp_path / "kept"
    shutil.copytree(path, kept)
    total, kill_at, ended = 0, 0, False
    while not ended:
        shutil.rmtree(path)
        shutil.copytree(kept, path)
        steps: list[Step] = []
        for number in (kill_at, -1):
            with pytest.MonkeyPatch.context() as patched:
                recorder = Recorder(patched, number)
                try:
                    run_forget(path, refs[:2])
                    ended = ended or number >= 0
                except Killed:
                    pass
            steps += recorder.steps
        total += check_states(before, steps, path / GROUP.path, unfinished_allowed=False)
        with Store.open(path) as store:
            assert every_snapshot(store) == [refs[2]]
        assert os.listdir(path / ".archiver/removed") == []
        kill_at += 1
    assert kill_at > 10 and total > 1000
    assert damage(path) == []
