"""The benchmark of forgetting a snapshot runs with every program that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.forget import main

pytestmark = pytest.mark.in_memory


def test_a_small_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(20):
        (tmp_path / f"file-{number}").write_bytes(bytes([number]) * 5000)
    main(["--data", str(tmp_path), "--snapshots", "3", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("archiver ") and " round 1: " in lines[0] and lines[0].endswith("MiB freed")
    assert any(line.startswith("archiver: ") for line in lines)
