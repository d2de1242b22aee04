"""What a verification leaves behind for the runs after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.random_trees import build_plain
from tests.stores import chunk_files, damage, new_chunks, restored_differences, save


@pytest.mark.parametrize("crypt", [None, CryptConfig(bytes(range(32)))], ids=["plain", "encrypted"])
def test_backup_mends_what_verify_found(tmp_path: Path, crypt: CryptConfig | None) -> None:
    """A chunk that is known to be damaged is no longer trusted by its length."""
    path, source = tmp_path / "store", tmp_path / "source"
    Store.create(path)
    build_plain(source, 1, files=50, max_size=40_000)
    first = save(path, source, crypt=crypt)
    bad = chunk_files(path)[0]
    data = bytearray(bad.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)
    assert {error.chunk for error in damage(path, crypt)} == {bad.name}
    again = save(path, source, crypt=crypt)
    assert new_chunks(again) == 1
    assert damage(path, crypt) == []
    assert restored_differences(path, first.snapshot, source, tmp_path / "out", crypt) == []
