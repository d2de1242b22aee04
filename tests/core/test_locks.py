"""Kernel locks: who excludes whom, and that they vanish with their process."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from archiver.core.locks import DirectoryLock, lock_range

ROOT = Path(__file__).parent.parent.parent
SHARED, EXCLUSIVE = False, True


@contextmanager
def holder(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs ``code``, says "held" and then holds until it is killed."""
    script = f"import sys\n{code}\nprint('held', flush=True)\nsys.stdin.read()\n"
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


RANGE = """
import os
from archiver.core.locks import lock_range
fd = os.open(sys.argv[1], os.O_RDWR)
assert lock_range(fd, int(sys.argv[2]), int(sys.argv[3]), exclusive=sys.argv[4] == "True")
"""

# As a PBS does it: a POSIX record lock on the whole file.
WHOLE_FILE = """
import fcntl, os
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, (fcntl.LOCK_EX if sys.argv[2] == "True" else fcntl.LOCK_SH) | fcntl.LOCK_NB)
"""

DIRECTORY = """
from archiver.core.locks import DirectoryLock
lock = DirectoryLock(sys.argv[1], exclusive=sys.argv[2] == "True")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.write_bytes(b"")
    return path


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("first", "second", "free"),
    [
        ((0, 1, SHARED), (0, 1, SHARED), True),
        ((0, 1, SHARED), (0, 1, EXCLUSIVE), False),
        ((0, 1, EXCLUSIVE), (0, 1, SHARED), False),
        ((0, 1, SHARED), (1, 0, EXCLUSIVE), True),
        ((0, 1, SHARED), (0, 0, EXCLUSIVE), False),
        ((1, 0, EXCLUSIVE), (1 << 40, 1, SHARED), False),
    ],
)
def test_ranges_in_one_process(
    file: Path, first: tuple[int, int, bool], second: tuple[int, int, bool], free: bool
) -> None:
    with opened(file) as one, opened(file) as two:
        assert lock_range(one, first[0], first[1], exclusive=first[2])
        assert lock_range(two, second[0], second[1], exclusive=second[2]) is free


def test_closing_another_descriptor_keeps_the_lock(file: Path) -> None:
    """What POSIX record locks get wrong, and the reason for the other kind."""
    with opened(file) as one, opened(file) as two:
        assert lock_range(one, 0, 1, exclusive=True)
        with opened(file):
            pass
        assert not lock_range(two, 0, 1, exclusive=True)


def test_lock_is_changed_in_place(file: Path) -> None:
    with opened(file) as one, opened(file) as two:
        assert lock_range(one, 0, 1, exclusive=True)
        assert lock_range(one, 0, 1, exclusive=False)
        assert lock_range(two, 0, 1, exclusive=False)
        assert not lock_range(one, 0, 1, exclusive=True)


@pytest.mark.parametrize(("theirs", "ours", "free"), [(True, True, False), (True, False, False), (False, False, True)])
def test_range_lock_vanishes_with_its_process(file: Path, theirs: bool, ours: bool, free: bool) -> None:
    with opened(file) as fd, holder(RANGE, str(file), "0", "1", str(theirs)) as process:
        assert lock_range(fd, 0, 1, exclusive=ours) is free
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock_range(fd, 0, 1, exclusive=True)


@pytest.mark.parametrize(("theirs", "ours", "free"), [(True, False, False), (False, False, True), (False, True, False)])
def test_whole_file_lock_of_a_pbs_is_met(file: Path, theirs: bool, ours: bool, free: bool) -> None:
    with opened(file) as fd, holder(WHOLE_FILE, str(file), str(theirs)):
        assert lock_range(fd, 0, 1, exclusive=ours) is free


def test_our_lock_is_met_by_a_pbs(file: Path) -> None:
    with holder(RANGE, str(file), "0", "1", "False"), opened(file) as fd:
        with pytest.raises(BlockingIOError):
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_lock_range_tells_other_errors(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        with pytest.raises(OSError):
            lock_range(fd, 0, 1, exclusive=True)  # needs a descriptor open for writing
    finally:
        os.close(fd)


def test_directory_lock_excludes_and_is_released(tmp_path: Path) -> None:
    with DirectoryLock(str(tmp_path)), pytest.raises(BlockingIOError):
        DirectoryLock(str(tmp_path))
    with DirectoryLock(str(tmp_path), exclusive=False), DirectoryLock(str(tmp_path), exclusive=False) as lock:
        lock.close()
        lock.close()


def test_directory_lock_vanishes_with_its_process(tmp_path: Path) -> None:
    with holder(DIRECTORY, str(tmp_path), "True") as process:
        with pytest.raises(BlockingIOError):
            DirectoryLock(str(tmp_path), exclusive=False)
        process.kill()
        process.wait()
        DirectoryLock(str(tmp_path)).close()


def test_directory_lock_waits_for_its_turn(tmp_path: Path) -> None:
    first = DirectoryLock(str(tmp_path))
    order: list[str] = []

    def wait() -> None:
        with DirectoryLock(str(tmp_path), wait_seconds=60):
            order.append("second")

    thread = threading.Thread(target=wait)
    thread.start()
    order.append("first")
    first.close()
    thread.join()
    assert order == ["first", "second"]


def test_failed_directory_lock_leaves_no_descriptor(tmp_path: Path) -> None:
    with DirectoryLock(str(tmp_path)):
        before = os.listdir("/proc/self/fd")
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                DirectoryLock(str(tmp_path))
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_directory_lock_needs_a_directory(file: Path) -> None:
    with pytest.raises(NotADirectoryError):
        DirectoryLock(str(file))
    with pytest.raises(FileNotFoundError):
        DirectoryLock(str(file.with_name("absent")))
