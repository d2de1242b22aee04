"""Chunk files: the table of spec datastore.md 5.1, touching, setting aside, and what a backup trusts."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from archiver.core.disk import Barrier, Disk
from archiver.errors import ArchiverError, Damaged
from archiver.store.chunks import ChunkDamaged, ChunkReader, ChunkStore
from archiver.store.layout import Layout
from archiver.store.store import Store
from formats import blob
from formats.blob import BlobEncoder
from formats.crypt import CryptConfig
from tests.random_trees import build_plain, noise
from tests.stores import (
    GROUP,
    Heard,
    SetClock,
    chunk_files,
    damage,
    new_chunks,
    restored_differences,
    save,
)

pytestmark = pytest.mark.in_memory

KEY = CryptConfig(bytes(range(32)))
DIGEST = sha256(b"some chunk").digest()
DAY = 86400


class Place:
    """An empty store's chunk directory."""

    def __init__(self, base: Path) -> None:
        Store.create(base)
        self.layout = Layout(str(base))
        self.clock = SetClock(2_000_000_000)
        self.chunks = ChunkStore(self.layout, Disk(), self.clock)
        self.barrier = Barrier(Disk(), str(base))
        self.path = Path(self.layout.chunk(DIGEST.hex()))

    def put(self, data: bytes) -> None:
        self.path.parent.mkdir()
        self.path.write_bytes(data)
        os.utime(self.path, (1_000_000_000, 1_100_000_000))

    def insert(self, data: bytes, *, encrypted: bool = False) -> bool:
        """True for a duplicate."""
        result = self.chunks.insert(DIGEST, data[:12], data[12:], encrypted=encrypted, barrier=self.barrier)
        assert result.stored == self.path.lstat().st_size
        self.barrier.commit()
        return result.duplicate


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "store")
    yield place
    place.barrier.close()


def encoded(size: int, *, kind: bytes = blob.PLAIN_MAGIC) -> bytes:
    """Bytes of a blob of ``size`` bytes and that magic, not decodable."""
    return kind + noise(size, size - len(kind))


PLAIN, PACKED = blob.PLAIN_MAGIC, blob.PLAIN_ZSTD_MAGIC
SEALED, SEALED_PACKED = blob.ENCRYPTED_MAGIC, blob.ENCRYPTED_ZSTD_MAGIC


def test_absent_chunk_is_written_with_its_shard(place: Place) -> None:
    os.umask(0o077)
    assert not place.insert(encoded(100))
    assert place.path.read_bytes() == encoded(100)
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o644
    assert stat.S_IMODE(place.path.parent.stat().st_mode) == 0o750
    assert os.listdir(place.path.parent) == [place.path.name]


KEPT, REPLACED, REFUSED = "kept", "replaced", "refused"


@pytest.mark.parametrize(
    ("old", "new", "encrypted", "outcome"),
    [
        (encoded(100), encoded(100, kind=PACKED), False, KEPT),
        (encoded(100, kind=SEALED), encoded(100, kind=SEALED), True, KEPT),
        (encoded(100), encoded(100, kind=SEALED), True, KEPT),
        (b"", encoded(100), False, REPLACED),
        (b"", encoded(100, kind=SEALED), True, REPLACED),
        (encoded(100), encoded(120, kind=SEALED), True, REFUSED),
        (encoded(100, kind=PACKED), encoded(90, kind=SEALED), True, REFUSED),
        (encoded(100, kind=SEALED), encoded(101, kind=SEALED), True, REFUSED),
        (encoded(100, kind=SEALED), encoded(90, kind=SEALED_PACKED), True, KEPT),
        (encoded(100, kind=SEALED_PACKED), encoded(90, kind=SEALED_PACKED), True, KEPT),
        (encoded(100, kind=SEALED_PACKED), encoded(120, kind=SEALED), True, KEPT),
        (b"garbage", encoded(100, kind=SEALED), True, KEPT),
        (encoded(99), encoded(100), False, KEPT),
        (b"x", encoded(100), False, KEPT),
        (encoded(101), encoded(100), False, REPLACED),
        (encoded(101, kind=SEALED), encoded(100), False, REPLACED),
    ],
)
def test_insert_over_an_existing_file(place: Place, old: bytes, new: bytes, encrypted: bool, outcome: str) -> None:
    place.put(old)
    if outcome == REFUSED:
        with pytest.raises(Damaged):
            place.insert(new, encrypted=encrypted)
    else:
        assert place.insert(new, encrypted=encrypted) is (outcome == KEPT)
    assert place.path.read_bytes() == (new if outcome == REPLACED else old)
    assert os.listdir(place.path.parent) == [place.path.name]
    if outcome == KEPT:
        assert place.path.stat().st_atime == place.clock.time
        assert place.path.stat().st_mtime == 1_100_000_000


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/hostname")])
def test_insert_over_what_is_no_file(place: Place, make: Callable[[Path], None]) -> None:
    place.path.parent.mkdir()
    make(place.path)
    before = place.path.lstat()
    with pytest.raises(Damaged, match="not a regular file"):
        place.insert(encoded(100))
    assert place.path.lstat() == before


