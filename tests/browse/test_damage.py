from __future__ import annotations

from pathlib import Path

import pytest

from archiver.backup.run import Mode
from archiver.browse import damage as module
from archiver.browse.damage import damaged_files
from archiver.browse.snapshot import Tree
from tests.browse.small_store import build_tree, make_store, opened
from tests.stores import chunk_files

pytestmark = pytest.mark.in_memory

MODES: list[Mode] = ["data", "legacy"]
ROOM = 1 << 20  # characters


@pytest.fixture
def places(tmp_path: Path, mode: Mode) -> tuple[Path, dict[str, tuple[int, int]]]:
    """(store, where the contents of each file are in the content stream, found by looking for them)."""
    contents = build_tree(tmp_path / "source")
    make_store(tmp_path / "store", tmp_path / "source", mode=mode)
    with opened(tmp_path / "store") as tree:
        whole = tree.content.read_at(0, tree.content.size)
    places = {}
    for name, data in contents.items():
        if len(data) > 8 and name != b"dir/hard":
            start = whole.index(data)
            assert whole.count(data[:1000]) == 1 or name == b"sparse"
            places["/" + name.decode()] = (start, start + len(data))
    return tmp_path / "store", places


def named(tree: Tree, ranges: list[tuple[int, int]], room: int = ROOM) -> list[list[str]]:
    return [[file.path for file in files] for files in damaged_files(tree, ranges, room)]


def found(tree: Tree, *ranges: tuple[int, int]) -> set[str]:
    """Those of the larger files."""
    lists = named(tree, list(ranges))
    assert len(lists) == len(ranges)
    assert all(len(files) == len(set(files)) for files in lists)
    files = {name for files in lists for name in files}
    return {name for name in files if name.encode("utf-8", "surrogateescape").isascii() and len(name) < 100}


@pytest.mark.parametrize("mode", MODES)
def test_files_of_every_chunk(places: tuple[Path, dict[str, tuple[int, int]]], mode: Mode) -> None:
    header = 16 if mode == "data" else 0  # a payload stream has one in front of each file
    small = {"/empty", "/dir/sub/d"}
    with opened(places[0]) as tree:
        index = tree.content.index
        several = 0
        for number in range(len(index)):
            start, end = index.start(number), index.end(number)
            expected = {name for name, (a, b) in places[1].items() if a - header < end and start < b}
            assert found(tree, (start, end)) - small == expected
            several += len(expected) > 1
        assert several > 1
        assert found(tree, (0, index.size)) >= places[1].keys()
        assert found(tree) == set()


@pytest.mark.parametrize("mode", MODES)
def test_edges(places: tuple[Path, dict[str, tuple[int, int]]], mode: Mode) -> None:
    start, end = places[1]["/dir/b"]
    with opened(places[0]) as tree:
        for damage, hit in [
            ((start, start + 1), True),
            ((end - 1, end), True),
            ((start + 5, start + 6), True),
            ((end, end + 1), False),
            ((start - 1, start), mode == "data"),
            ((start - 16, start - 15), mode == "data"),
            ((start - 17, start - 16), False),
        ]:
            assert ("/dir/b" in found(tree, damage)) is hit, damage


@pytest.mark.parametrize("mode", MODES)
def test_several_ranges(places: tuple[Path, dict[str, tuple[int, int]]], mode: Mode) -> None:
    chosen = ["/many/003", "/dir/b", "/z", "/many/017", "/a"]
    ranges = sorted((places[1][name][0] + 3, places[1][name][0] + 5) for name in chosen)
    with opened(places[0]) as tree:
        assert found(tree, *ranges) == set(chosen)
        in_order = sorted(chosen, key=lambda name: places[1][name][0])
        assert named(tree, ranges) == [[name] for name in in_order]
        start, end = places[1]["/z"]
        assert named(tree, [(start, start + 9), (start + 9, end)]) == [["/z"], ["/z"]]
        (file,), (rest,) = damaged_files(tree, [(start - 5, start + 9), (start + 9, end)], ROOM)
        assert (file.start, file.end, rest.start, rest.end) == (0, 9, 9, end - start)


@pytest.mark.parametrize("mode", MODES)
def test_long_lists_are_cut(
    places: tuple[Path, dict[str, tuple[int, int]]], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FILES_AT_MOST", 7)
    with opened(places[0]) as tree:
        (files,) = named(tree, [(0, tree.content.size)])
        (fewer,) = named(tree, [(0, tree.content.size)], len(files[0]) + 1)
    assert len(files) == 8 and files[-1] == "(and more)"
    assert fewer == [*files[:2], "(and more)"]


@pytest.mark.parametrize("mode", MODES)
def test_names_that_cannot_be_read(places: tuple[Path, dict[str, tuple[int, int]]], mode: Mode) -> None:
    """The last words say from where on."""
    with opened(places[0]) as tree:
        index = tree.archive.index
        last = index.digest(len(index) - 1).hex()
        (file,) = [file for file in chunk_files(places[0]) if file.name == last]
        file.unlink()
        (files,) = named(tree, [(0, 0)])
        assert len(files) == 1 and files[0].startswith("(everything after ")
        for file in chunk_files(places[0]):
            file.unlink()
        assert named(tree, [(0, 0)])[0][-1] == "(everything after /)"
