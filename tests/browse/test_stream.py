from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archiver.browse.snapshot import Snapshot, Tree
from archiver.browse.stream import ChunkStream, Cursor
from archiver.errors import ArchiverError, KeyProblem
from archiver.store.chunks import ChunkDamaged, ChunkReader
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig
from tests.browse.small_store import KEY, build_tree, make_store, opened
from tests.stores import chunk_files

OTHER_KEY = CryptConfig(bytes(32))


@pytest.fixture(scope="module", params=["plain", "encrypted"])
def crypt(request: pytest.FixtureRequest) -> CryptConfig | None:
    return KEY if request.param == "encrypted" else None


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, crypt: CryptConfig | None) -> Path:
    place = tmp_path_factory.mktemp("stream")
    build_tree(place / "source")
    make_store(place / "store", place / "source", crypt=crypt)
    return place / "store"


@pytest.fixture(scope="module")
def tree(store: Path, crypt: CryptConfig | None) -> Iterator[Tree]:
    with opened(store, crypt) as tree:
        yield tree


def in_order(stream: ChunkStream) -> bytes:
    return b"".join(stream.chunk(number) for number in range(len(stream.index)))


@pytest.fixture(scope="module")
def whole(tree: Tree) -> bytes:
    data = in_order(tree.content)
    assert len(tree.content.index) > 8
    return data


def test_sizes(tree: Tree, whole: bytes) -> None:
    assert tree.content.size == len(whole) == tree.content.index.size
    assert tree.archive.size == len(in_order(tree.archive))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_access_equals_reading_in_order(tree: Tree, whole: bytes, data: st.DataObject) -> None:
    """Also at, before and behind the edges of chunks and of the stream."""
    index = tree.content.index
    edges = st.sampled_from([index.start(number) for number in range(len(index))] + [index.size])
    near = st.builds(lambda edge, step: edge + step, edges, st.integers(-2, 2))
    offset = data.draw(st.one_of(near, st.integers(0, index.size + 10)))
    length = data.draw(st.one_of(st.integers(0, 5), st.integers(0, 400_000), st.just(index.size)))
    expected = whole[offset : offset + length] if offset >= 0 else b""
    assert tree.content.read_at(offset, length) == expected
    if offset >= 0:
        pieces = [bytes(piece) for piece in tree.content.pieces(offset, length)]
        assert b"".join(pieces) == expected
        assert all(pieces)


@pytest.mark.parametrize(("offset", "length"), [(-1, 10), (0, 0), (0, -5), (10, -1), (2**63, 10), (2**64, 2**64)])
def test_nothing_outside_of_the_stream(tree: Tree, offset: int, length: int) -> None:
    assert tree.content.read_at(offset, length) == b""


def test_reading_beyond_the_end(tree: Tree, whole: bytes) -> None:
    size = len(whole)
    assert tree.content.read_at(size - 3, 2**62) == whole[-3:]
    assert tree.content.read_at(size, 1) == b""
    assert b"".join(tree.content.pieces(size - 3, 2**62)) == whole[-3:]
    assert list(tree.content.pieces(size, 10)) == list(tree.content.pieces(size + 10, 10)) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300_000)), max_size=20))
@example([(False, 2**63), (True, 10)])
def test_cursor_equals_a_file(tree: Tree, whole: bytes, steps: list[tuple[bool, int]]) -> None:
    cursor, position = Cursor(tree.content), 0
    for reads, length in steps:
        if reads:
            assert cursor.read(length) == whole[position : position + length]
            position = min(position + length, max(position, len(whole)))
        else:
            cursor.skip(length)
            position += length


