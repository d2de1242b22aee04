"""The virtual drive: the layout of the reference, its limits, and what attached disks do to it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from archiver.core import linux
from archiver.errors import ArchiverError, Locked, NotFound, TargetAbsent, UsageError
from archiver.tape.changer.virtual import VirtualChanger
from archiver.tape.drive.interface import (
    Changer,
    Drive,
    EndOfData,
    MediumError,
    MediumFull,
    NoMedium,
    WriteProtected,
)
from archiver.tape.drive.virtual import VirtualDrive
from formats.tape.blocks import BLOCK_SIZE, PAYLOAD_SIZE
from tests.cli.command import ask, call
from tests.formats.tape.media import files
from tests.mounts import fill, read_only_view, small_file_system, temporary_file_system, weak_file_system
from tests.tape.media import contents, golden_media, put_blocks, put_stream, standing, take_stream


def new_drive(place: Path, max_size: int | None = None) -> VirtualDrive:
    drive = VirtualDrive("v", str(place), max_size=max_size, new=True)
    drive.add("T1")
    return drive


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "tapes"


# -- the layout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["single", "multi"])
def test_golden_media_read_and_written(name: str, tmp_path: Path) -> None:
    """What the reference wrote is read file by file; written again by us, the directory is the same."""
    golden = golden_media(name, tmp_path / "golden")
    before = contents(golden)
    with VirtualDrive("g", str(golden)) as drive, VirtualDrive("v", str(tmp_path / "own"), new=True) as own:
        conforming: Drive = drive
        changer: Changer = VirtualChanger(drive)
        labels = sorted({file.label for file in files(name)})
        assert changer.online() == labels
        for label in labels:
            changer.load(label)
            own.add(label)
            for file in (each for each in files(name) if each.label == label):
                with conforming.open_file() as reader:
                    blocks = []
                    while (block := reader.read_block()) is not None:
                        blocks.append(bytes(block))
                assert b"".join(blocks) == file.data
                put_blocks(own, file.data)
            with pytest.raises(EndOfData):
                conforming.open_file()
        changer.unload()
        own.eject()
    assert contents(golden) == before == contents(tmp_path / "own")
    assert (golden / "drive-status.json").read_bytes() == (tmp_path / "own/drive-status.json").read_bytes()
    assert (golden / "drive-status.json").read_bytes() == b'{\n  "current_tape": null\n}'


def test_position(place: Path) -> None:
    with new_drive(place) as drive:
        for number in range(4):
            put_stream(drive, b"%d" % number)
        assert drive.status().file == 4 and drive.locate_end() == 4
        drive.locate(2)
        assert take_stream(drive) == b"2" and take_stream(drive) == b"3"
        with pytest.raises(EndOfData):
            drive.locate(5)
        drive.locate(1)
        assert standing(place) == {"name": "T1", "pos": 1}
    with VirtualDrive("v", str(place)) as drive:  # where it stood
        assert take_stream(drive) == b"1"
        drive.locate(1)
        put_stream(drive, b"new")  # and what was behind it is gone
        assert drive.locate_end() == 2
        assert sorted(contents(place)) == ["tape-T1.json", "tapefile-0-T1.json", "tapefile-1-T1.json"]
        drive.format(fast=True)
        assert drive.locate_end() == 0 and list(contents(place)) == ["tape-T1.json"]
        drive.eject()
        assert not drive.status().loaded and not drive.wait_until_ready(0)
        for call in (drive.rewind, drive.locate_end, drive.open_file, drive.create_file, drive.eject):
            with pytest.raises(NoMedium):
                call()


def test_no_tape_comes_into_being(place: Path) -> None:
    with new_drive(place) as drive:
        with pytest.raises(NotFound):
            drive.load("T2")
        with pytest.raises(UsageError):
            drive.add("T1")
        with pytest.raises(ValueError):
            drive.add("../T2")
        drive.set_key(None)
        with pytest.raises(ArchiverError, match="cannot encrypt"):
            drive.set_key(bytes(32))
    assert list(contents(place)) == ["tape-T1.json"]


def test_absent(tmp_path: Path) -> None:
    bare = tmp_path / "mnt"
    bare.mkdir()
    for path in (bare, tmp_path / "none"):
        with pytest.raises(TargetAbsent):
            VirtualDrive("v", str(path))
    for new in (False, True):
        with pytest.raises(TargetAbsent, match="not mounted"):
            VirtualDrive("v", str(bare / "tapes"), mount=str(bare), new=new)
    with pytest.raises(TargetAbsent):
        VirtualDrive("v", str(bare / "a/b"), new=True)
    assert list(bare.iterdir()) == [] and not (tmp_path / "none").exists()


def test_alone(place: Path) -> None:
    with new_drive(place), pytest.raises(Locked):
        VirtualDrive("v", str(place), wait_seconds=0)
    VirtualDrive("v", str(place)).close()


# -- the end of a medium -----------------------------------------------------------------------------------------------


def test_capacity(place: Path) -> None:
    """So many blocks, two behind the warning, no more; a full medium still takes four blocks a file."""
    block = bytes(BLOCK_SIZE)
    with new_drive(place, 5 * BLOCK_SIZE) as drive:
        with drive.create_file() as file:
            assert [file.write(block) for _ in range(7)] == [False] * 5 + [True] * 2
            with pytest.raises(MediumFull):
                file.write(block)
        for _ in range(2):
            with drive.create_file() as file:
                assert [file.write(block) for _ in range(4)] == [False] * 2 + [True] * 2
                with pytest.raises(MediumFull):
                    file.write(block)
        status = drive.status()
        assert (status.bytes_used, status.capacity) == (15 * BLOCK_SIZE, 5 * BLOCK_SIZE)
        drive.locate(1)
        with drive.create_file() as file:  # the files before it count
            assert [file.write(block) for _ in range(3)] == [False, False, True]


def test_full_file_system(tmp_path: Path) -> None:
    """It warns before it is full; full after all, the block is refused and no half of it stays."""
    with temporary_file_system(tmp_path / "small", 8 << 20) as small, new_drive(small) as drive:
        put_stream(drive, b"kept")
        with drive.create_file() as file:
            count = 0
            while not file.write(bytes(BLOCK_SIZE)):
                count += 1
            assert count > 16
            fill(small, 100_000)
            with pytest.raises(MediumFull):
                for _ in range(8):
                    file.write(bytes(BLOCK_SIZE))
        assert (small / "tapefile-1-T1.json").stat().st_size % BLOCK_SIZE == 0
        drive.flush()
        drive.rewind()
        assert take_stream(drive) == b"kept"
        fill(small)
        drive.locate_end()
        with pytest.raises(MediumFull):
            put_stream(drive, b"more")


# -- what may not be written -------------------------------------------------------------------------------------------


def test_write_protected(place: Path, tmp_path: Path) -> None:
    with new_drive(place) as drive:
        put_stream(drive, b"kept")
        put_stream(drive, b"this")
        os.chmod(place, 0o555)
        assert drive.status().write_protected
        before = contents(place)
        drive.locate(1)
        for call in (drive.create_file, lambda: drive.format(fast=True), lambda: drive.add("T2")):
            with pytest.raises(WriteProtected):
                call()
        assert take_stream(drive) == b"this" and contents(place) == before
        os.chmod(place, 0o755)
    with read_only_view(place, tmp_path / "view") as view:
        (place / ".drive.lck").unlink()
        (place / "drive-status.json").unlink()
        with VirtualDrive("v", str(view)) as drive:
            assert not drive.status().loaded
            VirtualChanger(drive).load("T1")
            assert take_stream(drive) == b"kept"
            with pytest.raises(WriteProtected):
                drive.create_file()


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", b"", b"[", b"[]", b'{"files": -1}', b'{"files": true}', b"\0" * 16])
def test_lost_file_of_a_medium(place: Path, damage: str | bytes) -> None:
    """The files that are there are what it has."""
    with new_drive(place) as drive:
        put_stream(drive, b"0")
        put_stream(drive, b"1")
    if isinstance(damage, bytes):
        (place / "tape-T1.json").write_bytes(damage)
    else:
        (place / "tape-T1.json").unlink()
    with VirtualDrive("v", str(place)) as drive:
        assert drive.labels() == ["T1"]
        drive.load("T1")
        assert drive.locate_end() == 2
        put_stream(drive, b"2")
    assert json.loads((place / "tape-T1.json").read_bytes()) == {"files": 3}


@pytest.mark.parametrize("damage", [b"", b"{", b'{"current_tape": 3}', b'{"current_tape": {"name": "../x", "pos": 1}}'])
def test_hostile_status(place: Path, damage: bytes) -> None:
    new_drive(place).close()
    (place / "drive-status.json").write_bytes(damage)
    with VirtualDrive("v", str(place)) as drive:
        assert not drive.status().loaded


def test_hostile_files(place: Path, tmp_path: Path) -> None:
    """A medium leads nowhere else, and says no more than is there."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with new_drive(place) as drive:
        put_stream(drive, b"0")
        (place / "tape-T1.json").write_text('{"files": 4}')
        (place / "tapefile-1-T1.json").symlink_to(secret)
        os.mkfifo(place / "tapefile-2-T1.json")
        for number in (1, 2):
            drive.locate(number)
            with pytest.raises(MediumError):
                drive.open_file()
        assert drive.locate_end() == 3  # the last one was lost
        (place / "tape-T1.json").write_text('{"files": 1}')
        drive.locate(1)
        put_stream(drive, b"1")
        assert secret.read_bytes() == b"secret"
        assert stat.S_ISREG((place / "tapefile-1-T1.json").lstat().st_mode)
        assert not (place / "tapefile-2-T1.json").exists()
        (place / "tape-T1.json").write_text('{"files": 999999999}')
        assert drive.locate_end() == 2
        drive.format(fast=True)
        assert list(contents(place)) == ["tape-T1.json"]


