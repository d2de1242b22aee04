"""What a verification leaves behind for the runs after it."""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from blake3 import blake3

from archiver.browse import damage as damage_module
from archiver.browse import verify as verify_module
from archiver.browse import verify_result
from archiver.browse.damage import DamagedFile, damaged_files
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

pytestmark = pytest.mark.in_memory


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


def test_sums_are_recorded_once_and_stay(tmp_path: Path) -> None:
    """The sum of a large plain chunk is not made again when it is known, and is again after the database was lost."""
    path, source = tmp_path / "store", tmp_path / "source"
    Store.create(path)
    source.mkdir()
    (source / "large").write_bytes(os.urandom(3 << 20))
    save(path, source)
    files = [file for file in chunk_files(path) if file.stat().st_size > 70_000]
    expected = {bytes.fromhex(file.name): blake3(file.read_bytes()).digest() for file in files}

    def sums() -> dict[bytes, bytes | None]:
        with Store.open(path) as store:
            assert store.database is not None
            found = {digest: store.database.recorded_sum(digest) for digest in expected}
        return {digest: None if row is None else row[0] for digest, row in found.items()}

    assert expected and sums() == expected
    assert damage(path) == [] and sums() == expected
    shutil.rmtree(path / ".archiver/db")
    assert set(sums().values()) == {None}
    assert damage(path) == [] and sums() == expected


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

    def counted(tree: Tree, content: list[tuple[int, int]], room: int) -> list[list[DamagedFile]]:
        calls.append(len(content))
        return damaged_files(tree, content, room)

    monkeypatch.setattr(damage_module, "damaged_files", counted)
    assert [error.chunk for error in damage(path)] == chunks
    assert calls == [len(chunks)] and len(chunks) > 5
    monkeypatch.setattr(verify_result, "ERRORS_KEPT", 2)
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


# -- without the key ---------------------------------------------------------------------------------------------------

KEY = CryptConfig(bytes(range(32)))


def with_another_crc(path: Path, at: int) -> None:
    """Flip a byte and mend the CRC, so that only the key or a sum can tell; rot leaves the times as they are."""
    data, status = bytearray(path.read_bytes()), path.stat()
    data[at] ^= 1
    data[8:12] = zlib.crc32(data[blob.ENCRYPTED_HEADER :]).to_bytes(4, "little")
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def totals(path: Path, crypt: CryptConfig | None = None) -> tuple[int, int, int]:
    """Errors; chunks checked without the key; of these the ones that no sum is known of."""
    with Store.open(path) as store:
        result = verify_module.verify(store, every_snapshot(store), crypt, ignore)
    return result.error_count, result.unchecked, result.without_sum


@pytest.mark.parametrize("at", [-1, 20, 30, 100])
def test_rot_is_found_without_the_key(tmp_path: Path, at: int) -> None:
    """In the contents, the IV or the tag, whatever the CRC says."""
    path, source = tmp_path / "store", tmp_path / "source"
    Store.create(path)
    build_plain(source, 1, files=50, max_size=40_000)
    first = save(path, source, crypt=KEY)
    chunks = chunk_files(path)
    assert totals(path) == (0, len(chunks), 0)
    bad = chunks[2]
    good = bad.read_bytes()
    with_another_crc(bad, at)
    for _ in range(2):  # also when it is known to be damaged already
        (error,) = damage(path)
        assert error.chunk == bad.name and "BLAKE3" in error.reason
    assert {error.chunk for error in damage(path, KEY)} == {bad.name}
    assert new_chunks(save(path, source, crypt=KEY)) == 1  # the backup takes its word and stores the chunk again
    assert bad.read_bytes() != good
    assert damage(path) == damage(path, KEY) == []
    assert totals(path) == (0, len(chunks), 0)
    assert restored_differences(path, first.snapshot, source, tmp_path / "out", KEY) == []


def test_sums_are_never_taken_from_what_is_there(tmp_path: Path) -> None:
    """After a rebuild they come back with the key only: a rebuild or a verification without it must not bless rot."""
    path, source = tmp_path / "store", tmp_path / "source"
    Store.create(path)
    build_plain(source, 1, files=50, max_size=40_000)
    save(path, source, crypt=KEY)
    chunks = chunk_files(path)
    bad = chunks[2]
    good = bad.read_bytes()
    with_another_crc(bad, -1)
    with Store.open(path) as store:
        store.rebuild_database()
    for _ in range(2):
        assert totals(path) == (0, len(chunks), len(chunks))  # nothing is known of them, and that is told
    assert {error.chunk for error in damage(path, KEY)} == {bad.name}
    assert totals(path) == (0, len(chunks), 1)  # the sums of all others are back
    bad.write_bytes(good)
    assert totals(path) == (0, len(chunks), 1)
    assert totals(path, KEY) == (0, 0, 0)
    assert totals(path) == (0, len(chunks), 0)
    with_another_crc(bad, -1)
    assert [error.chunk for error in damage(path)] == [bad.name]


def test_a_chunk_that_another_program_stored_again_is_no_damage(tmp_path: Path) -> None:
    """It has another IV, so other bytes: the sum that is known is of those before."""
    path, source = tmp_path / "store", tmp_path / "source"
    Store.create(path)
    build_plain(source, 1, files=50, max_size=40_000)
    save(path, source, crypt=KEY)
    chunks = chunk_files(path)
    again = chunks[2]
    plain = blob.decode(again.read_bytes(), KEY)
    again.write_bytes(blob.encode(plain, KEY, bytes(16)))
    later = time.time() + 7200  # the clock of ``save`` is an hour ahead
    os.utime(again, (later, later))
    assert totals(path) == (0, len(chunks), 1)
    assert totals(path, KEY) == (0, 0, 0)
    assert totals(path) == (0, len(chunks), 0)


def test_sums_without_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = tmp_path / "store", tmp_path / "source"
    Store.create(path)
    build_plain(source, 1, files=20, max_size=40_000)
    save(path, source, crypt=KEY)
    count = len(chunk_files(path))
    monkeypatch.setattr(Store, "database", None)
    assert totals(path) == (0, count, count)


def test_signatures_in_a_verification(tmp_path: Path) -> None:
    path, source = tmp_path / "store", tmp_path / "source"
    Store.create(path)
    build_plain(source, 1, files=3, max_size=4000)
    names = {
        "unsigned": str(save(path, source, time=1).snapshot),
        "encrypted": str(save(path, source, time=2, crypt=KEY).snapshot),
        "signed": str(save(path, source, time=3, crypt=KEY, crypt_mode="sign-only").snapshot),
    }
    with Store.open(path) as store:
        refs = every_snapshot(store)
        ours = verify_module.verify(store, refs, KEY, ignore)
        none = verify_module.verify(store, refs, None, ignore)
        other = verify_module.verify(store, refs, CryptConfig(bytes(32)), ignore)
    made_with_key = [names["encrypted"], names["signed"]]
    assert ours.signatures == {"valid": made_with_key, "unchecked": [], "unsigned": [names["unsigned"]]}
    assert none.signatures == other.signatures
    assert none.signatures == {"valid": [], "unchecked": made_with_key, "unsigned": [names["unsigned"]]}
    assert ours.errors == none.errors == other.errors == []
