"""Directory trees as the benchmark sees them: listed, read into the page cache, sized and compared.

Every walk stays on the file system of its root, as all the programs are told to, and never holds more than the
listings on one path in memory.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

READ_BYTES = 1 << 20
MAX_DIFFERENCES = 20
SETTLED_SECONDS = 3.5  # a file that changed in the last 3 s may change again unseen: nobody trusts its times


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory, link or device; ``status`` is its lstat."""

    path: str
    status: os.stat_result

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)


def walk(root: Path) -> Iterator[Entry]:
    """Every entry below ``root`` in sorted order, parents first; what may not be listed is left out."""
    device = root.lstat().st_dev
    pending = [str(root)]
    while pending:
        directory = pending.pop()
        below = []
        for path, status in _children(directory, device):
            yield Entry(path, status)
            if stat.S_ISDIR(status.st_mode):
                below.append(path)
        pending.extend(reversed(below))


def _children(directory: str, device: int) -> list[tuple[str, os.stat_result]]:
    """The entries of one directory that are on ``device``, by name."""
    try:
        with os.scandir(directory) as listing:
            found = [(entry.path, entry.stat(follow_symlinks=False)) for entry in listing]
    except PermissionError:
        return []
    return sorted((pair for pair in found if pair[1].st_dev == device), key=lambda pair: pair[0])


def read_all(root: Path) -> None:
    """Reads every file below ``root``, so that the next program finds it in the page cache."""
    buffer = memoryview(bytearray(READ_BYTES))
    for entry in walk(root):
        if not entry.is_file:
            continue
        try:
            descriptor = os.open(entry.path, os.O_RDONLY)
        except PermissionError:
            continue
        try:
            while os.readv(descriptor, [buffer]):
                pass
        finally:
            os.close(descriptor)


def settle(root: Path) -> None:
    """Waits until nothing in the tree was changed lately, so that the next backup can trust the times it finds."""
    newest = max([root.lstat().st_ctime, *(entry.status.st_ctime for entry in walk(root))])
    time.sleep(min(max(newest + SETTLED_SECONDS - time.time(), 0), SETTLED_SECONDS))


def allocated(root: Path) -> int:
    """Bytes that the files and directories below ``root`` take on the disk, hard links counted once."""
    linked: set[int] = set()
    total = 0
    for entry in walk(root):
        if entry.is_file and entry.status.st_nlink > 1:
            if entry.status.st_ino in linked:
                continue
            linked.add(entry.status.st_ino)
        total += entry.status.st_blocks * 512
    return total


def remove(root: Path) -> None:
    """Removes a tree if it is there, directories that a restore made read-only included."""
    if not root.exists():
        return
    for entry in walk(root):
        if stat.S_ISDIR(entry.status.st_mode):
            os.chmod(entry.path, 0o700)
    shutil.rmtree(root)


def empty(root: Path) -> None:
    """Gives back the space of every file below ``root``, and keeps the tree."""
    for entry in walk(root):
        if entry.is_file and entry.status.st_size:
            os.chmod(entry.path, 0o600)
            os.truncate(entry.path, 0)


def differences(source: Path, restored: Path) -> list[str]:
    """What in ``restored`` is not as in ``source``, at most MAX_DIFFERENCES lines; empty when all is well.

    Compared are names, kinds, content, link targets, device numbers, permission bits, modification times and, as root,
    owners. Source entries that this user may not read are not compared: no program could save them.
    """
    found: list[str] = []
    devices = (source.lstat().st_dev, restored.lstat().st_dev)
    pending = [(str(source), str(restored))]
    _compare_status(pending[0], (source.lstat(), restored.lstat()), found)
    while pending and len(found) < MAX_DIFFERENCES:
        ours, theirs = pending.pop()
        if not os.access(ours, os.R_OK | os.X_OK):
            continue
        left = {os.path.basename(path): status for path, status in _children(ours, devices[0])}
        right = {os.path.basename(path): status for path, status in _children(theirs, devices[1])}
        missing = [os.path.join(ours, name) for name in sorted(left.keys() - right.keys())]
        found += [f"missing: {_shown(path)}" for path in missing if os.path.islink(path) or os.access(path, os.R_OK)]
        found += [f"not in the source: {_shown(os.path.join(theirs, name))}" for name in right.keys() - left.keys()]
        for name in sorted(left.keys() & right.keys()):
            paths = (os.path.join(ours, name), os.path.join(theirs, name))
            if _compare_status(paths, (left[name], right[name]), found):
                if stat.S_ISDIR(left[name].st_mode):
                    pending.append(paths)
                elif stat.S_ISLNK(left[name].st_mode) and os.readlink(paths[0]) != os.readlink(paths[1]):
                    found.append(f"link target: {_shown(paths[0])}")
                elif stat.S_ISREG(left[name].st_mode) and not _same_content(*paths):
                    found.append(f"content: {_shown(paths[0])}")
    return found[:MAX_DIFFERENCES]


def _compare_status(paths: tuple[str, str], statuses: tuple[os.stat_result, os.stat_result], found: list[str]) -> bool:
    """Reports differing metadata; True when both are of one kind, so that the rest can be compared."""
    ours, theirs = statuses
    name = _shown(paths[0])
    if stat.S_IFMT(ours.st_mode) != stat.S_IFMT(theirs.st_mode):
        found.append(f"kind: {name}")
        return False
    if stat.S_IMODE(ours.st_mode) != stat.S_IMODE(theirs.st_mode):
        found.append(f"mode: {name}")
    if ours.st_mtime_ns != theirs.st_mtime_ns:
        found.append(f"mtime: {name}")
    if os.geteuid() == 0 and (ours.st_uid, ours.st_gid) != (theirs.st_uid, theirs.st_gid):
        found.append(f"owner: {name}")
    if (stat.S_ISBLK(ours.st_mode) or stat.S_ISCHR(ours.st_mode)) and ours.st_rdev != theirs.st_rdev:
        found.append(f"device: {name}")
    return True


def _same_content(ours: str, theirs: str) -> bool:
    if not os.access(ours, os.R_OK):
        return True
    with Path(ours).open("rb") as left, Path(theirs).open("rb") as right:
        while True:
            piece = left.read(READ_BYTES)
            if piece != right.read(READ_BYTES):
                return False
            if not piece:
                return True


def _shown(path: str) -> str:
    return path.encode(errors="backslashreplace").decode()
