"""Where the tape state lies: ``$XDG_STATE_HOME/archiver/tape/`` (DESIGN.md 3; spec tape.md 6.1).

    drives.json                  drives and changers, ours
    pools.json                   pools, ours
    inventory.json               all known media, as a PBS has it
    <media uuid>.log             catalog of a medium, as a PBS has it
    <media uuid>.unsure          why a medium may hold more than its catalog says, ours
    .inventory.lck .config.lck .pool-NAME.lck .media-set-UUID.lck .drive-NAME.lck    kernel locks

Locks are taken in this order: drive, pool, media set, inventory.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from typing import Any

from archiver.core.disk import Disk, explain, explained
from archiver.core.locks import FileLock
from archiver.errors import Damaged, Locked, TooNew
from formats.wire import Buffer

UNASSIGNED = "__UNASSIGNED__"  # stands for the pool of media without one, in the name of its lock
SCHEMA = 1

_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600
_LARGEST = 64 << 20
_WAIT_SECONDS = 10.0


class TapePlace:
    """The directory of the tape state. It is made when something is written into it; a missing one is an empty one."""

    def __init__(self, path: str, disk: Disk | None = None) -> None:
        self.path = path
        self.disk = disk or Disk()

    @staticmethod
    def default(environment: Mapping[str, str]) -> TapePlace:
        base = environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        return TapePlace(os.path.join(base, "archiver", "tape"))

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def make(self) -> None:
        """Have the directory. Raises ArchiverError."""
        if not os.path.isdir(self.path):
            with explained("make", self.path):
                self.disk.make_directories(self.path, _DIRECTORY_MODE)

    # -- locks -------------------------------------------------------------------------------------------------------

    def lock(self, name: str, what: str, *, wait_seconds: float = _WAIT_SECONDS, shared: bool = False) -> FileLock:
        """The lock ``.NAME.lck``; ``what`` for the sentence. Raises Locked."""
        self.make()
        path = self.file(f".{name}.lck")
        try:
            return FileLock(path, _FILE_MODE, exclusive=not shared, wait_seconds=wait_seconds)
        except BlockingIOError as error:
            raise Locked(f"{what} is in use by another process", hint="wait for it to end") from error
        except OSError as error:
            raise explain(error, "lock", path) from error

    def lock_pool(self, pool: str | None, *, wait_seconds: float = _WAIT_SECONDS) -> FileLock:
        what = "the media without a pool" if pool is None else f"the pool {pool}"
        return self.lock(f"pool-{pool or UNASSIGNED}", what, wait_seconds=wait_seconds)

    def lock_media_set(self, uuid: str, *, wait_seconds: float = _WAIT_SECONDS) -> FileLock:
        """A backup that writes the set, or a restore from it: no medium of it is used for anything else meanwhile."""
        return self.lock(f"media-set-{uuid}", f"the media set {uuid}", wait_seconds=wait_seconds)

    def lock_drive(self, name: str, *, wait_seconds: float = _WAIT_SECONDS) -> FileLock:
        return self.lock(f"drive-{name}", f"the drive {name}", wait_seconds=wait_seconds)

    # -- documents ---------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none. Raises ArchiverError, Damaged for something else than a file."""
        path = self.file(name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explain(error, "read", path) from error
        with os.fdopen(fd, "rb", buffering=0) as file, explained("read", path):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.ELOOP, "not a regular file")
            data = file.read(_LARGEST + 1) or b""
        if len(data) > _LARGEST:
            raise Damaged(f"{path} is too long: more than {_LARGEST >> 20} MiB")
        return data

    def read_json(self, name: str, hint: str | None = None) -> Any:
        """What a JSON file holds; None where there is none. Raises Damaged, with ``hint``."""
        data = self.read(name)
        if data is None:
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self.damaged(name, f"it is no JSON ({str(error)[:80]})", hint) from error

    def read_document(self, name: str, hint: str) -> dict[str, Any]:
        """A document of ours; an empty one where there is none. Raises Damaged, TooNew."""
        found = self.read_json(name, hint)
        if found is None:
            return {}
        if not isinstance(found, dict) or not isinstance(found.get("schema"), int):
            raise self.damaged(name, "it is no such document", hint)
        if found["schema"] > SCHEMA:
            raise TooNew(f"{self.file(name)} was written by a newer version of this program")
        return found

    def damaged(self, name: str, reason: str, hint: str | None = None) -> Damaged:
        return Damaged(f"{self.file(name)} cannot be used: {reason}", hint=hint)

    def write(self, name: str, data: Buffer, mode: int = _FILE_MODE) -> None:
        """Durable, and whole or not at all. Raises ArchiverError."""
        self.make()
        path = self.file(name)
        with explained("write", path):
            self.disk.put(path, [data], mode, sync=True)

    def write_json(self, name: str, value: Any, mode: int = _FILE_MODE) -> None:
        """Readable for a person; a path that is no UTF-8 is kept all the same."""
        try:
            data = json.dumps(value, indent=2, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            data = json.dumps(value, indent=2).encode()
        self.write(name, data, mode)

    def remove(self, name: str) -> None:
        path = self.file(name)
        with explained("remove", path):
            self.disk.remove_file(path)
            self.disk.sync_directory(self.path)
