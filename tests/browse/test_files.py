from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.run import Mode
from archiver.browse.files import contents, entries_below, listing, names_below, size_below, sizes_below
from archiver.browse.snapshot import Snapshot, Tree
from archiver.browse.view import ArchiveView, RecordedView, open_view
from archiver.errors import Damaged, NotFound, UsageError
from archiver.store.chunks import ChunkDamaged
from archiver.store.store import Store
from tests.browse.small_store import ODD, build_tree, make_store, opened
from tests.hostile.build import corpus
from tests.restore.planted import plant
from tests.source.visiting import found
from tests.stores import chunk_files


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files") / "source"
    build_tree(root)
    return root


@pytest.fixture(scope="module")
def expected(source: Path) -> dict[bytes, bytes]:
    """Contents by path."""
    root = os.fsencode(source)
    return {path: Path(os.fsdecode(root + path)).read_bytes() for path in found(source) if is_file(root + path)}


def is_file(path: bytes) -> bool:
    return os.path.isfile(path) and not os.path.islink(path)


@pytest.fixture(scope="module", params=["data", "legacy"])
def tree(source: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Tree]:
    path = tmp_path_factory.mktemp("store") / "store"
    mode: Mode = request.param
    make_store(path, source, mode=mode)
    with opened(path) as tree:
        yield tree


def listed(tree: Tree, path: bytes, *, recursive: bool = False) -> list[tuple[bytes, bytes]]:
    """As both the catalog and the archive have it."""
    views: list[Any] = [ArchiveView(tree), open_view(tree.snapshot, tree.files)]
    assert isinstance(views[1], RecordedView)
    found = []
    for view in views:
        try:
            found.append([(entry.path, entry.shown) for entry in listing(view, path, recursive=recursive)])
        except NotFound:
            found.append([])
            last = view is views[-1]
            assert found[0] == []
            if last:
                raise
            continue
        names = list(names_below(view, path, recursive=recursive))
        assert [(top + above + name, above + name) for top, above, those in names for name in those] == found[-1]
        blocks = list(entries_below(view, path, recursive=recursive))
        assert [
            (top + above + entry.name, above + entry.name) for top, above, those in blocks for entry in those
        ] == found[-1]
        assert [entry for block in blocks for entry in block.those] == [
            view.entry(entry.node) for entry in listing(view, path, recursive=recursive)
        ]
    assert found[0] == found[1]
    return found[0]


# Listing.


@pytest.mark.parametrize("path", [b"", b"/", b".", b"./", b"//", b"/./.", b".//./"])
def test_ways_to_name_the_root(tree: Tree, source: Path, path: bytes) -> None:
    names = sorted(os.listdir(os.fsencode(source)))
    assert listed(tree, path) == [(b"/" + name, name) for name in names]


@pytest.mark.parametrize("path", [b"dir", b"/dir", b"dir/", b"./dir", b"//dir//", b"/dir/.", b"./dir/./"])
def test_ways_to_name_a_directory(tree: Tree, source: Path, path: bytes) -> None:
    names = sorted(os.listdir(os.fsencode(source / "dir")))
    assert listed(tree, path) == [(b"/dir/" + name, name) for name in names]


def test_everything_below(tree: Tree, source: Path) -> None:
    assert [path for path, _ in listed(tree, b"/", recursive=True)] == found(source)
    inside = [path for path in found(source) if path.startswith(b"/dir/")]
    assert listed(tree, b"dir", recursive=True) == [(path, path[len(b"/dir/") :]) for path in inside]


