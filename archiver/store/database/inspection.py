"""Is an LMDB file safe to map? Decided with plain reads, and where in doubt by a child process that may die of it.

A truncated file under a memory map kills the process with SIGBUS, a garbage page may abort it. So before mapping:

* the two meta pages are read and the file must reach the last page they speak of;
* when the file is not as the last clean close left it (stamp of inode, size and mtime), and no living process uses it,
  a child process reads every page and every record first.

Meta page (LMDB 0.9, 64-bit): page header 16 bytes (flags at 10), then magic u32, version u32, address u64, map size
u64, two 48-byte database records (the first one's pad u32 is the page size), last page u64, transaction id u64.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from contextlib import suppress

from archiver.core.disk import Disk, read_at

DATA = "data.mdb"
STAMP = "clean.json"

_META = struct.Struct("<II QQ 96s QQ")
_MAGIC = 0xBEEFC0DE
_VERSION = 1
_PAGE_HEADER = 16
_META_FLAG = 0x08
_WALK_SECONDS = 1800


def complete(path: str) -> bool:
    """True when the data file at ``path`` has sound meta pages and all the pages they count. OSError: who knows."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        first = _meta(read_at(fd, 4096, 0))
        if first is None:
            return False
        page_size = first[0]
        second = _meta(read_at(fd, 4096, page_size))
        if second is None or second[0] != page_size:
            return False
        return size >= (max(first[1], second[1]) + 1) * page_size
    except OSError:
        return False
    finally:
        os.close(fd)


def _meta(page: bytes) -> tuple[int, int] | None:
    """(page size, last page) of a meta page, None when it is not one."""
    if len(page) < _PAGE_HEADER + _META.size or not page[10] & _META_FLAG:
        return None
    magic, version, _address, _map_size, databases, last_page, _transaction = _META.unpack_from(page, _PAGE_HEADER)
    page_size = int.from_bytes(databases[:4], "little")
    if magic != _MAGIC or version != _VERSION or page_size not in (4096, 8192, 16384, 32768, 65536):
        return None
    return page_size, last_page


def stamp(directory: str) -> None:
    """Remember how the data file looks after a clean close."""
    with suppress(OSError):  # a missing stamp costs one walk, no more
        Disk().put(os.path.join(directory, STAMP), [json.dumps(_look(directory)).encode()], 0o600, sync=False)


def stamped(directory: str) -> bool:
    """True when the data file is as the last clean close left it."""
    try:
        with open(os.path.join(directory, STAMP), encoding="ascii") as file:
            text = file.read(1000)
        return bool(json.loads(text) == _look(directory))
    except (OSError, ValueError, RecursionError):
        return False


def _look(directory: str) -> list[int]:
    status = os.stat(os.path.join(directory, DATA))
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def walk_in_child(directory: str) -> bool:
    """Read every page and record in a child process; False when it failed in any way, death included.

    Raises OSError when there can be no child: that tells nothing about the file."""
    import subprocess

    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", _WALK, directory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_WALK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return child.returncode == 0


# Compacting into nothing walks every tree page, the list of free pages too; then every record is touched.
_WALK = """
import os, resource, sys, lmdb
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
size = os.path.getsize(os.path.join(sys.argv[1], "data.mdb"))  # no more: address space may be short
env = lmdb.open(os.fsencode(sys.argv[1]), max_dbs=32, map_size=size, readonly=True, lock=False, create=False)
out = os.open(os.devnull, os.O_WRONLY)
env.copyfd(out, compact=True)
with env.begin() as txn:
    for name, _ in list(txn.cursor()):
        last = None
        for key, value in txn.cursor(db=env.open_db(name, txn=txn, create=False)):
            if last is not None and key <= last:
                raise SystemExit(1)
            last = key
            len(value)
"""
