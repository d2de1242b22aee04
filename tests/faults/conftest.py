"""One house for all tests of a process: each of them gets a copy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.lab import House


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("faults")
        for name in ("CACHE", "CONFIG", "DATA", "STATE"):
            patch.setenv(f"XDG_{name}_HOME", str(place / ".xdg" / name.lower()))
        os.umask(0o022)
        yield House.build(place / "house")


@pytest.fixture
def house(built: House, tmp_path: Path) -> House:
    return built.copy(tmp_path / "house")
