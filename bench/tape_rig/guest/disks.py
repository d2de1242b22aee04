"""Virtual tapes on the file systems that attached disks have: vfat and exfat, mounted from an image."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archiver.tape.drive.interface import MediumFull
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.drive.virtual_file import RESERVE_BLOCKS
from bench.tape_rig.guest.report import check, expect, refused, same
from formats.tape.blocks import BLOCK_SIZE

KINDS = ("vfat", "exfat")
_LARGEST = {"vfat": (4 << 30) - BLOCK_SIZE, "exfat": None}
_SIZE = 96 << 20
_CONTENTS = 6 << 20
_FEW_BLOCKS = 8


def run(place: Path) -> None:
    for kind in KINDS:
        directory = place / kind
        directory.mkdir()
        with check(f"{kind}: backups onto a virtual tape, restored after it was mounted again"):
            _round_trip(kind, directory)
        with check(f"{kind}: archives stay under the limit of a file"):
            _limit(kind, directory)
        with check(f"{kind}: a full file system is the end of the medium"):
            _full(kind, directory)


@contextmanager
def _mounted(kind: str, directory: Path) -> Iterator[Path]:
    image, mount = directory / "image", directory / "mnt"
    if not image.exists():
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate(_SIZE)
        _call(f"mkfs.{kind}", str(image))
    _call("mount", "-t", kind, "-o", "loop", str(image), str(mount))
    try:
        yield mount
    finally:
        _call("umount", str(mount))


def _call(*command: str, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    expect(done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _archiver(directory: Path, *arguments: str) -> str:
    return _call(
        *("python3", "-m", "archiver", "--store", str(directory / "store"), *arguments),
        XDG_STATE_HOME=str(directory / "state"),
        XDG_CACHE_HOME=str(directory / "cache"),
        ARCHIVER_RESERVE="0",
    )


def _round_trip(kind: str, directory: Path) -> None:
    source = directory / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(_CONTENTS))
    _archiver(directory, "init")
    _archiver(directory, "backup", str(source), "--id", "rig", "--chunk-size", "64")
    with _mounted(kind, directory) as mount:
        _archiver(directory, "tape", "drive", "add", "usb", "--path", str(mount / "tapes"))
        _archiver(directory, "tape", "pool", "create", "pool")
        _archiver(directory, "tape", "label", "--label-text", "ONE")
        _archiver(directory, "tape", "backup", "pool")
    again = directory / "again"
    with _mounted(kind, directory):
        _call("python3", "-m", "archiver", "--store", str(again), "init", ARCHIVER_RESERVE="0")
        _archiver(directory, "--store", str(again), "tape", "restore", "ONE")
        out = directory / "out"
        _archiver(directory, "--store", str(again), "restore", "latest", str(out))
    expect((out / "file").read_bytes() == (source / "file").read_bytes(), "another file came back")
    same(list((directory / "mnt").iterdir()), [], "what is in the bare mount point")


def _limit(kind: str, directory: Path) -> None:
    """What the drive says is what the file system can; and a file system that takes less gets less."""
    with _mounted(kind, directory) as mount:
        with VirtualDrive("usb", str(mount / "tapes")) as drive:
            same(drive.largest_file, _LARGEST[kind], "the largest file")
        with open(mount / "probe", "wb") as file:
            if kind == "vfat":
                with refused(OSError, "a file of 4 GiB"):
                    os.ftruncate(file.fileno(), 4 << 30)
        (mount / "probe").unlink()
        if kind != "vfat":
            return
        code = f"from archiver.tape.drive import virtual as v; v._FAT_FILE = {_FEW_BLOCKS * BLOCK_SIZE}\n"
        code += "from archiver.cli.main import main; main()"
        _archiver(directory, "tape", "label", "--label-text", "TWO")
        _call(
            *("python3", "-c", code, "--store", str(directory / "store"), "tape", "backup", "pool", "--new-set"),
            XDG_STATE_HOME=str(directory / "state"),
            XDG_CACHE_HOME=str(directory / "cache"),
        )
        sizes = [path.stat().st_size for path in (mount / "tapes").glob("tapefile-*-TWO.json")]
        expect(max(sizes) <= _FEW_BLOCKS * BLOCK_SIZE and sum(sizes) > _CONTENTS, f"files of {sizes} bytes")


def _full(kind: str, directory: Path) -> None:
    block = os.urandom(BLOCK_SIZE)
    with _mounted(kind, directory) as mount, VirtualDrive("usb", str(mount / "tapes")) as drive:
        drive.add("THREE")
        with drive.create_file() as file:
            count = 0
            while not file.write(block):
                count += 1
            more = 0
            with refused(MediumFull, "a block too much"):
                while more < _SIZE // BLOCK_SIZE:
                    file.write(block)
                    more += 1
        drive.flush()
        expect(count > 10 and more >= RESERVE_BLOCKS, f"{count} blocks, {more} behind the warning")
        same((mount / "tapes/tapefile-0-THREE.json").stat().st_size % BLOCK_SIZE, 0, "bytes of half a block")
        drive.rewind()
        with drive.open_file() as reader:
            same(bytes(reader.read_block() or b""), block, "the first block")
