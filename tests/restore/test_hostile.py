"""Restoring hostile archives: clean errors, nothing outside of the target, bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archiver.browse.verify import verify
from archiver.core.events import ignore
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from tests.compare import Description, snapshot_tree
from tests.restore.planted import GROUP
from tests.stores import make_store

PROJECT = Path(__file__).parent.parent.parent
_CLEAN = {0, 1, 20}
# A restore asks for the header of each file's contents, not for the marker in front of all: damage there costs no file.
_NOT_NEEDED = ("payload stream start", "payload stream without its start", "item 0x834c68c2194a4ed2")


def state_of_the_outside(outside: Path) -> tuple[Description, list[Any]]:
    """What no restore may touch: a directory links point to, and files of the system."""
    system = [(found.st_mode, found.st_uid, found.st_mtime) for found in map(os.stat, ("/etc/passwd", "/etc"))]
    return snapshot_tree(outside), [*system, os.path.lexists("/abs"), os.path.lexists("/tmp/evil")]


@pytest.mark.parametrize("count", [150, pytest.param(10**6, marks=pytest.mark.slow)])
def test_hostile_archives(tmp_path: Path, count: int) -> None:
    store = make_store(tmp_path / "store")
    place, outside = tmp_path / "place", tmp_path / "outside"
    for path in (place, outside, outside / "x"):
        path.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    os.chmod(outside / "victim", 0o640)
    before = state_of_the_outside(outside)
    done = subprocess.run(
        [sys.executable, "-m", "tests.restore.planted", *map(str, (store, place, outside, count))],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    results: dict[str, Any] = report["results"]
    assert len(results) >= min(count, 1000)
    assert state_of_the_outside(outside) == before
    for name, (restored, read, refused_by) in results.items():
        assert restored[0] in _CLEAN, f"restore of {name}: {restored[1]}"
        # 10: a name that is there twice led to the other entry
        assert read[0] in _CLEAN | {10}, f"reading of {name}: {read[1]}"
        if "capability" not in name:  # the kernel takes some that it does not give back
            assert "different" not in restored[2], f"{name}: restored otherwise than it was told"
        if refused_by in ("both", "decoder") and not any(what in name for what in _NOT_NEEDED):
            assert restored[0] or "damaged" in restored[2], f"{name} was restored as if nothing were wrong"
        if refused_by in ("both", "accessor"):
            assert read[0], f"{name} was read as if nothing were wrong"
    assert report["peak_kib"] < 256 << 10
    with Store.open(store) as opened:
        refs = [SnapshotRef(GROUP, when) for when in opened.times(GROUP)]
        assert verify(opened, refs, None, ignore).errors == [], "what is stored is what was planted"
