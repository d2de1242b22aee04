"""The database is disposable: whatever happens to its file, every answer stays right and no process dies of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from archiver.errors import ArchiverError
from archiver.store.database import bulk, environment, inspection, records, refresh
from archiver.store.database.database import Database, open_database
from archiver.store.database.records import ChunkRow
from archiver.store.indexes import Index
from archiver.store.store import Store
from tests.mounts import fill, read_only_view, small_file_system
from tests.random_trees import build_plain, mutate
from tests.store.database_probe import PAGE
from tests.stores import (
    GROUP,
    ROOT,
    Heard,
    chunk_files,
    damage,
    every_snapshot,
    listing,
    new_chunks,
    restored_differences,
    save,
)

NOW = 1_700_000_000


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``store`` with three snapshots and a database of several levels, made once; ``source``; ``clean.mdb``."""
    place = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        build_plain(place / "source", 3, files=40, max_size=100_000)
        Store.create(place / "store")
        for number in range(3):
            mutate(place / "source", number, 4)
            save(place / "store", place / "source", time=NOW + number)
        with Store.open(place / "store") as store:
            database = store.database
            assert database is not None
            rng = random.Random(4)
            database.put_chunks(ChunkRow(rng.randbytes(32), 1, 1, bytes(32), 0) for _ in range(2000))
        shutil.copy(place / "store" / ".archiver" / "db" / "data.mdb", place / "clean.mdb")
    return place


