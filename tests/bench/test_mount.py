"""The benchmark of mounts runs and finds what it has made."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.mount import main
from tests.mounting import need_fuse


def test_a_small_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need_fuse()
    assert main(["--files", "1030", "--large", "3", "--directory", str(tmp_path)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.rpartition(", ")[2] for line in lines if "CPU, " in line] == [
        *("2 entries", "20 entries", "1 bytes", "1 bytes", "3 MiB", "1086 entries")
    ]
    assert lines[0].startswith("mounted: ") and lines[-1].endswith(" MiB") and list(tmp_path.iterdir()) == []
