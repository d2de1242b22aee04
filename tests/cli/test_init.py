"""init: what it makes, and where it refuses."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import ask, call
from tests.golden_store import unpack
from tests.mounts import read_only_view


def test_modes(tmp_path: Path) -> None:
    """What a PBS wants to see when it adopts the directory."""
    os.umask(0o077)
    ask("init", tmp_path / "a/b/store")
    base = tmp_path / "a/b/store"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (base, *base.iterdir())}
    assert modes == {"store": 0o755, ".chunks": 0o750, ".lock": 0o644, ".archiver": 0o700}
    assert list((base / ".chunks").iterdir()) == []


@pytest.mark.slow
def test_complete_shards(tmp_path: Path, store: Path) -> None:
    ask("init", tmp_path / "full", "--complete-shards")
    shards = sorted(os.listdir(tmp_path / "full/.chunks"))
    assert shards == [f"{number:04x}" for number in range(65536)]
    modes = {stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(tmp_path / "full/.chunks")}
    assert modes == {0o750}


def test_complete_shards_makes_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with fewer of them."""
    import builtins

    from archiver.store import creation

    monkeypatch.setattr(creation, "range", lambda count: builtins.range(count // 4096), raising=False)
    ask("init", tmp_path / "full", "--complete-shards")
    assert sorted(os.listdir(tmp_path / "full/.chunks")) == [f"{number:04x}" for number in range(16)]


@pytest.mark.parametrize("present", ["empty", ".hidden", "lost+found"])
def test_usable_directories(tmp_path: Path, present: str) -> None:
    base = tmp_path / "store"
    base.mkdir()
    if present != "empty":
        (base / present).mkdir()
    ask("init", base)
    assert ask("--store", base, "snapshots")["items"] == []


@pytest.mark.parametrize("kind", ["file", "other", "store", "below a file", "dangling"])
def test_refused(tmp_path: Path, store: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "file":
        place.write_bytes(b"")
    elif kind == "other":
        place.mkdir()
        (place / "mine").write_bytes(b"")
    elif kind == "store":
        place = store
    elif kind == "below a file":
        (tmp_path / "file").write_bytes(b"")
        place = tmp_path / "file/store"
    before = sorted(tmp_path.rglob("*"))
    if kind == "dangling":
        place.symlink_to("nowhere/at/all")
        before = sorted(tmp_path.rglob("*"))
    done = call("init", place, "--json")
    assert done.code == (1 if kind == "dangling" else 2), done.out
    assert done.error["message"]
    assert sorted(tmp_path.rglob("*")) == before


def test_root_directory_is_refused() -> None:
    assert call("init", "/").code == 2


def test_store_of_a_server_is_used_as_it_is(tmp_path: Path) -> None:
    base = unpack(tmp_path)
    done = call("init", base)
    assert done.code == 2 and "already holds a store" in done.err
    assert len(ask("--store", base, "snapshots")["items"]) == 8
    assert not (base / ".archiver").exists()  # looking writes nothing


@pytest.mark.parametrize("name", ["", "ab", "x" * 33, ".abc", "a/b", "a b", "ä-store", "\x1b[31m", "abc\n"])
def test_bad_name(tmp_path: Path, name: str) -> None:
    done = call("init", tmp_path / "store", "--name", name)
    assert done.code == 2 and "\x1b" not in done.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("base", ["x", "-dash", ".hidden", "a" * 200, "ein Verzeichnis", "\udcff\udcfe"])
def test_name_from_the_directory(tmp_path: Path, base: str) -> None:
    """Always one that is allowed."""
    place = tmp_path / base
    name = ask("init", place)["name"]
    assert 3 <= len(name) <= 32 and name.isascii()
    assert ask("--store", place, "status")["name"] == name


def test_read_only_file_system(tmp_path: Path, store: Path) -> None:
    with read_only_view(tmp_path, tmp_path.parent / f"{tmp_path.name}-view") as view:
        done = call("init", view / "new", "--json")
        assert done.code == 2 and "read-only" in done.error["message"]
        assert len(ask("--store", view / "store", "snapshots")["items"]) == 1
        assert ask("--store", view / "store", "verify")["errors"] == []
        assert call("--store", view / "store", "backup", view / "source").code == 2


def test_fat(tmp_path: Path) -> None:
    """No ``:`` in names, no modes: no place for a store."""
    if shutil.which("mkfs.vfat") is None:
        pytest.skip("mkfs.vfat (dosfstools) is not installed")
    image, place = tmp_path / "image", tmp_path / "fat"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.vfat", str(image)], check=True, capture_output=True)
    place.mkdir()
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"FAT cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        done = call("init", place / "store", "--json")
        assert done.code == 2 and "file system" in done.error["message"]
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)
