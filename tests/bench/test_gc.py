"""The benchmark of garbage collections runs, finds what is to be found and tells of it."""

from __future__ import annotations

import pytest

from bench.gc import main


def test_a_small_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_DB_DIR", "/nowhere")
    assert main(["--chunks", "3000", "--snapshots", "5", "--references", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3000 chunks, 5 snapshots of 1000 references")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "du, every snapshot and group",
        "plan, one snapshot removed",
        "plan, again",
        "plan, to list all shards",
    ]
    assert all(" 500 unused chunks" in line for line in lines[2:4])
