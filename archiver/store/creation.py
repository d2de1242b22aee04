"""Making a store, and refusing places that cannot hold one (spec datastore.md 3)."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
from contextlib import suppress
from typing import NamedTuple

from archiver.core.clock import Random
from archiver.core.disk import Disk, explain, explained
from archiver.core.locks import DirectoryLock, lock_range
from archiver.errors import ArchiverError, Damaged, Locked, TooNew, UsageError
from archiver.store import layout as names
from archiver.store.layout import Layout
from archiver.store.snapshots import read_small

SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{2,31}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_READ_AT_MOST = 64 * 1024  # bytes of store.json
_IDENTIFY_WAIT = 60.0  # seconds


class Identity(NamedTuple):
    """What ``.archiver/store.json`` says: how the store is known wherever it is mounted."""

    uuid: str  # 36 characters, lower case
    name: str

    def encode(self) -> bytes:
        return json.dumps({"schema": SCHEMA, "uuid": self.uuid, "name": self.name}, indent=2).encode() + b"\n"


def default_name(base: str) -> str:
    """The directory's name where it is a valid store name, else ``store``."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(os.path.abspath(base)))[:32].lstrip(".-")
    return name if _NAME.fullmatch(name) else "store"


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a store name", hint="3 to 32 characters: letters, digits, '.', '_' and '-', not '.' first"
        )


def new_identity(name: str, random: Random) -> Identity:
    from uuid import UUID

    return Identity(str(UUID(bytes=random(16), version=4)), name)


def _canonical(text: str) -> str:
    """Raises one of the errors of those who parse it."""
    if _UUID.fullmatch(text):
        return text
    from uuid import UUID  # 2 ms, for who writes it otherwise

    return str(UUID(text))


