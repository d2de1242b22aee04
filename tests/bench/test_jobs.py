"""The benchmark of a job runs, and tells what the job adds to its steps."""

from __future__ import annotations

import re

import pytest

from bench.jobs import main


def test_a_small_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--files", "20", "--runs", "1"])
    text = capsys.readouterr().out
    assert re.fullmatch(r"steps: \d+\.\d{3} s; job run adds -?\d+\.\d{3} s \(at most 0\.2 s\)\n", text)
