"""The benchmark of tapes runs to its end, and tells what it found."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tape import main


def test_a_small_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "8", "--rounds", "1", "--work", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "cp and sync" in out and "tape backup" in out and "restore one snapshot" in out and "share of cp" in out
