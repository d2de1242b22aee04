"""Everything at once in separate processes, some of which are killed: two backups, prune, gc, verify, sync."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from archiver.store.store import Store
from tests.random_trees import build_plain, mutate
from tests.stores import ROOT, command, damage, every_snapshot, make_store, restored_differences

# Killed, done, some snapshots were in use, locked, gone meanwhile, held by a guard.
EXPECTED = {-signal.SIGKILL, 0, 3, 10, 11, 14, 30}


def start(store: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("--store", store, *arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def backup(number: int, tree: Path) -> list[str | Path]:
    return ["backup", tree, "--id", f"b{number}", "--chunk-size", "64", "--mode", ["data", "metadata"][number]]


def stress(place: Path, seconds: float, seed: int) -> int:
    """How many processes came to their end."""
    rng = random.Random(seed)
    store, second = make_store(place / "store"), make_store(place / "second")
    trees = [place / f"tree-{number}" for number in range(2)]
    for number, tree in enumerate(trees):
        build_plain(tree, number, files=60, max_size=400_000)
    house: list[list[str | Path]] = [
        ["prune", "--keep-last", "3"],
        ["gc"],
        ["gc", "--from-files"],
        ["verify"],
        ["sync", store, second],
        ["sync", store, second, "--remove-vanished", "--resync-corrupt"],
    ]
    running: dict[str, subprocess.Popen[bytes]] = {}
    deadline, done = time.monotonic() + seconds, 0
    while running or time.monotonic() < deadline:
        if time.monotonic() < deadline:
            for number, tree in enumerate(trees):
                if f"b{number}" not in running:
                    mutate(tree, rng.randrange(1 << 30), 5)
                    running[f"b{number}"] = start(store, *backup(number, tree))
            name = f"h{rng.randrange(2)}"
            if name not in running:
                running[name] = start(store, *rng.choice(house))
            if rng.random() < 0.05:
                rng.choice(list(running.values())).kill()
        time.sleep(0.05)
        for name, process in list(running.items()):
            if process.poll() is not None:
                _, err = process.communicate(timeout=60)
                assert b"Traceback" not in err and b"bug" not in err, err.decode()
                assert process.returncode in EXPECTED, (process.args, process.returncode, err.decode())
                done += 1
                del running[name]
    for number, tree in enumerate(trees):
        process = start(store, *backup(number, tree))
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        with Store.open(store) as opened:
            newest = max(ref for ref in every_snapshot(opened) if ref.group.id == f"b{number}")
        assert restored_differences(store, newest, tree, place / f"out-{number}") == []
    for path in (store, second):
        assert damage(path) == []
    return done


def test_everything_at_once(tmp_path: Path) -> None:
    assert stress(tmp_path, 12, 1) > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10, 13))
def test_everything_at_once_for_minutes(tmp_path: Path, seed: int) -> None:
    assert stress(tmp_path, 180, seed) > 100
