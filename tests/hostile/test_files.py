"""Every hostile index, blob, manifest and catalog is refused with a FormatError or gives a value, within bounds."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

from formats.blob import BlobDecoder, BlobReader
from formats.catalog import CatalogReader
from formats.crypt import CryptConfig
from formats.errors import FormatError
from formats.index import decode_index
from formats.manifest import Manifest
from tests.hostile.build import (
    KEY,
    HostileFile,
    hostile_blobs,
    hostile_catalogs,
    hostile_indexes,
    hostile_manifests,
)
from tests.hostile.limits import outcome

MANY = 300_000  # catalog entries looked at; one of the catalogs has 2^40


def _check(files: dict[str, HostileFile], name: str, read: Callable[[bytes], Any]) -> Any:
    file = files[name]
    got = outcome(lambda: read(file.data))
    if file.refused:
        assert isinstance(got, FormatError), str(got)[:200]
    if "valid" in name.split():
        assert not isinstance(got, FormatError), got
    return got


INDEXES = hostile_indexes()
BLOBS = hostile_blobs()
MANIFESTS = hostile_manifests()
CATALOGS = hostile_catalogs()


def _read_index(data: bytes) -> Any:
    index = decode_index(data)
    assert 0 < len(index) <= len(data) // 32
    for number in (0, len(index) - 1):
        assert index.start(number) < index.end(number) <= index.size
        assert len(index.digest(number)) == 32
        assert index.find(index.start(number)) == number
    assert int(index.sizes().sum()) == index.size
    return index.csum()


@pytest.mark.parametrize("name", INDEXES)
def test_hostile_index(name: str) -> None:
    _check(INDEXES, name, _read_index)


@pytest.mark.parametrize("name", BLOBS)
def test_hostile_blob(name: str) -> None:
    limit = 1 << 20

    def read(data: bytes) -> bytes:
        return bytes(BlobDecoder(CryptConfig(KEY)).decode(data, max_size=limit))

    got = _check(BLOBS, name, read)
    assert isinstance(got, FormatError) or len(got) <= limit
    keyless = outcome(lambda: BlobDecoder(None).decode(BLOBS[name].data, max_size=limit))
    assert isinstance(keyless, FormatError) or "encrypted" not in name


@pytest.mark.parametrize("name", BLOBS)
def test_hostile_blob_as_a_stream(name: str) -> None:
    def read(data: bytes) -> int:
        return sum(len(piece) for piece in islice(BlobReader(io.BytesIO(data), CryptConfig(KEY)), 100))

    file = BLOBS[name]
    got = outcome(lambda: read(file.data))
    if file.refused and "bomb" not in name:
        assert isinstance(got, FormatError), got


@pytest.mark.parametrize("name", MANIFESTS)
def test_hostile_manifest(name: str) -> None:
    def read(data: bytes) -> Manifest:
        manifest = Manifest.decode(data)
        again = Manifest.decode(manifest.encode())
        assert again == manifest
        manifest.canonical()
        return manifest

    _check(MANIFESTS, name, read)


@pytest.mark.parametrize("name", CATALOGS)
def test_hostile_catalog(name: str) -> None:
    def read(data: bytes) -> int:
        reader = CatalogReader(lambda offset, length: data[offset : offset + length], len(data))
        count = 0
        for path, entry in islice(reader.walk(), MANY):
            count += 1
            assert entry.name not in (b"", b".", b"..") and b"/" not in entry.name and b"\0" not in entry.name
            assert not {b".", b".."} & set(path.split(b"/"))
        return count

    _check(CATALOGS, name, read)
