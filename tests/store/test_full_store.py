"""A disk of 64 MiB that fills up, of each file system: nothing is lost, and what makes room works with 0 bytes free."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from archiver.errors import NoSpace
from archiver.store.database.records import ChunkRow
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from tests.cli.command import call
from tests.mounts import fill, small_file_system
from tests.random_trees import build_plain, noise
from tests.stores import Heard, archiver, chunk_files, damage, every_snapshot, make_store, restored_differences, save
from tests.sync.pair import finished

MIB = 1 << 20
KINDS = ("ext4", "xfs", "btrfs")
FILES = 30  # of 1 MiB
BALLAST = 28 * MIB  # what can be taken away to make room


@dataclass
class Place:
    """``saved``: snapshots of ``old``; ``large`` does not fit beside them."""

    kind: str
    path: Path
    old: Path
    large: Path
    saved: list[SnapshotRef]

    def run(self, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
        done = call("--json", "--store", self.path, *arguments)
        return done.code, done.document

    def fill_up(self) -> dict[str, Any]:
        """A backup that does not fit, in a process of its own; the error that it ends with."""
        done = archiver("--json", "--store", self.path, "backup", *self.too_large)
        assert done.returncode == 40 and "Traceback" not in done.stderr, done.stdout + done.stderr
        error: dict[str, Any] = json.loads(done.stdout)["error"]
        assert error["code"] == "no-space" and error["hint"]
        return error

    @property
    def too_large(self) -> tuple[str | Path, ...]:
        return self.large, "--id", "large", "--chunk-size", "64"

    def reserve(self) -> bool:
        return (self.path / ".archiver/reserve").exists()

    def check(self, out: Path, saved: int = -1) -> None:
        """The database is fine, and every snapshot of ``old`` restores; the newest one is as ``old`` is now."""
        with Store.open(self.path, read_only=True) as store:
            assert set(every_snapshot(store)) >= set(self.saved)
        code, document = self.run("db", "check")
        few = os.statvfs(self.path).f_bavail * 4096 < 16 * MIB
        assert code == 0 or (self.kind == "btrfs" and few), document  # it is left alone there
        assert damage(self.path) == []
        assert restored_differences(self.path, self.saved[saved], self.old, out) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that have not changed in the moment before they are looked at."""
    large = tmp_path_factory.mktemp("large")
    for number in range(FILES):
        (large / f"file-{number:02}").write_bytes(noise(number, MIB))
    time.sleep(2.1)
    return large


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    monkeypatch.delenv("ARCHIVER_RESERVE")
    with small_file_system(tmp_path, 64 * MIB, kind=request.param) as disk:
        (disk / "cache").mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(disk / "cache"))  # so that the database is in the store
        made = Place(request.param, make_store(disk / "store"), tmp_path / "old", large, [])
        build_plain(made.old, 1, files=20, max_size=50_000)
        (made.old / "own").write_bytes(noise(99, 8 * MIB))
        made.saved.append(save(made.path, made.old, mode="metadata").snapshot)
        assert (made.path / ".archiver/db/data.mdb").exists() and made.reserve()
        (made.old / "own").write_bytes(noise(98, 1000))
        made.saved.append(save(made.path, made.old, mode="metadata").snapshot)
        with open(disk / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, BALLAST)
        yield made


def test_backup_that_fills_the_disk(place: Place, tmp_path: Path) -> None:
    """It ends with 40 and has given up the reserve; forget and gc make room with 0 bytes free; the next run goes on."""
    assert "then gc" in place.fill_up()["hint"]
    assert not place.reserve()
    assert len(list((place.path / ".archiver/sessions").iterdir())) == 1, "there is nothing to go on with"
    place.check(tmp_path / "first")

    fill(place.path.parent)
    assert "are kept for making room" in place.fill_up()["message"] or place.kind == "btrfs"
    code, document = place.run("forget", str(place.saved[0]))
    assert (code, document["removed"]) == (0, [str(place.saved[0])])
    told = place.run("du")[1]  # without a database on a btrfs: it could not even be read without killing the process
    code, document = place.run("gc")
    assert code == 0 and document["complete"], document
    assert document["removed_bytes"] > 7 * MIB
    assert told.get("unused_bytes") == document["removed_bytes"] or place.kind == "btrfs"
    assert place.run("prune", "--keep-last", "1")[0] == 0
    assert place.saved.pop(0) is not None
    place.check(tmp_path / "second")

    for name in ("filler", "ballast"):
        (place.path.parent / name).unlink()
    code, document = place.run("backup", *place.too_large)
    assert code == 0, document
    assert document["bytes_read"] < (FILES - 4) * MIB, "what it had stored was read again"
    assert place.reserve() and os.listdir(place.path / ".archiver/sessions") == []
    place.check(tmp_path / "third")
    ref = finished(place.path)[0]
    assert ref.group.id == "large"
    assert restored_differences(place.path, ref, place.large, tmp_path / "fourth") == []