@pytest.fixture
def place(kept: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    shutil.copytree(kept, tmp_path / "place", symlinks=True)
    return tmp_path / "place"


@pytest.fixture
def path(place: Path) -> Path:
    return place / "store"


@pytest.fixture
def source(place: Path) -> Path:
    return place / "source"


def database_file(path: Path) -> Path:
    return path / ".archiver" / "db" / "data.mdb"


def about_database(heard: Heard) -> list[str]:
    return [text for text in heard.notices if "database" in text]


def probe(place: Path, tamperings: list[dict[str, Any]]) -> None:
    """Run the probe; it must survive each tampering with nothing wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.database_probe", place / "store", place / "source", place / "clean.mdb"],
        cwd=ROOT,
        input="".join(json.dumps(tampering) + "\n" for tampering in tamperings),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"after {lines[-1]}: exit {done.returncode}\n{done.stderr}"
    assert len(lines) == 2 * len(tamperings)
    wrong = {how: what for how, what in zip(lines[::2], lines[1::2], strict=True) if what}
    assert wrong == {}


def pages(place: Path) -> int:
    return (place / "clean.mdb").stat().st_size // PAGE


def spread(count: int, parts: int, part: int) -> list[int]:
    return list(range(count))[part::parts]


# -- the file --------------------------------------------------------------------------------------------------------


def test_clean_database_is_left_alone(place: Path) -> None:
    probe(place, [{"cut": (place / "clean.mdb").stat().st_size}])


def test_cut_at_page_borders(place: Path) -> None:
    count = pages(place)
    numbers = [*range(4), *random.Random(5).sample(range(4, count), 20), count - 1]
    probe(place, [{"cut": number * PAGE} for number in numbers])


def test_cut_at_odd_sizes(place: Path) -> None:
    sizes = [1, 15, 16, 100, PAGE - 1, PAGE + 1, 2 * PAGE - 1, 2 * PAGE + 7]
    rng = random.Random(1)
    probe(place, [{"cut": size} for size in [*sizes, *(rng.randrange(pages(place) * PAGE) for _ in range(8))]])


def test_noise(place: Path) -> None:
    probe(place, [{"noise": size} for size in (1, 100, PAGE, 2 * PAGE, 50 * PAGE + 1)])


def test_pages_of_zeros_or_noise(place: Path) -> None:
    rng = random.Random(2)
    probe(place, [{"pages": [[rng.randrange(pages(place)), rng.choice(["zeros", "noise"])]]} for _ in range(16)])


def test_pages_in_the_place_of_others(place: Path) -> None:
    """Each is a good page, so that only the whole shows the damage; among them are loops."""
    rng = random.Random(3)
    probe(place, [{"pages": [[rng.randrange(pages(place)), rng.randrange(pages(place))]]} for _ in range(16)])


def test_flipped_bits(place: Path) -> None:
    probe(place, [{"flips": seed, "count": 1 + seed % 40} for seed in range(20)])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_many_tamperings(place: Path, part: int) -> None:
    rng = random.Random(100 + part)
    count = pages(place)
    probe(place, [{"cut": number * PAGE} for number in spread(count, 20, part)])
    probe(place, [{"pages": [[number, "zeros"]]} for number in spread(count, 20, part)])
    probe(place, [{"pages": [[number, "noise"]]} for number in spread(count, 20, part)])
    probe(place, [{"pages": [[rng.randrange(count), rng.randrange(count)]]} for _ in range(50)])
    probe(place, [{"flips": rng.randrange(1 << 32), "count": rng.randrange(1, 200)} for _ in range(100)])


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "use.lock", "clean.json", "damaged"])
@pytest.mark.parametrize("content", [None, b"", b"garbage", b"[" * 100_000])
def test_any_file_lost_or_garbage(place: Path, path: Path, source: Path, name: str, content: bytes | None) -> None:
    file = database_file(path).with_name(name)
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)
    result = save(path, source)
    assert new_chunks(result) == 0
    with Store.open(path) as store:
        assert store.database is not None
        assert store.database.check() == []
        assert len(store.database.stamps()) == 4


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "use.lock", "clean.json", "damaged"])
def test_directory_in_the_place_of_a_file(path: Path, source: Path, tmp_path: Path, name: str) -> None:
    file = database_file(path).with_name(name)
    file.unlink(missing_ok=True)
    file.mkdir()
    result = save(path, source)
    assert new_chunks(result) == 0
    assert restored_differences(path, result.snapshot, source, tmp_path / "out") == []


def test_deleted_database_is_built_again_with_a_notice(path: Path, source: Path, tmp_path: Path) -> None:
    shutil.rmtree(database_file(path).parent)
    heard = Heard()
    result = save(path, source, heard=heard)
    assert new_chunks(result) == 0
    assert about_database(heard) == ["reading 3 snapshots into a new database"]
    again = Heard()
    save(path, source, heard=again)
    assert about_database(again) == []
    assert damage(path) == []


def test_damaged_database_is_told(path: Path, source: Path) -> None:
    os.truncate(database_file(path), 3 * PAGE)
    heard = Heard()
    save(path, source, heard=heard)
    assert "was not usable" in heard.notices[0] and "reading 3 snapshots" in heard.notices[1]


def test_unclean_end_is_no_damage(path: Path, source: Path) -> None:
    """Without the stamp of a clean close the pages are walked, and found good."""
    database_file(path).with_name("clean.json").unlink()
    heard = Heard()
    save(path, source, heard=heard)
    assert heard.notices == []
    assert inspection.stamped(str(database_file(path).parent))


def test_walk_that_does_not_end_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_WALK", "while True: pass")
    monkeypatch.setattr(inspection, "_WALK_SECONDS", 0.2)
    assert not inspection.walk_in_child(str(database_file(path).parent))


# -- what is in it ---------------------------------------------------------------------------------------------------


def test_database_of_another_store(path: Path, source: Path, tmp_path: Path) -> None:
    """It claims chunks that this store does not have."""
    other = tmp_path / "other"
    Store.create(other)
    shutil.copy(database_file(path), tmp_path / "foreign")
    with Store.open(other) as store:
        assert store.database is not None
    shutil.copy(tmp_path / "foreign", database_file(other))
    result = save(other, source)
    assert new_chunks(result) == len(chunk_files(other)) > 0
    assert damage(other) == []


@pytest.mark.parametrize("schema", [0, 2, 1 << 31])
def test_database_of_another_schema(path: Path, source: Path, schema: int) -> None:
    def change(txn: Any, env: environment.Environment) -> None:
        txn.put(b"schema", struct.pack("<I", schema), db=env.table(records.META))

    edit(path, change)
    result = save(path, source)
    assert new_chunks(result) == 0
    with Store.open(path) as store:
        assert store.database is not None
        assert len(store.database.stamps()) == 4


def edit(path: Path, change: Any) -> None:
    """Change the database behind the program's back."""
    env = environment.attach(str(database_file(path).parent))
    try:
        env.write(lambda txn: change(txn, env))
    finally:
        environment.release(env)


@pytest.mark.parametrize("table", records.TABLES)
@pytest.mark.parametrize("value", [b"", b"\0", b"\xff" * 8, b"\xff" * 72, b"\0" * 200])
def test_records_of_other_bytes(path: Path, source: Path, tmp_path: Path, table: bytes, value: bytes) -> None:
    """The file is a good LMDB file, and all records of a table are nonsense."""

    def change(txn: Any, env: environment.Environment) -> None:
        for key, _ in list(txn.cursor(db=env.table(table))):
            txn.put(bytes(key), value, db=env.table(table))

    edit(path, change)
    heard = Heard()
    result = save(path, source, heard=heard)
    assert damage(path) == []
    assert restored_differences(path, result.snapshot, source, tmp_path / "out") == []
    save(path, source)
    with Store.open(path) as store:
        assert store.database is not None
        assert len(every_snapshot(store)) == 5


def test_swapped_numbers_never_hide_a_missing_chunk(path: Path, source: Path, tmp_path: Path) -> None:
    """Every digest gets the number of another chunk, one that the run has seen already or not."""

    def change(txn: Any, env: environment.Environment) -> None:
        items = [(bytes(key), bytes(value)) for key, value in txn.cursor(db=env.table(records.DIGEST))]
        for (key, value), (_, other) in zip(items, [*items[1:], items[0]], strict=True):
            txn.put(key, other[:4] + value[4:], db=env.table(records.DIGEST))

    Store.create(tmp_path / "other")
    save(tmp_path / "other", source)
    needed = {file.name for file in chunk_files(tmp_path / "other")} & {file.name for file in chunk_files(path)}
    assert len(needed) > 5
    edit(path, change)
    for file in chunk_files(path):
        if file.name in needed:
            file.unlink()
    result = save(path, source)
    assert damage(path) == []
    assert restored_differences(path, result.snapshot, source, tmp_path / "out") == []


def test_wrong_size_never_sets_a_good_chunk_aside(path: Path, source: Path) -> None:
    """A recheck must not blame the file for what the database says of it."""

    def change(txn: Any, env: environment.Environment) -> None:
        for key, value in list(txn.cursor(db=env.table(records.CHUNK))):
            digest, total, size, _ = records.CHUNK_VALUE.unpack(value)
            txn.put(bytes(key), records.CHUNK_VALUE.pack(digest, total, size + 1, 0), db=env.table(records.CHUNK))

    edit(path, change)
    for file in chunk_files(path):
        os.utime(file, (NOW, NOW))
    assert new_chunks(save(path, source)) == 0
    assert list((path / ".chunks").rglob("*.bad")) == []


# -- stale -----------------------------------------------------------------------------------------------------------


def test_earlier_state_is_brought_up_to_date(path: Path, source: Path, tmp_path: Path) -> None:
    """More snapshots than it knows, others than it knows, and chunks gone that it knows."""
    old = database_file(path).read_bytes()
    mutate(source, 50, 10)
    newest = save(path, source).snapshot
    with Store.open(path) as store:
        first = every_snapshot(store)[0]
    shutil.rmtree(path / first.path)
    with Store.open(path) as store:
        assert store.database is not None
        right = sorted(store.database.stamps())
    chunk_files(path)[0].unlink()
    chunk_files(path)[7].unlink()
    database_file(path).write_bytes(old)
    with Store.open(path) as store:
        assert store.database is not None
        assert sorted(store.database.stamps()) == right
        assert newest.path in right and first.path not in right
        assert store.database.check() == []
    result = save(path, source)
    assert restored_differences(path, result.snapshot, source, tmp_path / "out") == []


def test_replaced_manifest_is_read_again(path: Path) -> None:
    """A PBS rewrites manifests (notes, verify state); the inode tells."""
    with Store.open(path) as store:
        ref = every_snapshot(store)[0]
        before = store.database.snapshot(ref.path) if store.database else None
    file = path / ref.path / "index.json.blob"
    copy = file.with_name("copy")
    shutil.copy2(file, copy)
    copy.rename(file)
    with Store.open(path) as store:
        after = store.database.snapshot(ref.path) if store.database else None
    assert before is not None and after is not None
    assert before.stamp != after.stamp and before.manifest == after.manifest


def test_damaged_snapshot_is_told_and_the_others_are_recorded(path: Path, source: Path) -> None:
    with Store.open(path) as store:
        refs = every_snapshot(store)
    file = path / refs[1].path / "index.json.blob"
    file.write_bytes(file.read_bytes()[:-3])
    shutil.rmtree(database_file(path).parent)
    heard = Heard()
    with Store.open(path, listener=heard) as store:
        assert store.database is not None
        assert set(store.database.stamps()) == {refs[0].path, refs[2].path}
    assert [text for text in heard.notices if str(refs[1]) in text]


def test_what_is_known_of_a_chunk_survives_new_snapshots_of_it(path: Path) -> None:
    """A snapshot that another process published is read while a backup of our own records chunks of it."""
    with Store.open(path) as store:
        database = store.database
        assert database is not None
        known = ChunkRow(bytes(32), 1, 2, bytes(range(32)), 3)
        database.put_chunks([known])
        database.add_chunks(
            [known._replace(stored=9, blake3=bytes(32)), ChunkRow(bytes(31) + b"x", 4, 5, bytes(32), 0)]
        )
        found = [database.lookup(digest) for digest in (bytes(32), bytes(31) + b"x")]
        assert found[0] is not None and found[1] is not None
        assert database.chunk(found[0][0]) == known
        assert found[1][1] == 5
        assert database.check() == []


def test_snapshot_whose_chunks_were_forgotten_meanwhile_is_recorded_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process begins a new database between the chunks and the snapshot."""
    with Store.open(path) as store:
        refs = {ref.path for ref in every_snapshot(store)}
    put = Database.put_snapshot

    def emptied(self: Database, *arguments: Any) -> None:
        self.reset(store.uuid)
        put(self, *arguments)

    with monkeypatch.context() as patch, Store.open(path) as store:
        patch.setattr(Database, "put_snapshot", emptied)
        store.rebuild_database()
        assert store.database is not None and store.database.stamps() == {}
        assert store.database.check() == []
    with Store.open(path) as store:
        assert store.database is not None and set(store.database.stamps()) == refs


def test_bulk_answers_equal_single_ones(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of records read at once; digests that end in zeros are no shorter."""
    digests = [bytes(32), b"a" + bytes(31), b"a" * 31 + bytes(1), bytes(31) + b"a"]
    with Store.open(path) as store:
        database = store.database
        assert database is not None
        database.put_chunks(ChunkRow(digest, 7, 8 + n, bytes(32), 0) for n, digest in enumerate(digests[:3]))
        stored = [bytes.fromhex(file.name) for file in chunk_files(path)]
        asked = np.frombuffer(b"".join(sorted(stored + digests)), np.uint8).reshape(-1, 32)
        for count in (1, 7, 1 << 14):
            monkeypatch.setattr(bulk, "_AT_ONCE", count)
            without = database.unknown(asked)
            assert [row.tobytes() for row in asked[without]] == digests[3:]
            plain, lengths = database.sizes()
            for digest in stored + digests[:3]:
                found = database.lookup(digest)
                assert found is not None and lengths[found[0]] == found[1]
                row = database.chunk(found[0])
                assert row is not None and plain[found[0]] == row.size and row.digest == digest
            assert database.check() == []


def test_check_names_the_digest_that_has_the_number_of_another(path: Path) -> None:
    with Store.open(path) as store:
        assert store.database is not None
        store.database.put_chunks([ChunkRow(b"a" + bytes(31), 7, 8, bytes(32), 0)])

    def change(txn: Any, env: environment.Environment) -> None:
        txn.put(b"a" + bytes(31), records.DIGEST_VALUE.pack(0, 8), db=env.table(records.DIGEST))

    edit(path, change)
    with Store.open(path) as store:
        assert store.database is not None
        found = store.database.check()
    assert found == [f"chunk 61{'00' * 31} has the number 0 of another chunk"]


def test_memory_for_an_index_of_many_chunks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tens of bytes for each chunk, not objects."""
    count = 50_000
    monkeypatch.setattr(refresh, "_CHUNKS_AT_ONCE", 1000)
    monkeypatch.setattr(bulk, "_AT_ONCE", 1000)
    digests = np.random.default_rng(1).integers(0, 256, (count, 32), np.uint8)
    index = SimpleNamespace(digests=digests, sizes=lambda: np.ones(count, np.uint64))
    with Store.open(path) as store:
        assert store.database is not None
        tracemalloc.start()
        try:
            refresh._record_chunks(store.layout, store.database, cast(Index, index))
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert not store.database.unknown(digests).any()
    assert most < 90 * count


def test_rebuild_knows_no_sums(path: Path, source: Path) -> None:
    """A rebuild reads no chunk, so it must not bless any (DESIGN.md, P3); what is verified later is known again."""
    shutil.rmtree(database_file(path).parent)
    with Store.open(path) as store:
        assert store.database is not None
        rows = [store.database.chunk(number) for number in range(store.database.statistics()["chunk"])]
        assert rows and all(row and row.blake3 == bytes(32) and row.verified == 0 for row in rows)
    assert damage(path) == []
    with Store.open(path) as store:
        assert store.database is not None
        rows = [store.database.chunk(number) for number in range(store.database.statistics()["chunk"])]
        assert rows and all(row and row.blake3 != bytes(32) and row.verified for row in rows)


# -- places ----------------------------------------------------------------------------------------------------------


def test_other_place_and_other_device(
    path: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_file_system(tmp_path, 32 << 20) as small:
        monkeypatch.setenv("ARCHIVER_DB_DIR", str(small / "a" / "b"))
        assert new_chunks(save(path, source)) == 0
        assert [file.parent.parent for file in small.rglob("data.mdb")] == [small / "a" / "b"]
        monkeypatch.delenv("ARCHIVER_DB_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(small / "cache"))
        assert new_chunks(save(path, source)) == 0
        assert len(list((small / "cache" / "archiver").glob("*/data.mdb"))) == 1


@pytest.mark.parametrize("what", ["file", "file above", "link to nowhere"])
def test_place_that_cannot_be_a_directory(
    path: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("/nowhere/at/all")
    (tmp_path / "there").mkdir()
    with Store.open(path) as store:
        (tmp_path / "there" / str(store.uuid)).write_bytes(b"")
    places = {"file": tmp_path / "there", "file above": tmp_path / "file", "link to nowhere": tmp_path / "link" / "x"}
    monkeypatch.setenv("ARCHIVER_DB_DIR", str(places[what]))
    heard = Heard()
    assert new_chunks(save(path, source, heard=heard)) == 0
    assert what == "link to nowhere" or [text for text in heard.notices if "going on without it" in text]
    assert damage(path) == []


def test_read_only_place(path: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "db").mkdir()
    monkeypatch.setenv("ARCHIVER_DB_DIR", str(tmp_path / "db"))
    save(path, source)
    with read_only_view(tmp_path / "db", tmp_path / "view") as view:
        monkeypatch.setenv("ARCHIVER_DB_DIR", str(view))
        before = listing(tmp_path / "db")
        heard = Heard()
        assert new_chunks(save(path, source, heard=heard)) == 0
        assert len(about_database(heard)) == 1 and "going on without it" in heard.notices[0]
        assert listing(tmp_path / "db") == before


@pytest.mark.parametrize("leave", [0, 64 << 10])
@pytest.mark.parametrize("exists", [False, True])
def test_full_place_is_told_from_damage(
    path: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, leave: int
) -> None:
    """The backup succeeds, the database is given up for this run and not thrown away."""
    with small_file_system(tmp_path, 8 << 20) as small:
        monkeypatch.setenv("ARCHIVER_DB_DIR", str(small))
        if exists:
            save(path, source)
        fill(small, leave)
        mutate(source, 9, 30)
        heard = Heard()
        result = save(path, source, heard=heard)
        assert restored_differences(path, result.snapshot, source, tmp_path / "out") == []
        assert list(small.rglob("damaged")) == []
        assert not any("not usable" in text for text in heard.notices), heard.notices
        (small / "filler").unlink()
        again = Heard()
        assert new_chunks(save(path, source, heard=again)) == 0
        if exists:
            assert about_database(again) == []
        with Store.open(path) as store:
            assert store.database is not None
            assert store.database.check() == []
            assert len(store.database.stamps()) == len(every_snapshot(store))


# -- map -------------------------------------------------------------------------------------------------------------


def rows(start: int, count: int) -> list[ChunkRow]:
    return [ChunkRow(number.to_bytes(32, "big"), 10, 20, bytes(32), 0) for number in range(start, start + count)]


@pytest.fixture
def small_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_FIRST_MAP", 256 << 10)
    monkeypatch.setattr(environment, "_SMALLEST_MAP", 64 << 10)


def opened(directory: Path) -> Database:
    database = open_database(str(directory), str(uuid.UUID(int=1)), Heard())
    assert database is not None
    return database


def test_map_grows(tmp_path: Path, small_map: None) -> None:
    database = opened(tmp_path / "db")
    for start in range(0, 20_000, 5000):
        database.put_chunks(rows(start, 5000))
    assert database.usable and database.statistics()["chunk"] == 20_000
    assert database.check() == []
    database.close()
    database = opened(tmp_path / "db")
    assert database.statistics()["chunk"] == 20_000
    database.close()


def test_map_grown_by_another_process(tmp_path: Path, small_map: None) -> None:
    database = opened(tmp_path / "db")
    database.put_chunks(rows(0, 10))
    script = f"""
import uuid
from archiver.store.database import environment
environment._FIRST_MAP, environment._SMALLEST_MAP = 256 << 10, 64 << 10
from tests.store.test_database_robustness import opened, rows
from pathlib import Path
database = opened(Path({str(tmp_path / "db")!r}))
database.put_chunks(rows(10, 20_000))
assert database.usable
database.close()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert database.statistics()["chunk"] == 20_010
    assert database.lookup((15_000).to_bytes(32, "big")) is not None
    database.put_chunks(rows(20_010, 1000))
    assert database.usable and database.statistics()["chunk"] == 21_010
    database.close()


def test_little_address_space(path: Path, place: Path) -> None:
    """Under ``ulimit -v`` the map is smaller."""
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from archiver.store.store import Store
with Store.open({str(path)!r}) as store:
    assert store.database is not None
    assert len(store.database.stamps()) == 3
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- several users ---------------------------------------------------------------------------------------------------


def test_two_stores_in_one_process_share_the_environment(path: Path, source: Path) -> None:
    with Store.open(path) as one, Store.open(path) as two:
        assert one.database is not None and two.database is not None
        one.database.put_chunks(rows(0, 5))
        assert two.database.lookup(bytes(32)) is not None
        one.close()
        assert two.database.lookup(bytes(32)) is not None
        assert len(environment._environments) == 1
    assert environment._environments == {}


def test_read_only_user_has_a_database_of_its_own(path: Path, source: Path) -> None:
    """One in the store could only be read past LMDB's table of readers; and whoever opens it first must not decide what
    the others in this process may do with it."""
    with Store.open(path, read_only=True) as reader:
        assert reader.database is not None
        assert not reader.database.directory.startswith(str(path))
        saved = save(path, source)
        assert reader.database.snapshot(saved.snapshot.path) is None
    with Store.open(path) as writer, Store.open(path, read_only=True) as reader:
        assert writer.database is not None and reader.database is not None
        assert writer.database.directory == str(database_file(path).parent)
        assert writer.database.stamps() == reader.database.stamps()
        assert len(reader.database.stamps()) == 4
        reader.database.put_chunks(rows(0, 1))
        assert writer.database.lookup(bytes(32)) is None


def test_read_only_user_does_not_touch_a_bad_database(path: Path) -> None:
    for name in ("data.mdb", "damaged"):
        database_file(path).with_name(name).write_bytes(b"garbage")
    before = listing(path)
    heard = Heard()
    with Store.open(path, read_only=True, listener=heard) as store:
        assert store.database is not None and len(store.database.stamps()) == 3
        store.rebuild_database()
    assert about_database(heard) == ["reading 3 snapshots into a new database"] * 2
    assert listing(path) == before


def test_file_removed_while_another_process_uses_it(path: Path, source: Path) -> None:
    """A new file must not be mixed with the lock file of the old one."""
    script = f"""
import sys
from archiver.store.store import Store
with Store.open({str(path)!r}) as store:
    assert store.database is not None
    print("open", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout is not None and user.stdout.readline() == "open\n"
        database_file(path).unlink()
        heard = Heard()
        assert new_chunks(save(path, source, heard=heard)) == 0
        assert len(heard.notices) == 1 and "going on without it" in heard.notices[0]
        user.communicate()
    assert user.returncode == 0
    with Store.open(path) as store:
        assert store.database is not None and len(store.database.stamps()) == 4


def test_damage_on_a_full_disk_is_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little space there is: a reader must get its answer."""
    import lmdb

    class Broken:
        def __init__(self, env: Any) -> None:
            self._env = env

        def begin(self, **arguments: Any) -> Any:
            raise lmdb.CorruptedError("broken")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._env, name)

    monkeypatch.setattr(environment, "nearly_full", lambda directory: True)
    heard = Heard()
    with Store.open(path, listener=heard) as store:
        database = store.database
        assert database is not None
        database._env.env = Broken(database._env.env)
        assert database.lookup(bytes(32)) is None
        assert not database.usable and store.database is None
        assert store.times(GROUP)
    assert "broken" in heard.notices[0]
    assert database_file(path).with_name("damaged").exists()
    with Store.open(path) as store:
        assert store.database is not None and len(store.database.stamps()) == 3


def test_use_after_fork_is_refused(path: Path) -> None:
    with Store.open(path) as store:
        assert store.database is not None
        child = os.fork()
        if child == 0:
            try:
                store.database.lookup(bytes(32))
            except RuntimeError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_database_at_all_is_an_error_only_for_db(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_DB_DIR", "/proc/nowhere")
    with Store.open(path) as store, pytest.raises(ArchiverError, match="no usable database"):
        store.require_database()


def test_numbers_are_not_used_again_after_a_rebuild(path: Path) -> None:
    """A backup that runs meanwhile remembers chunks by their numbers."""
    with Store.open(path) as store:
        database = store.database
        assert database is not None
        before = {database.lookup(bytes.fromhex(file.name)) for file in chunk_files(path)}
        store.rebuild_database()
        after = {database.lookup(bytes.fromhex(file.name)) for file in chunk_files(path)}
        assert None not in before | after
        assert not {found[0] for found in before if found} & {found[0] for found in after if found}
        assert database.check() == []
