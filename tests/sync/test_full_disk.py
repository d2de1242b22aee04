"""A target that fills up: exit 40, nothing half-visible, and the next sync goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from archiver.store.store import Store
from tests.mounts import fill, small_file_system, temporary_file_system
from tests.random_trees import noise
from tests.stores import ROOT, archiver, damage, every_snapshot, make_store, restored_differences, save
from tests.sync.pair import Pair, finished

MIB = 1 << 20
_WITHOUT_A_LOOK = """
import sys
from archiver.cli.main import main
from archiver.sync import run

run.check_room = lambda source, target, plan: None
main(["sync", *sys.argv[1:]])
"""


def sync_without_a_look(source: Path, target: Path, wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """As if there had been room when it began."""
    return subprocess.run(
        [*wrapper, sys.executable, "-c", _WITHOUT_A_LOOK, str(source), str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Three snapshots of 8 MiB of contents each."""
    made = Pair.make(tmp_path)
    for number in range(3):
        (made.tree / "large").write_bytes(noise(number, 8 * MIB))
        made.saved.append(save(made.source, made.tree).snapshot)
    return made


@pytest.mark.parametrize("leave", [20, 11, 4, 1, 0])
def test_full_target(pair: Pair, tmp_path: Path, leave: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_DB_DIR", str(tmp_path / "db"))
    with small_file_system(tmp_path, 64 * MIB) as place:
        target = make_store(place / "store")
        fill(place, leave * MIB)
        done = sync_without_a_look(pair.source, target)
        assert done.returncode == 40, done.stdout + done.stderr
        assert "no space left" in done.stderr and "Traceback" not in done.stderr
        copies = finished(target)
        assert copies == pair.saved[: len(copies)] and len(copies) == (leave - 2) // 9 + (leave < 2)
        assert every_snapshot_is_whole(target)
        (place / "filler").unlink()
        done = archiver("sync", pair.source, target)
        assert done.returncode == 0, done.stderr
        assert finished(target) == pair.saved and damage(target) == []
        assert restored_differences(target, pair.saved[-1], pair.tree, tmp_path / "out") == []


def test_full_memory_target_with_its_database(pair: Pair, tmp_path: Path) -> None:
    """The database is in the full file system too."""
    with temporary_file_system(tmp_path / "small", 20 * MIB) as place:
        target = make_store(place / "store")
        (place / "cache").mkdir()
        done = sync_without_a_look(pair.source, target, wrapper=["env", f"XDG_CACHE_HOME={place}/cache"])
        assert done.returncode == 40, done.stdout + done.stderr
        assert every_snapshot_is_whole(target)
        assert finished(target) == pair.saved[: len(finished(target))]


def every_snapshot_is_whole(path: Path) -> bool:
    with Store.open(path) as store:
        assert every_snapshot(store) == finished(path)
    return damage(path) == []
