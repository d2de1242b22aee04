"""The benchmark of images runs, and compares what comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import images
from bench.peers import Archiver


def test_a_small_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(images, "programs", lambda: [Archiver()])
    assert images.main(["--size", "2", "--rounds", "1", "--directory", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("1 rounds") and [line.split()[:2] for line in lines[1:]] == [
        ["first", "archiver"],
        ["again", "archiver"],
    ]
    monkeypatch.setattr(images, "restore", lambda program, place: ["echo", "other bytes"])
    with pytest.raises(SystemExit, match="something else"):
        images.main(["--size", "2", "--rounds", "1", "--directory", str(tmp_path)])
