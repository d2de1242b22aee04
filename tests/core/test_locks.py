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

from archiver.core.locks import DirectoryLock, lock_range, replaced_file_lock

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


def test_directory_lock_follows_only_when_it_may(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with DirectoryLock(str(tmp_path / "link")) as lock:
        assert lock.is_at(str(tmp_path / "real"))
    with pytest.raises(OSError, match="Not a directory"):
        DirectoryLock(str(tmp_path / "link"), follow=False)


def test_locked_directory_that_is_elsewhere_by_now(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with DirectoryLock(str(place)) as lock:
        assert lock.is_at(str(place))
        place.rename(tmp_path / "moved")
        assert not lock.is_at(str(place)) and lock.is_at(str(tmp_path / "moved"))
        place.mkdir()
        assert not lock.is_at(str(place))
        (tmp_path / "moved").rmdir()
        assert not lock.is_at(str(tmp_path / "moved"))


def test_file_that_is_replaced_under_its_lock(tmp_path: Path) -> None:
    """Each of several threads finds what the one before has written."""
    file = tmp_path / "file"
    file.write_text("0")

    def work(number: int) -> None:
        for _ in range(10):
            with replaced_file_lock(str(file), 60):
                (tmp_path / f"new-{number}").write_text(str(int(file.read_text()) + 1))
                (tmp_path / f"new-{number}").rename(file)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() == "30"


def test_file_lock_gives_up(tmp_path: Path, file: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with replaced_file_lock(str(file), 0) as status:
        assert os.path.samestat(status, file.stat())
        with pytest.raises(BlockingIOError), replaced_file_lock(str(file), 0.1):
            pass
    for other in (tmp_path, tmp_path / "link"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(file)
        with pytest.raises(OSError), replaced_file_lock(str(other), 0):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
