"""The directory of virtual tapes: what is in it, whether it is there, its lock (spec tape.md 3)."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from typing import Any

from archiver.core.disk import explain, explained
from archiver.core.locks import DirectoryLock, FileLock
from archiver.errors import Locked, TargetAbsent
from archiver.tape.drive.interface import MediumError

LOCK = ".drive.lck"
STATUS = "drive-status.json"
TAPE = re.compile(r"tape-([A-Za-z0-9_][A-Za-z0-9._-]{1,31})\.json")
FILE = re.compile(r"tapefile-(0|[1-9][0-9]{0,8})-([A-Za-z0-9_][A-Za-z0-9._-]{1,31})\.json")
FILE_MODE = 0o644
_LARGEST_STATUS = 64 << 10
_BLOCK_DEVICES = "/sys/dev/block"


def labels_in(path: str) -> list[str]:
    """The media in a directory, sorted."""
    found = set()
    with explained("read", path):
        for name in os.listdir(path):
            match = TAPE.fullmatch(name)
            if match is not None:
                found.add(match[1])
                continue
            match = FILE.fullmatch(name)
            if match is not None and match[1] == "0":
                found.add(match[2])
    return sorted(found)


def check_there(path: str, mount: str | None, *, new: bool = False) -> None:
    """Raises TargetAbsent unless the directory of a drive is there; with ``new``, unless it may be made."""
    hint = "plug in and mount the disk that holds it"
    if mount is not None and not os.path.ismount(mount):
        raise TargetAbsent(f"{mount} is not mounted: the tapes in {path} are not there", hint=hint)
    if new:
        if not os.path.isdir(os.path.dirname(path)):
            raise TargetAbsent(f"there is no directory {os.path.dirname(path)}", hint=hint)
        return
    try:
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TargetAbsent(f"there is no directory {path}", hint=hint) from error
    except OSError as error:
        raise explain(error, "read", path) from error
    if not any(name in (LOCK, STATUS) or TAPE.fullmatch(name) or FILE.fullmatch(name) for name in names):
        raise TargetAbsent(f"there is nothing of a virtual tape drive in {path}", hint=hint)


def identity(path: str) -> tuple[int, int] | None:
    """Which directory is at ``path``, None where none is. While a file in it is open no other one has the same."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def lock_drive(name: str, path: str, wait_seconds: float) -> FileLock | DirectoryLock:
    """The lock of the drive; on a read-only file system without a lock file that of the directory."""
    try:
        try:
            return FileLock(os.path.join(path, LOCK), FILE_MODE, wait_seconds=wait_seconds)
        except BlockingIOError:
            raise
        except OSError:
            return DirectoryLock(path, wait_seconds=wait_seconds)
    except BlockingIOError as error:
        raise Locked(f"the drive {name} ({path}) is in use by another process", hint="wait for it to end") from error
    except OSError as error:
        raise explain(error, "lock", path) from error


def failed(directory: str, what: str, error: OSError) -> TargetAbsent | MediumError:
    """What an error of the file system means: a bad medium, or a disk that was taken away while it was in use. Of such
    a one the kernel has forgotten the device, whatever it still remembers of the directory."""
    if _is_gone(directory):
        return TargetAbsent(f"the disk with {directory} was taken away", hint="plug it in and run this again")
    return MediumError(f"{what}: {(error.strerror or str(error)).lower()}")


def _is_gone(directory: str) -> bool:
    try:
        device = os.stat(directory).st_dev
    except OSError:
        return True
    if not os.major(device) or not os.path.isdir(_BLOCK_DEVICES):
        return False  # no file system on a block device
    return not os.path.lexists(os.path.join(_BLOCK_DEVICES, f"{os.major(device)}:{os.minor(device)}"))


def encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False).encode()


def read_object(path: str) -> dict[str, Any] | None:
    """A small JSON object; None where there is none, or something else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise explain(error, "read", path) from error
    try:
        with explained("read", path):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            data = os.read(fd, _LARGEST_STATUS)
    finally:
        os.close(fd)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
