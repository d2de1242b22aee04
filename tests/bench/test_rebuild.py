"""The benchmark of rebuilds runs."""

from __future__ import annotations

import pytest

from bench.rebuild import main


def test_a_small_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--snapshots", "3", "--references", "500"]) == 0
    assert capsys.readouterr().out.startswith("1500 references in 3 snapshots: ")
