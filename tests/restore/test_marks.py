"""Sets of entry numbers; and what could not be restored is told once, also when it is read again."""

from __future__ import annotations

import os
import random
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from archiver.restore import attributes
from archiver.restore.marks import Marks
from formats.pxar.metadata import Metadata, Stat
from tests.stores import bring_back, make_store, save


def test_marks_from_several_threads() -> None:
    marks, count = Marks(), 4
    numbers = random.Random(1).sample(range(100_000), 4000)

    def add(part: list[int]) -> None:
        for number in part:
            marks.add(number)

    threads = [threading.Thread(target=add, args=(numbers[place::count],)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number for number in range(100_100) if number in marks} == set(numbers)


def test_marks_of_a_million_entries_are_small() -> None:
    """As many as there are files when somebody restores what belongs to others."""
    marks = Marks()
    tracemalloc.start()
    try:
        for number in range(1, 1_000_001, 8):
            marks.add(number)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 256 << 10


def test_everything_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries below a directory that cannot be made count too, else all after them would be mixed up."""
    source = tmp_path / "source"
    lost = []
    for name in ("a", "m-refused", "z"):
        (source / name).mkdir(parents=True)
        for number in range(10):
            (source / name / f"file-{number}").write_text(str(number))
            (source / name / f"link-{number}").symlink_to("nowhere")
        lost += [f"/{name}/{kind}-{number}" for kind in ("file", "link") for number in range(1, 10, 2)]
    for path in [*source.rglob("*"), source]:
        number = int(path.name[-1]) if path.name[-1].isdigit() else 0  # by which a file is known while it is written
        os.utime(path, ns=(0, number * 10**9), follow_symlinks=False)
    saved = save(make_store(tmp_path / "store"), source)
    mkdir, apply, apply_at = os.mkdir, attributes.apply, attributes.apply_at

    def refusing(path: str | bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if os.fsencode(path).endswith(b"m-refused"):
            raise PermissionError(13, "Permission denied")
        mkdir(path, mode, dir_fd=dir_fd)

    def is_odd(name: str) -> bool:
        return name[-1] in "13579"

    def half(fd: int, metadata: Metadata, **known: Any) -> list[str]:
        return ["lost"] if metadata.stat.mtime_secs % 2 else apply(fd, metadata, **known)

    def half_at(name: bytes, dir_fd: int, stat: Stat) -> list[str]:
        return ["lost"] if is_odd(name.decode()) else apply_at(name, dir_fd, stat)

    monkeypatch.setattr(os, "mkdir", refusing)
    monkeypatch.setattr(attributes, "apply", half)
    monkeypatch.setattr(attributes, "apply_at", half_at)
    result = bring_back(tmp_path / "store", saved.snapshot, tmp_path / "out")
    told = sorted((os.fsdecode(problem.path), problem.kind) for problem in result.problems)
    expected = [(path, "attribute") for path in lost if "refused" not in path]
    assert told == sorted([*expected, ("/m-refused", "not-restored")])
