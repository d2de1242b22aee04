"""The benchmark of the first byte makes a store that is whole, and finds its bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.first_byte import LAST, build, main
from tests.cli.command import call
from tests.stores import damage


def test_a_small_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "store", 16 << 20)
    assert damage(tmp_path / "store") == []
    assert call("--store", tmp_path / "store", "cat", "latest", "zz").raw == LAST
    assert call("--store", tmp_path / "store", "cat", "latest", "zeros").raw == bytes(16 << 20)
    assert main(["--size", "1", "--rounds", "1"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["zz", "zeros"]
