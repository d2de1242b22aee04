"""Every test runs without the user's own stores, keys and settings."""

from __future__ import annotations

import gc
import itertools
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
_ROOM = 2 << 30  # bytes that must be free there
_numbers = itertools.count()


def pytest_configure() -> None:
    """A shell has what runs in the background ignore Ctrl-C, and so would the processes that tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest is not begun last, when one processor would wait for the other one. Afterwards the garbage
    collector and forks need not look at thousands of tests again and again."""
    items.sort(key=lambda item: item.path.name != "test_static.py")
    gc.collect()
    gc.freeze()


def _is_good(memory: Path) -> bool:
    """There is room, and files may have attributes."""
    try:
        with tempfile.NamedTemporaryFile(dir=memory) as file:
            os.setxattr(file.name, "user.test", b"")
        return shutil.disk_usage(memory).free >= _ROOM
    except OSError:
        return False


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for one test. pytest's own goes through those of all tests before to find a number.

    Tests that are marked ``in_memory`` have it in memory where there is room, and for as long as they run: they write
    and sync a lot, and what they prove is the same on each file system."""
    name = f"{re.sub(r'[^A-Za-z0-9_]', '_', request.node.name)[:30]}-{next(_numbers)}"
    if request.node.get_closest_marker("in_memory") and _is_good(MEMORY):
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=MEMORY) as place:
            yield Path(place)
    else:
        path = tmp_path_factory.getbasetemp() / name
        path.mkdir(0o700)
        yield path


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ARCHIVER_* variable is set but for the size of reserves, the XDG directories are empty ones of this test, the
    umask is the usual one."""
    for name in [name for name in os.environ if name.startswith("ARCHIVER_")]:
        monkeypatch.delenv(name)
    for name in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / ".xdg" / name.lower()))
    monkeypatch.setenv("ARCHIVER_RESERVE", "64K")  # stores are copied by the thousand
    os.umask(0o022)
