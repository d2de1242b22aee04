"""Goodbye tables that lie, and tables that lead in circles (spec pxar.md 7)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.hostile.corpus import ACCESSOR, BOTH, DECODER, EITHER, Corpus
from tests.hostile.writer import GOODBYE, MAX, Edit, name_hash, words


def _edited(archives: Corpus, note: str, refused_by: str, edit: Edit) -> None:
    """A directory ``d`` with two files and a directory, its table changed; the root's table is right."""
    for w in archives.writers(f"goodbye: {note}", refused_by):
        w.file(b"before")
        w.directory(b"d")
        w.file(b"f")
        w.directory(b"e")
        w.file(b"inner")
        w.close()
        w.file(b"g")
        w.close(edit)
        w.file(b"z")


def _set(index: int, part: int, value: int) -> Edit:
    def edit(records: list[list[int]]) -> list[list[int]]:
        records[index][part] = value
        return records

    return edit


def _shift(index: int, part: int, by: int) -> Edit:
    return lambda records: _set(index, part, records[index][part] + by)(records)


def tables(archives: Corpus) -> None:
    _edited(archives, "wrong tail marker", BOTH, _set(-1, 0, 0))
    for size in (0, 16, 24, 25, 40, 2**32, 2**63, MAX):
        _edited(archives, f"tail size {size:#x}", BOTH, _set(-1, 2, size))
    for by in (-24, 24, 1):
        _edited(archives, f"tail size off by {by}", BOTH, _shift(-1, 2, by))
        _edited(archives, f"tail offset off by {by}", BOTH, _shift(-1, 1, by))
    for offset in (0, 2**63, MAX):
        _edited(archives, f"tail offset {offset:#x}", BOTH, _set(-1, 1, offset))
    for offset in (0, 1, 2**32, 2**63, MAX):
        _edited(archives, f"child offset {offset:#x}", BOTH, _set(0, 1, offset))
    for by in (-16, -1, 1, 16):
        _edited(archives, f"child offset off by {by}", BOTH, _shift(0, 1, by))
    for name in (b"e", b"f"):
        kind, refused_by = ("directory", BOTH) if name == b"e" else ("file", DECODER)
        for size in (0, 1, 2**32, 2**63, MAX):
            _edited(archives, f"size {size:#x} of a {kind}", refused_by, _resize(name, partial(_constant, size)))
        for by in (-1, 1):
            _edited(archives, f"size off by {by} of a {kind}", refused_by, _resize(name, by.__add__))
    _edited(archives, "wrong hash", DECODER, _shift(0, 0, 1))
    _edited(archives, "hash of another name", DECODER, _set(0, 0, name_hash(b"elsewhere")))
    _edited(archives, "record missing, size told", DECODER, lambda records: _resized(records[1:]))
    _edited(archives, "record missing, size not told", BOTH, lambda records: records[1:])
    _edited(archives, "record twice", BOTH, lambda records: _resized([list(records[0]), *records]))
    _edited(archives, "record 10,000 times", BOTH, lambda records: _resized([records[0]] * 10_000 + records))
    _edited(archives, "no records but the tail", DECODER, lambda records: _resized(records[-1:]))
    _edited(archives, "empty", BOTH, lambda records: [])
    _edited(archives, "no tail", BOTH, lambda records: records[:-1])
    _edited(archives, "tail first", BOTH, lambda records: records[-1:] + records[:-1])
    _edited(archives, "not a search tree", EITHER, lambda records: sorted(records[:-1]) + records[-1:])
    _edited(archives, "hashes exchanged", DECODER, _exchange(0))
    _edited(archives, "offsets exchanged", DECODER, _exchange(1))
    _edited(archives, "8 bytes too many", BOTH, lambda records: [*records[:-1], [*records[-1], 0]])
    _edited(archives, "8 bytes too few", BOTH, lambda records: [*records[:-1], records[-1][:-1]])
    for w in archives.writers("goodbye: missing", BOTH):
        w.directory(b"d")
        w.file(b"f")
        w.abandon()
    for w in archives.writers("goodbye: with the root's table gone", BOTH):
        w.file(b"f")
        w.abandon()
    for w in archives.writers("goodbye: bytes behind the last", ACCESSOR):
        w.file(b"f")
        w.close()
        w.archive += bytes(100)
    for w in archives.writers("goodbye: one too many", ACCESSOR):
        w.close()
        w.item(GOODBYE, words(0xEF5EED5B753E1555, 0, 40))


def _resized(records: list[list[int]]) -> list[list[int]]:
    records[-1][2] = 16 + 24 * len(records)
    return records


def _constant(size: int, _: int) -> int:
    return size


def _resize(name: bytes, new: Callable[[int], int]) -> Edit:
    """Change the size in the record of one name."""

    def edit(records: list[list[int]]) -> list[list[int]]:
        for record in records:
            if record[0] == name_hash(name):
                record[2] = new(record[2])
        return records

    return edit


def _exchange(part: int) -> Edit:
    def edit(records: list[list[int]]) -> list[list[int]]:
        records[0][part], records[1][part] = records[1][part], records[0][part]
        return records

    return edit


def table_loops(archives: Corpus) -> None:
    """Tables that lead a reader in circles, or through one directory again and again."""
    for w in archives.writers("loop: child is the directory itself", BOTH):
        start = w.directory(b"d")
        w.file(b"f")
        here = w.position
        w.close(_set(0, 1, here - start))
    for w in archives.writers("loop: child is the parent", BOTH):
        start = w.directory(b"a")
        w.directory(b"b")
        w.file(b"f")
        here = w.position
        w.close(_set(0, 1, here - start))
    for w in archives.writers("loop: child is the root", BOTH):
        w.directory(b"a")
        w.file(b"f")
        here = w.position
        w.close(_set(0, 1, here))
    for w in archives.writers("loop: a directory that ends where its parent ends", BOTH):
        w.directory(b"a")
        start = w.directory(b"b")
        w.close()
        here = w.position
        w.close(_set(0, 2, here + 16 + 2 * 24 - start))
    for w in archives.writers("loop: a directory that ends where the root ends", BOTH):
        start = w.directory(b"b")
        w.close()
        here = w.position
        w.close(_set(0, 2, here + 16 + 2 * 24 - start))
    for w in archives.writers("loop: two names for one directory, 40 levels", BOTH):
        # at each level "b" claims to reach to the end of "a", so that a trusting reader opens a's table for it too
        levels: list[tuple[int, int]] = []
        for _ in range(40):
            b = w.directory(b"b")
            w.close()
            levels.append((b, w.directory(b"a")))
        w.close()
        for b, _a in reversed(levels):
            here = w.position
            w.close(_spanning(here - b))
    for w in archives.writers("nesting of 10,000 directories", EITHER):
        for _ in range(10_000):
            w.directory(b"d")
        w.file(b"bottom")


def _spanning(distance: int) -> Edit:
    """Let the child that starts ``distance`` before the table end where the table starts."""

    def edit(records: list[list[int]]) -> list[list[int]]:
        for record in records[:-1]:
            if record[1] == distance:
                record[2] = distance
        return records

    return edit