def read_identity(base: str) -> Identity | None:
    """The identity of the store at ``base``; None for a store that PBS made and we have not written to yet.

    Raises Damaged for a file that cannot be understood, TooNew for one of a later version.
    """
    path = Layout(base).identity
    try:
        data = read_small(path, _READ_AT_MOST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise explain(error, "read", path) from error
    try:
        fields = json.loads(data)
        if isinstance(fields["schema"], int) and fields["schema"] > SCHEMA:
            raise TooNew(f"the store {base} was written by a newer archiver", hint="update archiver")
        return Identity(_canonical(fields["uuid"]), str(fields["name"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: it does not say which store this is", hint=f"remove {path}") from error


def write_identity(base: str, identity: Identity, disk: Disk) -> None:
    layout = Layout(base)
    with explained("write", layout.identity):
        disk.ensure_directory(layout.private, names.PRIVATE_MODE)
        disk.sync_directory(base)
        disk.put(layout.identity, [identity.encode()], names.FILE_MODE, sync=True)


def identify(base: str, disk: Disk, random: Random) -> Identity:
    """The identity of the store at ``base``; one that has none gets it now, the same for all who ask at once."""
    layout = Layout(base)
    with explained("write", layout.private):
        disk.ensure_directory(layout.private, names.PRIVATE_MODE)
        with DirectoryLock(layout.private, wait_seconds=_IDENTIFY_WAIT):
            identity = read_identity(base)
            if identity is None:
                identity = new_identity(default_name(base), random)
                write_identity(base, identity, disk)
    return identity


def replace_identity(base: str, known: str | None, disk: Disk, random: Random) -> Identity:
    """Give the store at ``base``, whose identity cannot be read, the one that is ``known``, or a new one."""
    layout = Layout(base)
    with explained("write", layout.private), DirectoryLock(layout.private, wait_seconds=_IDENTIFY_WAIT):
        try:
            there = read_identity(base)
        except Damaged:
            there = None
        if there is not None:
            return there
        identity = new_identity(default_name(base), random)
        if known is not None:
            identity = Identity(known, identity.name)
        write_identity(base, identity, disk)
    return identity


def renew(base: str, disk: Disk, random: Random) -> Identity:
    """Give the store at ``base``, a copy of another one, an identity of its own; the name stays. Locked while anybody
    writes into it."""
    layout = Layout(base)
    before = identify(base, disk, random)
    with explained("open", layout.lock):
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, names.FILE_MODE)
    try:
        if not lock_range(fd, 0, 0, exclusive=True):
            raise Locked(f"the store {base} is in use by another process", hint="try again later")
        identity = new_identity(before.name, random)
        write_identity(base, identity, disk)
    finally:
        os.close(fd)
    return identity


def create(base: str, *, name: str | None, complete_shards: bool, disk: Disk, random: Random) -> Identity:
    """Make an empty store in ``base``, which must be absent or empty but for hidden names and ``lost+found``.

    ``complete_shards`` makes all 65,536 shard directories, which a PBS wants to see before it adopts the store.
    Raises UsageError when the directory is in use or the file system cannot hold a store.
    """
    base = os.path.abspath(base)
    name = name if name is not None else default_name(base)
    check_name(name)
    _check_vacant(base)
    made = not os.path.isdir(base)
    layout = Layout(base)
    begun = False
    try:
        disk.make_directories(base, names.BASE_MODE)
        with suppress(PermissionError):  # above it, where we may not look; else it may be what a killed init has made
            disk.sync_directory(os.path.dirname(base))
        check_file_system(base, random)
        begun = True
        identity = new_identity(name, random)
        write_identity(base, identity, disk)
        disk.put(layout.lock, [], names.FILE_MODE, sync=False)
        disk.make_directory(layout.chunks, names.CHUNKS_MODE)  # the last step: this is what makes it a store
        disk.sync_directory(base)
        if complete_shards:
            make_shards(base, disk)
    except OSError as error:
        if not isinstance(error, FileExistsError):  # else it is another process's by now
            _take_back(layout, disk, begun=begun, made=made)
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UsageError(
                f"a store cannot be made in {base}: {(error.strerror or str(error)).lower()}",
                hint="choose a directory on a file system that you may write to",
            ) from error
        raise explain(error, "make the store", base) from error
    except ArchiverError:
        _take_back(layout, disk, begun=begun, made=made)
        raise
    return identity


def make_shards(base: str, disk: Disk) -> None:
    """Make every shard directory that is missing (about 256 MiB of empty directories on ext4)."""
    chunks = Layout(base).chunks
    for shard in range(65536):
        path = f"{chunks}/{shard:04x}"
        try:
            disk.make_directory(path, names.CHUNKS_MODE)
        except FileExistsError:
            continue
    disk.sync_directory(chunks)


def _check_vacant(base: str) -> None:
    if base == "/":
        raise UsageError("a store cannot be the root directory", hint="name a directory of its own")
    try:
        present = [entry for entry in os.listdir(base) if not entry.startswith(".") and entry != "lost+found"]
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UsageError(f"{base} is not a directory") from error
    except OSError as error:
        raise explain(error, "look into", base) from error
    if os.path.lexists(Layout(base).chunks):
        raise UsageError(f"{base} already holds a store", hint="use it as it is: no init is needed")
    if present:
        raise UsageError(
            f"{base} is not empty (it holds {sorted(present)[0]!r})", hint="name an empty or new directory"
        )


def check_file_system(base: str, random: Random) -> None:
    """Try what a store needs: names with ``:``, exact modes, memory maps, rename. Raises UsageError or OSError."""
    probe = os.path.join(base, f".archiver-probe-{random(4).hex()}-12:34:56")
    better = "use a Linux file system such as ext4, xfs or btrfs"
    try:
        fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EILSEQ):
            raise UsageError(f"the file system of {base} cannot hold names with ':'", hint=better) from error
        raise
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        os.fchmod(fd, 0o640)
        try:
            mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
        except OSError as error:
            raise UsageError(f"the file system of {base} cannot map files into memory", hint=better) from error
        if os.fstat(fd).st_mode & 0o777 != 0o640:
            raise UsageError(f"the file system of {base} cannot keep file modes", hint=better)
    finally:
        os.close(fd)
        os.unlink(probe)


def _take_back(layout: Layout, disk: Disk, *, begun: bool, made: bool) -> None:
    """Leave nothing of a store that could not be made, unless somebody has put something into it already."""
    with suppress(OSError):
        if begun:
            if os.path.lexists(layout.chunks):
                for shard in os.listdir(layout.chunks):
                    os.rmdir(os.path.join(layout.chunks, shard))
                os.rmdir(layout.chunks)
            for file in (layout.identity, layout.lock):
                disk.remove_file(file)
            with suppress(FileNotFoundError):
                os.rmdir(layout.private)
        if made:
            os.rmdir(layout.base)
