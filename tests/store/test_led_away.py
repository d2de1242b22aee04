"""Symlinks and pipes that somebody has put into a store: nothing outside it is removed or written, nothing waits."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from archiver.core.disk import Disk
from archiver.errors import Damaged
from archiver.store.store import Store
from tests.compare import differences
from tests.hostile.limits import bounded
from tests.random_trees import build_plain
from tests.stores import KEY, restored_differences, save

PRIVATE = ".archiver"
SESSION = f"{PRIVATE}/sessions/2026-01-01T00:00:00Z-12345678"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 2, files=10, max_size=50_000)
    return tmp_path / "source"


@pytest.fixture
def path(tmp_path: Path, source: Path) -> Path:
    """A store in which one backup was made, with its database inside."""
    Store.create(tmp_path / "store")
    save(tmp_path / "store", source, crypt=KEY)
    assert (tmp_path / "store" / PRIVATE / "db" / "data.mdb").exists()
    return tmp_path / "store"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What is not the store's."""
    for name in ("home/file", "home/data.mdb", "home/snapshot/file", "home/documents/deep/letter"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"precious" * 2000)
    return tmp_path / "home"


@pytest.fixture
def untouched(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "untouched"))


def put_away(path: Path) -> None:
    if path.is_dir():
        Disk().remove_tree(str(path))
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("name", [PRIVATE, f"{PRIVATE}/sessions", "host/test"])
def test_directory_that_leads_away_is_refused(path: Path, source: Path, home: Path, untouched: Path, name: str) -> None:
    put_away(path / name)
    (path / name).symlink_to(home)
    with pytest.raises(Damaged, match=f"{name} is not a directory"):
        save(path, source, crypt=KEY, mode="metadata")
    assert differences(home, untouched) == []


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (SESSION, ""),
        (f"{SESSION}/snapshot", ""),
        (f"{SESSION}/snapshot/below", "documents"),
        (f"{PRIVATE}/db", ""),
        (f"{PRIVATE}/db", "absent"),
        (f"{PRIVATE}/db/data.mdb", "file"),
        (f"{PRIVATE}/db/data.mdb", "absent"),
        (f"{PRIVATE}/db/lock.mdb", "file"),
        (f"{PRIVATE}/db/lock.mdb", "absent"),
        (f"{PRIVATE}/db/use.lock", "file"),
        (f"{PRIVATE}/db/clean.json", "file"),
        (f"{PRIVATE}/db/damaged", "file"),
    ],
)
def test_what_leads_away_is_not_followed(
    tmp_path: Path, path: Path, source: Path, home: Path, untouched: Path, name: str, target: str
) -> None:
    put_away(path / name)
    (path / name).symlink_to(home / target)
    saved = save(path, source, crypt=KEY, mode="metadata")
    assert restored_differences(path, saved.snapshot, source, tmp_path / "out", KEY) == []
    assert differences(home, untouched) == []


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "clean.json", "use.lock"])
def test_pipe_in_place_of_a_file_of_the_database(tmp_path: Path, path: Path, source: Path, name: str) -> None:
    put_away(path / PRIVATE / "db" / name)
    os.mkfifo(path / PRIVATE / "db" / name)
    with bounded():
        saved = save(path, source, crypt=KEY, mode="metadata")
        assert restored_differences(path, saved.snapshot, source, tmp_path / "out", KEY) == []


def test_remove_tree_does_not_follow(tmp_path: Path, home: Path, untouched: Path) -> None:
    (tmp_path / "link").symlink_to(home)
    with pytest.raises(NotADirectoryError):
        Disk().remove_tree(str(tmp_path / "link"))
    assert differences(home, untouched) == []