def test_cut_file(place: Path) -> None:
    with new_drive(place) as drive:
        put_stream(drive, bytes(2 * PAYLOAD_SIZE))
        os.truncate(place / "tapefile-0-T1.json", BLOCK_SIZE + 5)
        drive.rewind()
        with drive.open_file() as file:
            assert [len(file.read_block() or b"") for _ in range(3)] == [BLOCK_SIZE, 5, 0]


# -- file systems of attached drives -----------------------------------------------------------------------------------


def test_fat(tmp_path: Path) -> None:
    with weak_file_system(tmp_path, "vfat") as fat, new_drive(fat / "tapes") as drive:
        assert drive.largest_file == (4 << 30) - BLOCK_SIZE
        put_stream(drive, b"on fat")
        drive.flush()
        drive.rewind()
        assert take_stream(drive) == b"on fat"
        with pytest.raises(UsageError):
            drive.add("t1")  # the same to FAT
        fill(fat)
        drive.locate_end()
        with pytest.raises(MediumFull):
            put_stream(drive, bytes(9 << 20))


def test_no_limit_of_a_file(place: Path, tmp_path: Path) -> None:
    with new_drive(place) as drive:
        assert drive.largest_file is None
    with small_file_system(tmp_path, 8 << 20) as small, new_drive(small / "tapes") as drive:
        assert drive.status().capacity is not None