def test_giving_up_an_interrupted_backup(place: Place, tmp_path: Path) -> None:
    """Otherwise its chunks would be kept for 30 days."""
    place.fill_up()
    code, document = place.run("gc")
    assert code == 0 and document["removed_bytes"] < 2 * MIB
    would = place.run("gc", "--interrupted", "--dry-run")[1]
    assert len(os.listdir(place.path / ".archiver/sessions")) == 1
    code, document = place.run("gc", "--interrupted")
    assert code == 0 and document["removed_bytes"] == would["removed_bytes"] > 4 * MIB
    assert os.listdir(place.path / ".archiver/sessions") == []
    place.check(tmp_path / "out")
    assert place.run("backup", place.old, "--id", "test")[0] == 0
    assert place.reserve()


def test_everything_else_on_a_full_disk(place: Place, tmp_path: Path) -> None:
    """With 0 bytes free and no reserve: reading works, what cannot be done ends with 40, and afterwards all is well."""
    with Store.open(place.path) as store:
        assert store.give_up_reserve()
    fill(place.path.parent)
    for arguments in (["snapshots"], ["ls", "latest"], ["status"], ["gc", "--dry-run"], ["du"], ["db", "check"]):
        assert place.run(*arguments)[0] == 0 or (place.kind == "btrfs" and "d" in arguments[0][0]), arguments
    code, document = place.run("verify")
    assert code in (0, 40), document
    assert place.run("protect", "latest")[0] in (0, 40)
    assert place.run("protect", "latest", "--off")[0] == 0
    assert place.run("note", "latest", "a note")[0] in (0, 40)
    assert place.run("ns", "create", "attic")[0] in (0, 40)
    assert place.run("gc", "--from-files")[0] == 0
    assert place.run("prune", "--keep-last", "1")[0] == 0
    place.saved.pop(0)
    (place.path.parent / "filler").unlink()
    assert place.run("verify")[0] == 0
    place.check(tmp_path / "out")


def test_a_sync_is_refused_before_it_copies(place: Place, tmp_path: Path) -> None:
    """But not where the file system itself may compress; not when it fits; and not for chunks whose files are there."""
    source = make_store(tmp_path / "source")
    save(source, place.large, group=GroupRef("", "host", "large"))
    before = place.run("status")[1]
    code, document = place.run("sync", source, place.path)
    assert code == 40, document
    text = document["error"]["message"]
    if place.kind == "btrfs":
        assert text.startswith("no space left to write ")
        return
    assert "30 MiB are missing there" in text and "--transfer-last" in document["error"]["hint"]
    assert place.run("status")[1]["available"] == before["available"]
    (place.path.parent / "ballast").unlink()
    left = 24 * MIB
    for file in chunk_files(source):  # as an interrupted sync leaves them: the database does not know them
        if left > 0:
            to = place.path / ".chunks" / file.parent.name / file.name
            to.parent.mkdir(exist_ok=True)
            to.write_bytes(file.read_bytes())
            left -= file.stat().st_size
    assert place.run("status")[1]["available"] < FILES * MIB
    code, document = place.run("sync", source, place.path)
    assert code == 0, document.get("error")
    place.check(tmp_path / "out")


def test_the_database_on_a_full_disk(place: Place, tmp_path: Path) -> None:
    """A commit that needs more than there is has the reserve given up, and is made; the next one that does not fit ends
    the use of the database for this process, and no more. A btrfs would kill the process: there it is not tried."""
    heard = Heard()
    if place.kind == "btrfs":
        with Store.open(place.path, listener=heard) as store:
            database = store.database
            assert database is not None
            fill(place.path.parent)
            assert database.lookup(noise(1, 32)) is None
            assert not database.usable and not place.reserve() and "no space left to use" in heard.notices[0]
        (place.path.parent / "filler").unlink()
        place.check(tmp_path / "out")
        return
    fill(place.path.parent)
    rows = [ChunkRow(noise(number, 32), 5, 5, bytes(32), 0) for number in range(12_000)]
    with Store.open(place.path, listener=heard) as store:
        database = store.database
        assert database is not None
        assert place.reserve()
        database.put_chunks(rows[:1500])
        assert heard.notices == []
        assert not place.reserve()
        assert database.lookup(rows[1499].digest) is not None
        database.put_chunks(rows[1500:])
        assert not database.usable and "no space left to write the database" in heard.notices[0]
        with pytest.raises(NoSpace, match="no space left to use the database in"):
            store.require_database()
    with Store.open(place.path) as store:
        database = store.database
        assert database is not None and database.check() == []
        assert database.lookup(rows[0].digest) is not None and database.lookup(rows[-1].digest) is None
    place.check(tmp_path / "out")
