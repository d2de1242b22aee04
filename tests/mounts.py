"""File systems for a test: small ones (in an image or in memory) and a read-only view of a directory. Need root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


def _mount(*arguments: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


def _unmount(place: Path) -> None:
    subprocess.run(["umount", str(place)], check=True)


_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-m", "0", "-O", "^resize_inode"),  # no blocks reserved for root
    "xfs": ("mkfs.xfs", "-q", "--unsupported"),  # it is meant for at least 300 MB
    "btrfs": ("mkfs.btrfs", "-q", "--mixed"),
}


@contextmanager
def small_file_system(directory: Path, size: int, *options: str, kind: str = "ext4") -> Iterator[Path]:
    """A file system of ``size`` bytes, mounted below ``directory``; ``options`` of mkfs."""
    if shutil.which(_MAKE[kind][0]) is None:
        pytest.skip(f"{_MAKE[kind][0]} is not installed")
    image, place = directory / "small.image", directory / "small"
    with open(image, "wb") as file:
        file.truncate(size)
    made = subprocess.run([*_MAKE[kind], *options, str(image)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    place.mkdir()
    _mount("-o", "loop", str(image), str(place))
    try:
        yield place
    finally:
        _unmount(place)


@contextmanager
def temporary_file_system(place: Path, size: int) -> Iterator[Path]:
    """A tmpfs of ``size`` bytes at ``place``, which is made."""
    place.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield place
    finally:
        _unmount(place)


@contextmanager
def read_only_view(directory: Path, place: Path) -> Iterator[Path]:
    """``directory`` seen read-only at ``place``, which is made."""
    place.mkdir()
    _mount("-o", "bind,ro", str(directory), str(place))
    try:
        yield place
    finally:
        _unmount(place)


def fill(place: Path, leave: int = 0) -> None:
    """Use up the space of the file system at ``place`` but for about ``leave`` bytes."""
    space = os.statvfs(place)
    with open(place / "filler", "wb", buffering=0) as file:
        with suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(space.f_bavail * space.f_frsize - leave, 1))
        for piece in (1 << 20, 4096) if not leave else ():
            with suppress(OSError):
                while True:
                    file.seek(0, os.SEEK_END)
                    file.write(bytes(piece))


@contextmanager
def weak_file_system(directory: Path, kind: str) -> Iterator[Path]:
    """A file system that does not keep everything, mounted below ``directory``: ramfs (no extended attributes), ext4
    with small inodes (times of seconds), or vfat."""
    place = directory / kind
    place.mkdir()
    if kind == "ramfs":
        _mount("-t", "ramfs", "ramfs", str(place))
    else:
        if shutil.which(f"mkfs.{kind}") is None:
            pytest.skip(f"mkfs.{kind} is not installed")
        image = directory / f"{kind}.image"
        with open(image, "wb") as file:
            file.truncate(8 << 20)
        options = ["-q", "-I", "128"] if kind == "ext4" else []
        subprocess.run([f"mkfs.{kind}", *options, str(image)], check=True, capture_output=True)
        _mount("-o", "loop", str(image), str(place))
    try:
        yield place
    finally:
        _unmount(place)