def test_insert_where_the_shard_is_no_directory(place: Place) -> None:
    place.path.parent.write_bytes(b"")
    with pytest.raises(ArchiverError, match=str(place.path)):
        place.insert(encoded(100))
    with pytest.raises(ArchiverError, match=str(place.path)):
        place.chunks.seen(DIGEST)


def test_bad_and_temporary_files_are_not_the_chunk(place: Place) -> None:
    place.put(encoded(100))
    place.path.rename(f"{place.path}.0.bad")
    Path(f"{place.path}.tmp_00112233").write_bytes(encoded(100))
    assert place.chunks.seen(DIGEST) is None
    assert not place.insert(encoded(100))
    assert len(os.listdir(place.path.parent)) == 3


def test_entry_of_a_shard_that_another_process_made_is_made_durable(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one may not have come to its barrier yet."""
    synced: list[str] = []
    fsync = os.fsync

    def record(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    place.path.parent.mkdir()
    monkeypatch.setattr(os, "fsync", record)
    place.insert(encoded(100))
    assert set(synced) == {str(place.path), str(place.path.parent), place.layout.chunks}


def test_touch_sets_the_access_time_only(place: Place) -> None:
    place.put(encoded(100))
    status = place.chunks.seen(DIGEST)
    assert status is not None
    assert place.chunks.touch(DIGEST, status)
    after = place.path.stat()
    assert (after.st_atime_ns, after.st_mtime_ns) == (place.clock.now_ns(), 1_100_000_000 * 10**9)
    place.path.unlink()
    assert not place.chunks.touch(DIGEST, status)
    place.path.parent.rmdir()
    place.path.parent.write_bytes(b"")
    with pytest.raises(ArchiverError, match="touch"):
        place.chunks.touch(DIGEST, status)


def test_set_aside_keeps_up_to_ten(place: Place) -> None:
    place.path.parent.mkdir()
    for number in range(12):
        place.path.write_bytes(b"%d" % number)
        assert place.chunks.set_aside(DIGEST) == f"{place.path}.{min(number, 9)}.bad"
    assert place.chunks.set_aside(DIGEST) is None
    assert sorted(os.listdir(place.path.parent)) == sorted(f"{place.path.name}.{n}.bad" for n in range(10))


def good(data: bytes, crypt: CryptConfig | None = None) -> bytes:
    header, body = BlobEncoder(crypt).encode(data, None if crypt is None else bytes(16))
    return header + bytes(body)


@pytest.mark.parametrize("crypt", [None, KEY])
def test_reader_hands_out_only_what_is_right(place: Place, crypt: CryptConfig | None) -> None:
    data = b"some chunk"
    digest = DIGEST if crypt is None else crypt.digest(data)
    path = Path(place.layout.chunk(digest.hex()))
    path.parent.mkdir()
    reader = ChunkReader(place.layout, crypt)
    encrypted = crypt is not None

    def outcome() -> str:
        try:
            return bytes(reader.read(digest, len(data), encrypted=encrypted)).decode()
        except ChunkDamaged as error:
            with pytest.raises(ChunkDamaged):
                reader.verify(digest, len(data), encrypted=encrypted)
            return error.reason

    assert outcome() == "is missing"
    stored = good(data, crypt)
    path.write_bytes(stored)
    assert outcome() == data.decode()
    assert reader.verify(digest, len(data), encrypted=encrypted)[1] == len(stored)
    for at in range(len(stored)):
        path.write_bytes(stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :])
        assert outcome().startswith("is damaged"), at
    for length in range(len(stored)):
        path.write_bytes(stored[:length])
        assert outcome().startswith("is damaged"), length
    path.write_bytes(good(b"other chunk", crypt))
    assert outcome().startswith("is damaged")
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert outcome().startswith("cannot be read")
    path.unlink()
    path.mkdir()
    assert outcome() == "is not a chunk file"


# -- what a backup trusts --------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 1, files=20, max_size=200_000)
    return tmp_path / "source"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Store.create(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("crypt", [None, KEY])
def test_nothing_changed_stores_nothing_and_touches_all(path: Path, source: Path, crypt: CryptConfig | None) -> None:
    first = save(path, source, crypt=crypt)
    before = {file: file.stat() for file in chunk_files(path)}
    for file in before:
        os.utime(file, ns=(0, before[file].st_mtime_ns))
    second = save(path, source, crypt=crypt)
    assert new_chunks(first) == len(before) > 5
    assert new_chunks(second) == 0
    for file in chunk_files(path):
        assert file.stat().st_ino == before[file].st_ino
        assert file.stat().st_mtime_ns == before[file].st_mtime_ns
        assert file.stat().st_atime_ns > 0, "not touched"


def break_chunk(file: Path, how: str) -> None:
    data = file.read_bytes()
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    if how == "deleted":
        file.unlink()
        return
    if how == "shard deleted":
        for each in file.parent.iterdir():
            each.unlink()
        file.parent.rmdir()
        return
    file.write_bytes({"empty": b"", "longer": data + b"x", "shorter": data[:-1]}[how])
    os.utime(file, ns=times)


@pytest.mark.parametrize("crypt", [None, KEY])
@pytest.mark.parametrize("how", ["deleted", "shard deleted", "empty", "longer", "shorter"])
def test_backup_stores_again_what_the_database_claims_and_the_disk_lacks(
    path: Path, source: Path, tmp_path: Path, how: str, crypt: CryptConfig | None
) -> None:
    save(path, source, crypt=crypt)
    victim = chunk_files(path)[3]
    break_chunk(victim, how)
    assert damage(path, crypt)
    heard = Heard()
    result = save(path, source, crypt=crypt, heard=heard)
    assert damage(path, crypt) == []
    assert restored_differences(path, result.snapshot, source, tmp_path / "out", crypt) == []


@pytest.mark.parametrize("crypt", [None, KEY])
def test_old_chunk_is_read_on_its_first_hit_and_rot_is_not_inherited(
    path: Path, source: Path, tmp_path: Path, crypt: CryptConfig | None
) -> None:
    clock = SetClock(1_900_000_000)
    save(path, source, crypt=crypt, clock=clock)
    for file in chunk_files(path):
        os.utime(file, (clock.time, clock.time))
    victim = chunk_files(path)[5]
    rot(victim)
    clock.time += 89 * DAY
    young = Heard()
    save(path, source, crypt=crypt, clock=clock, heard=young)
    assert young.notices == [] and damage(path, crypt) != []

    clock.time += 2 * DAY
    heard = Heard()
    result = save(path, source, crypt=crypt, clock=clock, heard=heard)
    assert [text for text in heard.notices if victim.name in text and "stored again" in text]
    assert len(heard.notices) == 1
    assert new_chunks(result) == 1
    assert victim.with_name(f"{victim.name}.0.bad").exists()
    assert damage(path, crypt) == []
    assert restored_differences(path, result.snapshot, source, tmp_path / "out", crypt) == []


@pytest.mark.parametrize("whose", ["file", "record"])
def test_times_in_the_future_vouch_for_nothing(path: Path, source: Path, tmp_path: Path, whose: str) -> None:
    """A clock that was wrong once must not keep a chunk from ever being read again."""
    clock = SetClock(1_900_000_000)
    wrong = clock.time + 9000 * DAY
    save(path, source, clock=SetClock(wrong) if whose == "record" else clock)
    if whose == "file":
        clock.time += 100 * DAY
    for file in chunk_files(path):
        when = wrong if whose == "file" else clock.time - 100 * DAY
        os.utime(file, (when, when))
    rot(chunk_files(path)[5])
    result = save(path, source, clock=clock)
    assert new_chunks(result) == 1
    assert damage(path) == []
    assert restored_differences(path, result.snapshot, source, tmp_path / "out") == []


def test_recheck_is_remembered(path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SetClock(1_900_000_000)
    save(path, source, clock=clock)
    for file in chunk_files(path):
        os.utime(file, (clock.time, clock.time))
    clock.time += 100 * DAY
    read: list[bytes] = []
    verify = ChunkReader.verify

    def count(self: ChunkReader, digest: bytes, size: int, *, encrypted: bool) -> tuple[bytes, int]:
        read.append(digest)
        return verify(self, digest, size, encrypted=encrypted)

    monkeypatch.setattr(ChunkReader, "verify", count)
    save(path, source, clock=clock)
    assert sorted(digest.hex() for digest in read) == [file.name for file in chunk_files(path)]
    read.clear()
    clock.time += 80 * DAY
    save(path, source, clock=clock)
    assert read == []


def rot(file: Path) -> None:
    """Other bytes, the same length and times."""
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    os.utime(file, ns=times)


@pytest.mark.parametrize("crypt", [None, KEY])
def test_chunk_that_the_database_does_not_know_is_read_before_it_is_trusted(
    path: Path, source: Path, tmp_path: Path, crypt: CryptConfig | None
) -> None:
    """What a power cut leaves of an interrupted run: files of the right length whose bytes never reached the disk."""
    other = tmp_path / "other"
    Store.create(other)
    save(other, source, crypt=crypt)
    stored = chunk_files(other)
    for file in stored:
        copy = path / ".chunks" / file.parent.name / file.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(bytes(file.stat().st_size) if file in stored[::2] else file.read_bytes())
    result = save(path, source, crypt=crypt)
    assert damage(path, crypt) == []
    assert restored_differences(path, result.snapshot, source, tmp_path / "out", crypt) == []
    if crypt is None:
        assert new_chunks(result) == len(stored[::2])


def test_two_keys_share_a_store(path: Path, source: Path, tmp_path: Path) -> None:
    other = CryptConfig(bytes(32))
    results = {crypt: save(path, source, crypt=crypt) for crypt in (None, KEY, other)}
    assert len({new_chunks(result) for result in results.values()}) == 1
    for number, (crypt, result) in enumerate(results.items()):
        assert restored_differences(path, result.snapshot, source, tmp_path / str(number), crypt) == []
    assert results[None].snapshot.group == GROUP