def test_few_chunks_are_read_twice(store: Path, crypt: CryptConfig | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small steps forward read each chunk once, and one that is repeated (a hole) not again."""
    read: list[bytes] = []
    original = ChunkReader.read

    def count(self: ChunkReader, digest: bytes, size: int, *, encrypted: bool) -> object:
        read.append(digest)
        return original(self, digest, size, encrypted=encrypted)

    with opened(store, crypt) as tree:
        monkeypatch.setattr(ChunkReader, "read", count)
        position = 0
        while piece := tree.content.read_at(position, 1000):
            position += len(piece)
        index = tree.content.index
        digests = [index.digest(number) for number in range(len(index))]
        assert len(read) == len(set(digests)) < len(digests) and set(read) == set(digests)


def test_kept_chunks_are_not_changed_by_later_ones(store: Path, crypt: CryptConfig | None, whole: bytes) -> None:
    """The reader's buffer is used again; what a stream handed out must not be."""
    with opened(store, crypt) as tree:
        index = tree.content.index
        pieces = [memoryview(tree.content.chunk(number)) for number in range(len(index))]
        assert b"".join(pieces) == whole


# Chunks that are not what the index says.


def swap_in(file: Path, other: Path) -> None:
    file.write_bytes(other.read_bytes())


def flip(file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[random.Random(len(data)).randrange(len(data))] ^= 4
    file.write_bytes(data)


def cut(file: Path, other: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def lengthen(file: Path, other: Path) -> None:
    with file.open("ab") as end:
        end.write(b"\0")


def empty(file: Path, other: Path) -> None:
    os.truncate(file, 0)


def zeros(file: Path, other: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def remove(file: Path, other: Path) -> None:
    file.unlink()


def link(file: Path, other: Path) -> None:
    file.unlink()
    file.symlink_to(other)


def link_to_itself_elsewhere(file: Path, other: Path) -> None:
    """The right bytes, but not a file of the store."""
    moved = file.with_name("moved")
    file.rename(moved)
    file.symlink_to(moved)


def directory(file: Path, other: Path) -> None:
    file.unlink()
    file.mkdir()


def fifo(file: Path, other: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def other_contents(file: Path, other: Path) -> None:
    """A valid blob of the same length."""
    file.write_bytes(blob.encode(os.urandom(100_000)))


def of_another_key(file: Path, other: Path) -> None:
    file.write_bytes(blob.encode(b"x" * 100_000, OTHER_KEY, bytes(16)))


TRICKS: list[Callable[[Path, Path], None]] = [
    swap_in, flip, cut, lengthen, empty, zeros, remove, link, link_to_itself_elsewhere, directory, fifo,
    other_contents, of_another_key,
]  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_wrong_chunk_is_never_returned(
    store: Path, crypt: CryptConfig | None, whole: bytes, tmp_path: Path, trick: Callable[[Path, Path], None]
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy, symlinks=True)
    with opened(copy, crypt) as tree:
        index = tree.content.index
        files = {file.name: file for file in chunk_files(copy)}
        numbers = range(1, len(index), 3)
        wrong = {index.digest(number) for number in numbers}
        rest = [digest for digest in {index.digest(number) for number in range(len(index))} if digest not in wrong]
        for digest in wrong:
            trick(files[digest.hex()], files[rest[0].hex()])
        for number in range(len(index)):
            start, end = index.start(number), index.end(number)
            if index.digest(number) not in wrong:
                assert tree.content.chunk(number) == whole[start:end]
                continue
            for read in (
                lambda start=start, end=end: tree.content.read_at(start, end - start),
                lambda start=start: tree.content.read_at(start - 1, 3),
                lambda start=start: list(tree.content.pieces(start, 1)),
                lambda number=number: tree.content.chunk(number),
            ):
                with pytest.raises(ChunkDamaged) as caught:
                    read()
                assert caught.value.digest in wrong  # chunks of zeros are there several times
                assert caught.value.exit_code == 20


def test_index_that_tells_another_size(tree: Tree) -> None:
    """The length of a chunk is part of what is checked."""
    index = tree.content.index
    reader = tree.snapshot.store.reader(tree.snapshot.crypt)
    encrypted = tree.snapshot.crypt is not None
    size = index.end(0) - index.start(0)
    assert len(reader.read(index.digest(0), size, encrypted=encrypted)) == size
    for wrong in (size - 1, size + 1, 0, 16 << 20, (16 << 20) + 1, 2**63):
        with pytest.raises(ChunkDamaged):
            reader.read(index.digest(0), wrong, encrypted=encrypted)
    with pytest.raises(ChunkDamaged):
        reader.read(index.digest(0), size, encrypted=not encrypted)


# Keys.


@pytest.mark.parametrize("given_key", [None, OTHER_KEY])
def test_encrypted_chunks_without_the_key(tmp_path: Path, given_key: CryptConfig | None) -> None:
    build_tree(tmp_path / "source")
    make_store(tmp_path / "store", tmp_path / "source", crypt=KEY)
    with pytest.raises(KeyProblem) as caught, opened(tmp_path / "store", given_key):
        pass
    assert caught.value.exit_code == 12
    with Store.open(tmp_path / "store") as store:
        snapshot = Snapshot(store, store.find("latest", ""), KEY)
        file = snapshot.archive(None).files[0]
        index = snapshot.index(file)
        reader = ChunkReader(store.layout, given_key)
        error: type[ArchiverError] = KeyProblem if given_key is None else ChunkDamaged
        with pytest.raises(error, match="is encrypted" if given_key is None else "or the key is another one"):
            reader.read(index.digest(0), index.end(0), encrypted=True)
