"""Chunks of a large file that stay are put into the new index in parts, in order, each once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from archiver.backup import holding
from archiver.store.indexes import load_index
from tests.random_trees import noise
from tests.stores import make_store, restored_differences, save

CHUNK = 64 << 10


@pytest.mark.parametrize("at_once", [1, 3, 1 << 16])
def test_a_large_file(tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_INJECTED_AT_ONCE", at_once)
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    source.mkdir()
    (source / "large").write_bytes(noise(1, 40 * CHUNK))
    (source / "other").write_bytes(noise(2, 7 * CHUNK))
    (source / "small").write_bytes(b"before")
    digests: list[list[bytes]] = []
    for number in range(3):
        saved = save(store, source, chunk_size=CHUNK, mode="metadata")
        index = load_index(str(store / str(saved.snapshot) / "tree.ppxar.didx"))
        digests.append([index.digest(entry) for entry in range(len(index))])
        assert restored_differences(store, saved.snapshot, source, tmp_path / f"out-{number}") == []
        (source / "small").write_bytes(b"after" * (number + 1))
    for before, after in pairwise(digests):
        stayed = [digest for digest in after if digest in before]
        assert stayed == [digest for digest in before if digest in after]
        assert len(stayed) > 30 and len(after) <= len(stayed) + 2  # the start of the stream, and what has changed
