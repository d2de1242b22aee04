"""The benchmark of looking inside runs, and all programs that are there give the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.look import QUESTIONS, main

pytestmark = pytest.mark.in_memory


def test_a_small_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--files", "120", "--snapshots", "2", "--rounds", "1", "--work", str(tmp_path)]
    assert main([*arguments, "--programs", "archiver", "borg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "120 files, 2 snapshots, 1 rounds"
    for question, line in zip(QUESTIONS, lines[2:], strict=True):
        assert line.startswith(question)
    before = sorted(tmp_path.glob("archiver/*/*"))
    assert main([*arguments, "--programs", "archiver", "borg"]) == 0  # asked again, without another backup
    assert sorted(tmp_path.glob("archiver/*/*")) == before
