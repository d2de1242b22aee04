"""The benchmark of the file catalog runs and tells what it found."""

from __future__ import annotations

import pytest

from bench.catalog import main


@pytest.mark.parametrize("options", [[], ["--encrypt"]])
def test_a_small_one_answers_every_question(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--files", "2000", "--snapshots", "60", "--rounds", "2", *options]) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "138 directories, 2000 files"
    for beginning in ("first snapshot", "a night with 1.0% changed", "60 snapshots", "all versions", "forgetting one"):
        assert sum(line.startswith(beginning) for line in lines) == 1, beginning
