"""What the tests of the command line work with: a small tree and a store that has it."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command import ask

SNAPSHOT = "host/tester/2023-11-14T22:13:20Z"


def small_tree(place: Path) -> Path:
    (place / "below").mkdir(parents=True)
    (place / "file").write_bytes(b"some contents\n")
    (place / "below" / "empty").write_bytes(b"")
    (place / "link").symlink_to("file")
    return place


def filled_store(place: Path, source: Path) -> Path:
    """A store with SNAPSHOT of ``source`` as tree.pxar."""
    ask("init", place)
    done = ask("--store", place, "backup", f"tree.pxar:{source}", "--id", "tester", "--time", "1700000000")
    assert done["snapshot"] == SNAPSHOT
    return place
