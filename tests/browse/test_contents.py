"""Comparing contents: what is the same bytes is equal, however it comes; long holes are not gone through."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.browse.contents import are_equal
from archiver.browse.live import ZEROS, LiveNode, LiveView, walk_options
from archiver.browse.sides import live_changes
from archiver.browse.snapshot import Snapshot
from archiver.source.content import OpenFile
from archiver.store.store import Store
from formats.wire import Buffer
from tests.attributes import write_sparse
from tests.stores import make_store, save

GIB = 1 << 30

# Lengths of runs of zeros (True) and of other bytes.
contents = st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=6)


def pieces(runs: list[tuple[bool, int]], cut: int, *, holes: bool) -> Iterator[Buffer]:
    """The bytes in pieces of ``cut``; ``holes``: runs of zeros as those of holes come."""
    if holes:
        for is_zeros, length in runs:
            yield memoryview(ZEROS)[:length] if is_zeros else b"x" * length
        return
    whole = joined(runs)
    for start in range(0, len(whole), cut):
        yield memoryview(whole)[start : start + cut] if start % 3 else whole[start : start + cut]


def joined(runs: list[tuple[bool, int]]) -> bytes:
    return b"".join((b"\0" if is_zeros else b"x") * length for is_zeros, length in runs)


@given(contents, contents, st.integers(1, 60), st.integers(1, 60), st.booleans(), st.booleans())
def test_equal_bytes_are_equal(
    first: list[tuple[bool, int]], other: list[tuple[bool, int]], one: int, two: int, same: bool, holes: bool
) -> None:
    second = first if same else other
    equal = are_equal(pieces(first, one, holes=False), pieces(second, two, holes=holes))
    assert equal == (joined(first) == joined(second))


def changed(store: Path, source: Path) -> list[bytes]:
    with Store.open(store) as opened:
        snapshot = Snapshot(opened, opened.find("latest"))
        archive = snapshot.restorable()[0]

        def live() -> LiveView:
            return LiveView(str(source), walk_options(snapshot.tree(archive), b"/", []), lambda problem: None)

        return sorted(change.path for change in live_changes(snapshot, archive, b"/", live, contents=True))


def test_a_hole_of_hundreds_of_gib(tmp_path: Path) -> None:
    """It would take minutes to read."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    source.mkdir()
    write_sparse(source / "disk", 400 * GIB, {5 * GIB: b"data" * 9000, 399 * GIB: b"more"})
    (source / "usual").write_bytes(b"text" * 50_000)
    os.sync()
    save(store, source, chunk_size=4 << 20)
    assert changed(store, source) == []
    status = (source / "disk").stat()
    with (source / "disk").open("r+b") as file:
        for offset, data in ((399 * GIB + 1, b"O"), (200 * GIB, b"x")):
            before = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), data, offset)
            os.utime(source / "disk", ns=(status.st_atime_ns, status.st_mtime_ns))
            assert changed(store, source) == [b"/disk"]
            os.pwrite(file.fileno(), before, offset)
    os.utime(source / "disk", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changed(store, source) == []


def test_a_file_that_became_shorter_while_it_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    source.mkdir()
    (source / "file").write_bytes(b"text" * 50_000)
    save(store, source)
    original = LiveView.open

    def opened(view: LiveView, node: LiveNode) -> OpenFile:
        file = original(view, node)
        os.truncate(source / "file", 3000)
        return file

    monkeypatch.setattr(LiveView, "open", opened)
    assert changed(store, source) == [b"/file"]