def test_huge_directory_takes_little_memory(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(10_000):
        (source / f"{number:05}").symlink_to("x")
    make_store(tmp_path / "store", source)
    with opened(tmp_path / "store") as tree:
        tracemalloc.start()
        try:
            assert sum(1 for _ in listing(ArchiveView(tree), b"/", recursive=True)) == 10_000
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


def test_empty_directory(tree: Tree) -> None:
    assert listed(tree, b"none") == listed(tree, b"none", recursive=True) == []


@pytest.mark.parametrize("name", [b"a", b"dir/b", b"dir/hard", b"link", b"fifo", ODD, b"dir/" + b"n" * 255])
def test_what_is_no_directory_is_listed_itself(tree: Tree, name: bytes) -> None:
    for recursive in (False, True):
        assert listed(tree, b"/" + name, recursive=recursive) == [(b"/" + name, name.rpartition(b"/")[2])]


@pytest.mark.parametrize(
    "path",
    [
        b"absent",
        b"dir/absent",
        b"a/b",
        b"a/.",
        b"..",
        b"../source",
        b"dir/..",
        b"/dir/../dir",
        b"link/b",
        b"DIR",
        b"di",
        b"dir\0",
        b"\xff",
        b"x" * 5000,
        b"x/" * 5000,
        b"...",
        b"*",
    ],
)
def test_what_is_not_there(tree: Tree, path: bytes) -> None:
    if path == b"a/.":
        assert listed(tree, path) == [(b"/a", b"a")]  # a "." says nothing
        return
    with pytest.raises(NotFound, match="there is no"):
        listed(tree, path)
    with pytest.raises(NotFound, match="there is no"):
        list(contents(tree, path))


@pytest.mark.parametrize("path", [b"/", b"dir", b"many", b"none", b"dir/sub", b"a", b"fifo", b"link"])
def test_bytes_below(tree: Tree, expected: dict[bytes, bytes], path: bytes) -> None:
    prefix = b"/" + path.strip(b"/")
    below = prefix.rstrip(b"/") + b"/"
    total = sum(
        len(data)
        for name, data in expected.items()
        if (name == prefix or name.startswith(below)) and name != b"/dir/hard"  # a further name has no contents
    )
    archive, recorded = ArchiveView(tree), open_view(tree.snapshot, tree.files)
    assert isinstance(recorded, RecordedView)
    assert size_below(archive, archive.find(path)) == size_below(recorded, recorded.find(path)) == total
    views: tuple[Any, Any] = archive, recorded
    for view in views:
        directories = [one.node for one in listing(view, path, recursive=True) if one.node.kind == "dir"]
        assert list(sizes_below(view, path)) == [size_below(view, node) for node in directories]


def test_bytes_below_each_of_many_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each directory is listed once: of 10,000 in each other, all would be listed for each one."""
    archive = corpus()["v2 nesting of 10,000 directories"]
    Store.create(tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        snapshot = Snapshot(store, plant(store, 1, archive.archive, archive.payload))
        view: Any = ArchiveView(snapshot.tree(snapshot.archive(None)))
        entries, count = view.entries, 0

        def counted(node: object) -> object:
            nonlocal count
            count += 1
            return entries(node)

        monkeypatch.setattr(view, "entries", counted)
        assert list(sizes_below(view, b"/")) == [4] * 10_000  # there is one file, at the bottom
        assert count == 10_001


# Contents.


def test_contents_of_every_file(tree: Tree, expected: dict[bytes, bytes]) -> None:
    assert {b"/empty", b"/sparse", b"/dir/hard", b"/a", b"/" + ODD} < expected.keys()
    for path, data in expected.items():
        assert b"".join(contents(tree, path)) == data, path


@pytest.mark.parametrize("path", [b"", b"/", b"dir", b"none", b"link", b"fifo", b"dir/sub/"])
def test_contents_of_what_is_no_file(tree: Tree, path: bytes) -> None:
    with pytest.raises(UsageError, match="is not a regular file"):
        list(contents(tree, path))


def test_contents_come_in_pieces(tree: Tree, expected: dict[bytes, bytes]) -> None:
    """A chunk at most each, so that a large file takes no memory."""
    pieces = [bytes(piece) for piece in contents(tree, b"sparse")]
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= 4 * (64 << 10)
    assert b"".join(pieces) == expected[b"/sparse"]


# Damage.


@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_damaged_contents_are_never_handed_out(source: Path, tmp_path: Path, mode: Mode) -> None:
    expected = (source / "a").read_bytes()
    make_store(tmp_path / "store", source, mode=mode)
    with opened(tmp_path / "store") as tree:
        node = tree.accessor().open_path(b"a")
        assert node is not None
        _, start, size = tree.accessor().content(node)
        index = tree.content.index
        broken = index.find(start + size // 2)
        (file,) = [file for file in chunk_files(tmp_path / "store") if file.name == index.digest(broken).hex()]
        file.write_bytes(file.read_bytes()[:-1] + b"\0")
        got = b""
        with pytest.raises(ChunkDamaged, match=index.digest(broken).hex()):
            for piece in contents(tree, b"a"):
                got += piece
        assert got == expected[: index.start(broken) - start]
        assert b"".join(contents(tree, b"z")) == (source / "z").read_bytes()
        file.unlink()
        with pytest.raises(ChunkDamaged, match="is missing"):
            list(contents(tree, b"dir/hard"))


def test_damaged_tables_are_told(source: Path, tmp_path: Path) -> None:
    """Bytes that are stored well and are no archive: the error names archive and snapshot."""
    make_store(tmp_path / "store", source)
    with opened(tmp_path / "store") as tree:
        whole = tree.archive.read_at(0, tree.archive.size)
        for at in (len(whole) - 1, len(whole) - 20, len(whole) - 60):
            wrong = bytearray(whole)
            wrong[at] ^= 0xFF
            tree.archive.read_at = lambda offset, length, data=bytes(wrong): data[offset : offset + length]  # type: ignore
            with pytest.raises(Damaged, match=r"source\.pxar of host/test/.* is damaged"):
                list(listing(ArchiveView(tree), b"/", recursive=True))
