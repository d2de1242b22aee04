"""What a verification leaves behind for the runs after it."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from archiver.browse import verify as verify_module
from archiver.browse.damage import damaged_files
from archiver.browse.snapshot import Snapshot, Tree
from archiver.core.events import ignore
from archiver.errors import TargetAbsent
from archiver.store.chunks import ChunkReader
from archiver.store.layout import MANIFEST, SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig
from formats.index import DynamicIndexWriter
from formats.manifest import FileInfo, Manifest
from tests.random_trees import build_plain
from tests.stores import GROUP, chunk_files, damage, every_snapshot, new_chunks, restored_differences, save


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


def test_much_damage_reads_a_tree_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = tmp_path / "store", tmp_path / "source"
    Store.create(path)
    build_plain(source, 1, files=100, max_size=80_000)
    save(path, source)
    with Store.open(path) as store:
        snapshot = Snapshot(store, store.find("latest"))
        (payload,) = [file for file in snapshot.manifest.files if ".ppxar" in file.filename]
        index = snapshot.index(payload)
    chunks = [index.digest(number).hex() for number in range(len(index))]
    for name in chunks:
        (path / ".chunks" / name[:4] / name).unlink()
    calls: list[int] = []

    def counted(tree: Tree, content: list[tuple[int, int]], room: int) -> list[list[str]]:
        calls.append(len(content))
        return damaged_files(tree, content, room)

    monkeypatch.setattr(verify_module, "damaged_files", counted)
    assert [error.chunk for error in damage(path)] == chunks
    assert calls == [len(chunks)] and len(chunks) > 5
    monkeypatch.setattr(verify_module, "_ERRORS_KEPT", 2)
    with Store.open(path) as store:
        result = verify_module.verify(store, [store.find("latest")], None, ignore)
    assert (len(result.errors), result.error_count) == (2, len(chunks))


@pytest.mark.parametrize("moment", ["between two chunks", "between two snapshots"])
def test_store_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Its drive was unplugged: that is no damage, and snapshots that were not looked at are not passed over."""
    path, source = tmp_path / "store", tmp_path / "source"
    Store.create(path)
    build_plain(source, 1, files=20, max_size=40_000)
    save(path, source)
    save(path, source)
    with Store.open(path) as store:
        refs = every_snapshot(store)
        assert store.database is not None
        calls = 0
        read = ChunkReader.verify

        def failing(self: ChunkReader, digest: bytes, size: int, *, encrypted: bool) -> tuple[bytes, int]:
            nonlocal calls
            calls += 1
            if calls == 2 and moment == "between two chunks":
                path.rename(tmp_path / "unplugged")
            return read(self, digest, size, encrypted=encrypted)

        def unplugged() -> Iterator[SnapshotRef]:
            yield refs[0]
            path.rename(tmp_path / "unplugged")
            yield refs[1]

        monkeypatch.setattr(ChunkReader, "verify", failing)
        with pytest.raises(TargetAbsent):
            verify_module.verify(store, refs if moment == "between two chunks" else unplugged(), None, ignore)
    (tmp_path / "unplugged").rename(path)
    monkeypatch.undo()
    assert damage(path) == []
    assert new_chunks(save(path, source)) == 0  # nothing was taken for damaged


def with_sizes(store: Store, ref: SnapshotRef, sizes: list[int]) -> None:
    """A snapshot of one chunk of 8 bytes, again and again, whose index gives it these ``sizes``."""
    data = b"contents"
    directory = Path(store.layout.snapshot(ref))
    directory.mkdir(parents=True)
    index = DynamicIndexWriter(bytes(16), ref.time)
    digest = sha256(data).digest()
    for size in sizes:
        index.add(index.size + size, digest)
    chunk = Path(store.layout.chunk(digest.hex()))
    chunk.parent.mkdir(exist_ok=True)
    chunk.write_bytes(blob.encode(data))
    entries = index.take()
    (directory / "x.pxar.didx").write_bytes(index.finish() + entries)
    file = FileInfo("x.pxar.didx", "none", index.size, index.csum)
    manifest = Manifest(ref.group.type, ref.group.id, ref.time, (file,), {}, None)
    (directory / MANIFEST).write_bytes(blob.encode(manifest.encode()))


@pytest.mark.parametrize("sizes", [[8, 7, 8], [7, 8], [7, 7], [9, 8], [8, 8, 8, 1 << 40]])
@pytest.mark.parametrize("first", ["good", "bad"])
def test_size_that_a_chunk_does_not_have(tmp_path: Path, sizes: list[int], first: str) -> None:
    """It cannot be restored, wherever the chunk was met before; the index with the right size is good."""
    Store.create(tmp_path / "store")
    refs = {name: SnapshotRef(GROUP, when) for when, name in enumerate(("good", "bad"), 1)}
    with Store.open(tmp_path / "store") as store:
        with_sizes(store, refs["good"], [8, 8])
        with_sizes(store, refs["bad"], sizes)
        order = [refs[first], *(ref for ref in refs.values() if ref != refs[first])]
        result = verify_module.verify(store, order, None, ignore)
    assert {error.snapshot for error in result.errors} == {str(refs["bad"])}
    assert len(result.errors) == sum(size != 8 for size in sizes)
