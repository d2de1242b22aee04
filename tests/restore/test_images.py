"""Restoring images and small files: complete or not at all, sparse, checked, and never over something else."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from pathlib import Path

import pytest

from archiver.errors import ArchiverError, Damaged
from archiver.restore import image
from archiver.store.layout import SnapshotRef
from formats.crypt import CryptConfig
from tests.cli.command import call, start
from tests.mounts import fill, small_file_system
from tests.stores import KEY, bring_back, chunk_files, make_store, save

SIZE = 6 << 20


def data(seed: int = 1) -> bytes:
    """Random bytes with zeros in between."""
    content = bytearray(random.Random(seed).randbytes(SIZE + 77))
    content[1 << 20 : 3 << 20] = bytes(2 << 20)
    return bytes(content)


def stored(tmp_path: Path, crypt: CryptConfig | None = None) -> tuple[Path, SnapshotRef]:
    (tmp_path / "disk").write_bytes(data())
    (tmp_path / "conf").write_bytes(b"small")
    store = make_store(tmp_path / "store")
    return store, save(store, {"disk.img": tmp_path / "disk", "small.conf": tmp_path / "conf"}, crypt=crypt).snapshot


def no_links(*arguments: object, **options: object) -> None:
    """As FAT says."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("lacks", ["nothing", "files without a name", "links too"])
def test_new_file(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, crypt: CryptConfig | None, lacks: str
) -> None:
    """``lacks``: what the file system does not have."""
    store, ref = stored(tmp_path, crypt)
    if lacks != "nothing":
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    if lacks == "links too":
        monkeypatch.setattr(os, "link", no_links)
    for verify in (True, False):
        bring_back(store, ref, place, crypt=crypt, verify=verify)
        assert sorted(os.listdir(place)) == ["disk.img", "small.conf"]
        found = place / "disk.img"
        assert found.read_bytes() == data() and (place / "small.conf").read_bytes() == b"small"
        assert found.stat().st_blocks * 512 <= SIZE - (2 << 20) + (64 << 10)
        assert found.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ArchiverError, match="exists already"):
            bring_back(store, ref, place, crypt=crypt)
        for path in place.iterdir():
            path.unlink()


def test_somebody_else_makes_the_file(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, ref = stored(tmp_path)
    write = image._Image.write

    def slow(self: image._Image, fd: int, path: str, *, onto_device: bool) -> None:
        (place / "out").write_bytes(b"theirs")
        write(self, fd, path, onto_device=onto_device)

    monkeypatch.setattr(image._Image, "write", slow)
    for lack in ("nothing", "files without a name", "links too"):
        if lack != "nothing":
            monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
        if lack == "links too":
            monkeypatch.setattr(os, "link", no_links)
        with pytest.raises(ArchiverError, match="exists"):
            (place / "out").unlink(missing_ok=True)
            bring_back(store, ref, place / "out", archives=["disk.img"])
        assert os.listdir(place) == ["out"] and (place / "out").read_bytes() == b"theirs"


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_damaged_image_leaves_nothing(tmp_path: Path, place: Path, crypt: CryptConfig | None) -> None:
    store, ref = stored(tmp_path, crypt)
    victim = random.Random(2).choice([path for path in chunk_files(store) if path.stat().st_size > 60_000])
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.write_bytes(content)
    with pytest.raises(Damaged, match=victim.name):
        bring_back(store, ref, place / "out", crypt=crypt, archives=["disk.img"])
    assert os.listdir(place) == []
    bring_back(store, ref, place / "small", crypt=crypt, archives=["small.conf"])


@pytest.mark.parametrize("where", [0, 1_500_000, SIZE + 76])
def test_disk_that_keeps_other_bytes(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, where: int) -> None:
    """Also in a hole, and behind the last whole block."""
    store, ref = stored(tmp_path)
    drop = image._drop_from_memory

    def spoil(fd: int) -> None:
        byte = os.pread(fd, 1, where)
        os.pwrite(fd, bytes([byte[0] ^ 1]), where)
        drop(fd)

    monkeypatch.setattr(image, "_drop_from_memory", spoil)
    with pytest.raises(Damaged, match="does not read back"):
        bring_back(store, ref, place / "out", archives=["disk.img"])
    assert os.listdir(place) == []
    bring_back(store, ref, place / "out", archives=["disk.img"], verify=False)


def test_small_file_that_reads_back_otherwise(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, ref = stored(tmp_path)
    monkeypatch.setattr(image, "_drop_from_memory", lambda fd: os.pwrite(fd, b"S", 0))
    with pytest.raises(Damaged, match="does not read back"):
        bring_back(store, ref, place / "out", archives=["small.conf"])
    assert os.listdir(place) == []


def test_full_disk(tmp_path: Path) -> None:
    store, ref = stored(tmp_path)
    with small_file_system(tmp_path, 8 << 20) as small:
        fill(small, 2 << 20)
        done = call("--store", store, "restore", str(ref), small / "out", "--archive", "disk.img")
        assert done.code == 40 and "no space" in done.err and "without holes in them" in done.err
        assert not (small / "out").exists()


def kill(tmp_path: Path, place: Path, count: int) -> None:
    """Whenever it is killed, there is the whole file or none."""
    large = tmp_path / "disk"
    large.write_bytes(data() * 8)
    store = make_store(tmp_path / "store")
    save(store, {"disk.img": large})
    rng = random.Random(3)
    done = 0
    for _ in range(count):
        with start("--store", store, "restore", "host/test", place / "out", "--archive", "disk.img") as running:
            time.sleep(0.3 + rng.random() * 0.8)
            running.send_signal(signal.SIGKILL)
        done += running.returncode == 0
        if (place / "out").exists():
            assert (place / "out").read_bytes() == large.read_bytes()
            (place / "out").unlink()
        assert os.listdir(place) == []
    bring_back(store, save(store, {"disk.img": large}).snapshot, place / "out", archives=["disk.img"])


def test_killed(tmp_path: Path, place: Path) -> None:
    kill(tmp_path, place, 5)


@pytest.mark.slow
def test_killed_many_times(tmp_path: Path, place: Path) -> None:
    kill(tmp_path, place, 50)
