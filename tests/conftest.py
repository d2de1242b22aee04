"""Every test runs without the user's own stores, keys and settings."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """A shell has what runs in the background ignore Ctrl-C, and so would the processes that tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