def test_fat_by_its_number(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no FAT to mount: what the drive says when it is one."""
    monkeypatch.setattr(linux, "filesystem_type", lambda fd: linux.MSDOS)
    with new_drive(place) as drive:
        assert drive.largest_file == (4 << 30) - BLOCK_SIZE < (4 << 30) - 1


def test_file_system_without_modes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT refuses modes."""

    def refuse(fd: int, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    with new_drive(place) as drive:
        put_stream(drive, b"kept")
        drive.flush()
        drive.rewind()
        assert take_stream(drive) == b"kept"


def test_another_disk_at_the_same_place(tmp_path: Path) -> None:
    """With no disk there nothing is written; another one is used when a medium is made on it."""
    mnt = tmp_path / "mnt"
    with temporary_file_system(mnt, 4 << 20):
        ask("tape", "drive", "add", "usb", "--path", mnt / "tapes")
        ask("tape", "label", "--label-text", "ONE")
    assert call("tape", "label", "--label-text", "TWO").code == call("tape", "inventory").code == 13
    assert list(mnt.iterdir()) == []
    mnt.rmdir()
    with temporary_file_system(mnt, 4 << 20):
        assert call("tape", "inventory").code == 13 and list(mnt.iterdir()) == []
        assert ask("tape", "label", "--label-text", "TWO")["location"] == "online-usb"
        places = {item["label-text"]: item["location"] for item in ask("tape", "media", "list")["items"]}
        assert places == {"ONE": "offline", "TWO": "online-usb"}
