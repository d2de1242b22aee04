"""System calls fail as the kernel would have them, those of LMDB too."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from archiver.errors import EXIT_OK
from tests.faults.lab import WORKS, Ended, House, Work, sweep, told
from tests.faults.traced import Tracer, require

pytestmark = pytest.mark.in_memory

_SPACE = ("EIO", "ENOSPC")
CALLS: dict[str, tuple[str, ...]] = {
    "openat": ("EIO", "ENOSPC", "EMFILE"),
    "read": ("EIO",),
    "pread64": ("EIO",),
    "preadv2": ("EIO",),
    "readv": ("EIO",),
    "write": _SPACE,
    "writev": _SPACE,
    "pwrite64": _SPACE,
    "pwritev": _SPACE,
    "fsync": _SPACE,
    "fdatasync": _SPACE,
    "syncfs": _SPACE,
    "rename": _SPACE,
    "renameat2": _SPACE,
    "link": _SPACE,
    "linkat": _SPACE,
    "symlinkat": _SPACE,
    "mknodat": _SPACE,
    "mkdir": _SPACE,
    "mkdirat": _SPACE,
    "unlink": ("EIO",),
    "unlinkat": ("EIO",),
    "rmdir": ("EIO",),
    "ftruncate": _SPACE,
    "fallocate": _SPACE,
    "mmap": ("ENOMEM",),
    "newfstatat": ("EIO",),
    "statx": ("EIO",),
    "statfs": ("EIO",),
    "fstatfs": ("EIO",),
    "getdents64": ("EIO",),
    "ioctl": ("EIO",),
    "fcntl": ("ENOLCK",),
    "flock": ("ENOLCK",),
    "utimensat": ("EIO",),
}
# Those that a signal may interrupt before anything is done.
INTERRUPTED = {"openat", "read", "pread64", "preadv2", "readv", "write", "writev", "pwrite64", "fsync", "fdatasync"}
INTERRUPTED |= {"ftruncate", "fallocate", "fcntl", "flock", "fstatfs", "syncfs"}
# The interpreter's own way to list a directory gives up there, and waiting for a lock is what else can be interrupted.
_NEVER_INTERRUPTED = ("O_DIRECTORY", "F_SETFD", "F_GETFL", "F_DUPFD", "F_OFD_SETLK,")
# The interpreter itself does not survive a lack of memory: only the maps of the database are tried.
_MAPPED = ("data.mdb", "lock.mdb")


class Shot(NamedTuple):
    """The ``number``-th of these calls of a thread ends so."""

    call: str
    kind: str
    number: int


@pytest.fixture(scope="module", autouse=True)
def tracing() -> None:
    require()


def run(house: House, work: Work, calls: str, inject: str = "") -> Ended:
    paths = [house.path / name / ".archiver/db" / file for name in house.held for file in _MAPPED]
    log = house.path / "trace"
    return house.run(work, trace=lambda child: Tracer(child, log, calls, inject, paths if calls == "mmap" else ()))


def shots(built: House, place: Path, work: Work) -> list[Shot]:
    """All that the command can meet."""
    house = built.copy(place)
    ended = run(house, work, ",".join(f"?{call}" for call in CALLS))
    assert ended.code == EXIT_OK, ended
    shutil.rmtree(place)
    kinds = {call: [*CALLS[call], *(["EINTR"] if call in INTERRUPTED else [])] for call in CALLS}
    return [
        Shot(call, kind, number)
        for call, count in sorted(ended.counts.items())
        for kind in kinds[call]
        for number in range(1, count + 1)
    ]


def attempt(house: House, work: Work, shot: Shot, rng: random.Random) -> Ended:
    ended = run(house, work, shot.call, f"error={shot.kind}:when={shot.number}")
    house.check(work, ended, rng)
    if shot.kind == "EINTR" and not any(each in line for line in ended.traced for each in _NEVER_INTERRUPTED):
        assert ended.code == EXIT_OK, ended
    return ended


def test_a_sample(built: House, tmp_path: Path) -> None:
    rng = random.Random(3)
    found = []
    for name in ("nightly", "restore", "prune", "gc", "sync"):
        every = shots(built, tmp_path / "copy", WORKS[name])
        for call in rng.sample(sorted({shot.call for shot in every}), 3):
            found.append((WORKS[name], rng.choice([shot for shot in every if shot.call == call])))
    codes = sweep(built, tmp_path / "copy", found, attempt, 3)
    assert codes.total() == len(found) and codes["not met"] < len(found) / 2, codes


@pytest.mark.parametrize(
    "shot", [Shot("pwrite64", "EIO", 3), Shot("fdatasync", "EIO", 1), Shot("pwrite64", "EINTR", 2)]
)
def test_the_database_cannot_be_written(house: House, shot: Shot) -> None:
    """It is an index: the backup is whole all the same."""
    ended = attempt(house, WORKS["nightly"], shot, random.Random(1))
    assert ended.code == EXIT_OK and ended.hits == 1, ended
    assert ("cannot be used" in ended.err) == (shot.kind == "EIO"), ended


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", WORKS)
def test_many(built: House, tmp_path: Path, name: str) -> None:
    """Of each call the first ones, and a share of the later ones."""
    began, rng = time.monotonic(), random.Random(4)
    every = shots(built, tmp_path / "copy", WORKS[name])
    found = [(WORKS[name], shot) for shot in every if shot.number <= 4 or rng.random() < 0.15]
    codes = sweep(built, tmp_path / "copy", found, attempt, 4)
    seconds = time.monotonic() - began
    print(f"{name}: {len(found)} of {len(every)} system calls in {seconds:.0f} s: {told(codes)}")
