"""A fresh copy of the golden datastore for every test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.golden_store import unpack, write_key
from tests.trees import remove_tree


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return unpack(tmp_path)


@pytest.fixture
def keyfile(tmp_path: Path) -> Path:
    return write_key(tmp_path / "key.json")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "out"
    yield place
    if place.is_dir():
        remove_tree(place)
