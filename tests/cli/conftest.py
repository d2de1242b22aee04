"""A source and a store for every test that asks for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.stores import filled_store, small_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Path:
    return filled_store(tmp_path / "store", source)
