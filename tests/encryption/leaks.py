"""Looks for words in files, in every form in which a program may have left them there."""

from __future__ import annotations

import base64
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import zstandard

_ZSTD = bytes.fromhex("28b52ffd")
_ZLIB = tuple(bytes((0x78, level)) for level in (0x01, 0x5E, 0x9C, 0xDA))
_LARGEST = 64 << 20  # bytes that a frame is unpacked to
_DEPTH = 3  # frames in frames


def forms(word: bytes) -> dict[str, bytes]:
    """The word as it may be written; of base64 what does not depend on the bytes around it, for each place in three."""
    text = word.decode("latin-1")
    found = {
        "plain": word,
        "utf-16-le": text.encode("utf-16-le"),
        "utf-16-be": text.encode("utf-16-be"),
        "hex": word.hex().encode(),
        "HEX": word.hex().upper().encode(),
        "reversed": word[::-1],
    }
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + word + bytes(3))
        inner = encoded[-(-before * 8 // 6) : (before + len(word)) * 8 // 6]
        found[f"base64 +{before}"] = inner
        found[f"base64url +{before}"] = inner.translate(bytes.maketrans(b"+/", b"-_"))
    return found


class Scanner:
    """``words``: what to look for, by names of one's own."""

    def __init__(self, words: Mapping[str, bytes]) -> None:
        self._patterns = [(name, form, data) for name, word in words.items() for form, data in forms(word).items()]

    def data(self, data: bytes, depth: int = _DEPTH) -> Iterator[tuple[str, str]]:
        """(name of the word, form) of all that is found; forms in a compressed frame begin with its kind."""
        for name, form, pattern in self._patterns:
            if pattern in data:
                yield name, form
        if not depth:
            return
        for kind, magics, unpack in (("zstd", (_ZSTD,), _unzstd), ("zlib", _ZLIB, _unzlib)):
            for inner in _frames(data, magics, unpack):
                for name, form in self.data(inner, depth - 1):
                    yield name, f"{kind} {form}"

    def file(self, path: Path | str) -> Iterator[tuple[str, str]]:
        with open(path, "rb") as file:
            yield from self.data(file.read())

    def tree(self, root: Path) -> Iterator[tuple[Path, str, str]]:
        """(path, name of the word, form) for everything below ``root``: names, targets of links, attributes, contents
        of files. What is removed meanwhile is passed over."""
        for directory, directories, files in os.walk(root):
            for name in (*directories, *files):
                with suppress(FileNotFoundError):
                    yield from self._entry(Path(directory, name))

    def _entry(self, path: Path) -> Iterator[tuple[Path, str, str]]:
        shown = [os.fsencode(path.name)]
        if path.is_symlink():
            shown.append(os.fsencode(os.readlink(path)))
        shown += [os.fsencode(key) + os.getxattr(path, key) for key in os.listxattr(path, follow_symlinks=False)]
        for data in shown:
            yield from ((path, word, f"name {form}") for word, form in self.data(data))
        if path.is_file() and not path.is_symlink():
            yield from ((path, word, form) for word, form in self.file(path))

    def trees(self, roots: Iterable[Path]) -> list[tuple[Path, str, str]]:
        return [hit for root in roots for hit in self.tree(root)]

    def nameless(self, roots: Iterable[Path]) -> Iterator[tuple[str, str, str]]:
        """The same for files without a name that this process has open: (where it was, name of the word, form)."""
        for place, data in nameless_files(roots):
            yield from ((place, word, form) for word, form in self.data(data))


def nameless_files(roots: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """(where it was, contents) of the files without a name that this process has open and that were made below
    ``roots``. Other threads go on: what is behind a number may be another thing, or nothing, when it is opened."""
    starts = tuple(f"{root}/" for root in roots)
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        try:
            place = os.readlink(path)
            if not (place.startswith(starts) and place.endswith(" (deleted)")):
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and not status.st_nlink:
                with open(fd, "rb", closefd=False) as file:
                    yield place, file.read()
        finally:
            os.close(fd)


def _frames(data: bytes, magics: Iterable[bytes], unpack: Callable[[memoryview], bytes]) -> Iterator[bytes]:
    view = memoryview(data)
    for magic in magics:
        at = data.find(magic)
        while at >= 0:
            inner = unpack(view[at:])
            if inner:
                yield inner
            at = data.find(magic, at + 1)


def _unzstd(data: memoryview) -> bytes:
    """As much of a frame as can be unpacked."""
    found = bytearray()
    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            while len(found) < _LARGEST and (block := reader.read(1 << 16)):
                found += block
    except zstandard.ZstdError:
        pass
    return bytes(found)


def _unzlib(data: memoryview) -> bytes:
    unpacker, found = zlib.decompressobj(), bytearray()
    try:
        for start in range(0, min(len(data), _LARGEST), 1 << 12):
            found += unpacker.decompress(data[start : start + (1 << 12)], _LARGEST)
            if unpacker.eof:
                break
    except zlib.error:
        pass
    return bytes(found)
