"""du on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from archiver.store.layout import GroupRef
from tests.cli.command import ask, call
from tests.random_trees import noise
from tests.stores import chunk_files, make_store, save

MEMBERS = {"snapshots", "contents_bytes", "stored_bytes", "freed_bytes"}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two snapshots of a group that share nearly all, and one of another that has all of the newer one."""
    path, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    tree.mkdir()
    for name in ("shared", "first"):
        (tree / name).write_bytes(noise(len(name), 300_000))
    save(path, tree, time=1_700_000_000)
    (tree / "first").write_bytes(noise(7, 200_000))
    save(path, tree, time=1_700_086_400)
    save(path, tree, time=1_700_086_400, group=GroupRef("", "host", "twin"))
    monkeypatch.setenv("ARCHIVER_STORE", str(path))
    return path


def test_documents(path: Path) -> None:
    found = ask("du")
    assert [(item["snapshot"], item["group"]) for item in found["items"]] == [(None, "host/test"), (None, "host/twin")]
    total = sum(file.stat().st_size for file in chunk_files(path))
    assert found["stored_bytes"] == found["together"]["freed_bytes"] == total
    assert found["unused_bytes"] == 0
    twin = "host/twin/2023-11-15T22:13:20Z"
    (item,) = ask("du", twin)["items"]
    assert item.keys() == MEMBERS | {"snapshot", "group"} and item["snapshot"] == twin and item["group"] == "host/twin"
    both = ask("du", "host/test/2023-11-15T22:13:20Z", twin)
    assert both["together"].keys() == MEMBERS
    alone = sum(item["freed_bytes"] for item in both["items"])
    assert alone < 10_000 < 200_000 < both["together"]["freed_bytes"], "it is in both"


def test_lines(path: Path) -> None:
    lines = call("du").lines
    assert re.split("  +", lines[0].strip()) == ["snapshots", "contents", "stored", "freed"]
    assert [line.split()[0] for line in lines[1:]] == ["host/test", "host/twin", "together"] and len(lines) == 4
    lines = call("du", "host/twin").lines
    assert len(lines) == 2 and lines[1].startswith("host/twin ")
    call("forget", "host/test/2023-11-14T22:13:20Z")
    assert call("du").lines[-1].endswith(" are of no snapshot: gc frees them")


def test_mistakes(path: Path) -> None:
    assert call("du", "host/nobody").code == 10
    assert call("du", "/etc").code == 2
    assert call("du", "host/test", "--ns", "attic").code == 10


def test_namespace(path: Path) -> None:
    (path / "ns/attic").mkdir(parents=True)
    found = ask("du", "--ns", "attic")
    assert found["items"] == [] and found["together"]["freed_bytes"] == 0 < found["stored_bytes"]
