"""A fresh machine with only the media, one snapshot of many, a disaster with a key, and a great many chunks."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archiver.core.clock import Clock
from archiver.core.events import ignore
from archiver.tape.known_set import KnownSet
from archiver.tape.media_sets.media_sets import MediaSets
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import InventoryFile
from archiver.tape.state.place import TapePlace
from archiver.tape.verify import verify
from bench.measure import run
from formats import blob
from formats.blob import BlobEncoder
from formats.crypt import CryptConfig
from formats.tape.blocks import BLOCK_SIZE
from formats.tape.catalog import ChunkFile, Entry, SnapshotEntry
from tests.cli.command import ask, call
from tests.formats.tape.media import document, logs
from tests.golden_store import KEY as GOLDEN_KEY
from tests.golden_store import write_key
from tests.random_trees import noise
from tests.stores import KEY, damage, make_store, restored_differences, save
from tests.sync.pair import finished
from tests.tape.media import golden_media
from tests.tape.restoring import Shelf, golden_catalog, restore_from, snapshots_of
from tests.tape.sets import in_set, medium
from tests.tape.sets import store as put_media

START = 1_700_000_000


def fresh_machine(media: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "fresh") -> None:
    """Nothing of this user but the media."""
    for place in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{place}_HOME", str(tmp_path / name / place.lower()))
    ask("tape", "drive", "add", "usb", "--path", media)
    ask("tape", "inventory", "--read-all-labels")


@pytest.mark.parametrize("name", ["single", "multi"])
def test_golden_media_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels, then the whole set without any catalog; it is catalogued on the way."""
    fresh_machine(golden_media(name, tmp_path / "media"), monkeypatch, tmp_path)
    target = make_store(tmp_path / "target")
    set_uuid = document(name)["dump"][1]["header"]["uuid"]
    dry = ask("--store", target, "tape", "restore", set_uuid, "--dry-run")
    assert all(visit["all_files"] for visit in dry["media"]) and dry["items"] == []
    done = ask("--store", target, "tape", "restore", set_uuid)
    assert [text.removeprefix("golden:") for text in done["restored"]] == snapshots_of(name)
    assert damage(target, GOLDEN_KEY) == []
    items = ask("tape", "media", "content")["items"]
    assert sorted(item["snapshot"] for item in items) == sorted(snapshots_of(name))
    assert ask("--store", target, "tape", "restore", set_uuid)["bytes_read"] == 0


def test_catalogs_from_golden_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second medium has the catalogs of both, so one is enough."""
    fresh_machine(golden_media("multi", tmp_path / "media"), monkeypatch, tmp_path)
    ask("tape", "load", "M002L8")
    found = ask("tape", "catalog")
    assert found == {
        "schema": 1,
        "label": "M002L8",
        "method": "fast",
        "chunk_archives": 1,
        "snapshots": 1,
        "chunks": 1,
        "others": ["M001L8"],
        "passed_over": [],
        "damaged": [],
    }
    assert call("tape", "catalog").code == 2, "there is one already"
    ask("tape", "load", "M001L8")
    scanned = ask("tape", "catalog", "--force")
    assert (scanned["method"], scanned["chunk_archives"], scanned["snapshots"], scanned["chunks"]) == ("scan", 3, 2, 20)
    ask("tape", "load", "M002L8")
    assert ask("tape", "catalog", "--force", "--scan")["method"] == "scan"
    target = make_store(tmp_path / "target")
    snapshot = snapshots_of("multi")[2]
    done = ask("--store", target, "tape", "restore", "M001L8", snapshot)
    assert done["restored"] == [f"golden:{snapshot}"] and done["files_read"] == 3
    assert call("tape", "verify", "M001L8").code == 0


def test_damage_in_catalogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog archive that is cut is not believed."""
    media = golden_media("single", tmp_path / "media")
    path = media / "tapefile-6-TAPE01.json"
    data = bytearray(path.read_bytes())
    data[9:12] = (int.from_bytes(data[9:12], "little") - 50).to_bytes(3, "little")
    path.write_bytes(data)
    fresh_machine(media, monkeypatch, tmp_path)
    ask("tape", "load", "TAPE01")
    done = call("tape", "catalog", "--json")
    assert done.code == 0 and done.document["method"] == "scan" and done.document["snapshots"] == 2
    path.write_bytes(bytes(BLOCK_SIZE))
    done = call("tape", "catalog", "--force", "--json")
    assert done.code == 20 and [each["file"] for each in done.document["damaged"]] == [6]
    assert done.document["snapshots"] == 2


# -- one snapshot of many --------------------------------------------------------------------------------------------


def many(tmp_path: Path, snapshots: int = 50) -> tuple[Path, Path]:
    """A store with snapshots that have 700 KiB of their own and 128 KiB in common, and their media."""
    store, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    tree.mkdir()
    (tree / "common").write_bytes(noise(999, 128 << 10))
    for number in range(snapshots):
        (tree / "own").write_bytes(noise(number, 700 << 10))
        save(store, tree, time=START + number)
    media = tmp_path / "media"
    ask("tape", "drive", "add", "usb", "--path", media, "--max-size", "20M")
    ask("tape", "pool", "create", "daily")
    for label in ("M1", "M2", "M3"):
        ask("tape", "label", "--label-text", label, "--pool", "daily")
    done = ask("--store", store, "tape", "backup", "daily")
    assert len(done["written"]) == snapshots and done["media"] == ["M1", "M2", "M3"]
    return store, media


def test_one_of_fifty(tmp_path: Path) -> None:
    """Only its own archive and those with its chunks are read."""
    store, media = many(tmp_path)
    snapshots = finished(store)
    for number in (0, 49, 25):
        target = make_store(tmp_path / f"target-{number}")
        dry = ask("--store", target, "tape", "restore", "daily", snapshots[number].path, "--dry-run")
        done = ask("--store", target, "tape", "restore", "daily", snapshots[number].path)
        assert done["restored"] == [f"test:{snapshots[number].path}"] and finished(target) == [snapshots[number]]
        assert done["files_read"] <= 3 and len(done["media_read"]) <= 2
        assert done["bytes_read"] <= 12 * BLOCK_SIZE
        assert done["media_read"] == [visit["label"] for visit in dry["media"]]
        assert damage(target) == []
    sizes = sum(file.stat().st_size for file in media.glob("tapefile-*"))
    assert sizes > 200 * BLOCK_SIZE
    one_medium_is_away(tmp_path, store, media)


def one_medium_is_away(tmp_path: Path, store: Path, media: Path) -> None:
    """What does not need it is restored; what does ends with exit code 13 and names it."""
    away = tmp_path / "away"
    away.mkdir()
    for path in media.glob("*-M2.json"):
        shutil.move(path, away)
    if (media / "drive-status.json").exists():
        (media / "drive-status.json").unlink()
    target = make_store(tmp_path / "target")
    items = [item for item in ask("tape", "media", "content")["items"] if item["label-text"] != "M2"]
    first = items[0]["snapshot"]
    assert ask("--store", target, "tape", "restore", "daily", first)["restored"] == [f"test:{first}"]
    done = call("--store", target, "tape", "restore", "daily", "--json")
    assert done.code == 13 and "M2" in done.document["error"]["message"]
    assert {f"test:{item['snapshot']}" for item in items if item["label-text"] == "M1"} <= {
        *done.document["restored"],
        f"test:{first}",
    }
    assert damage(target) == []
    assert call("--store", target, "tape", "restore", "daily", "-q").code == 13
    for path in away.iterdir():
        shutil.move(path, media)
    assert ask("--store", target, "tape", "restore", "daily")["problems"] == []
    assert finished(target) == finished(store)


# -- a disaster ------------------------------------------------------------------------------------------------------


def test_disaster_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new machine, the media and the key: everything is there again, to the last attribute."""
    store, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    tree.mkdir()
    for number in range(3):
        (tree / f"file-{number}").write_bytes(noise(number, 300_000))
        save(store, tree, time=START + number, crypt=KEY)
    ask("tape", "drive", "add", "usb", "--path", tmp_path / "media", "--max-size", "2M")
    ask("tape", "pool", "create", "sealed", "--require-encryption")
    for label in ("ONE", "TWO", "THREE"):
        ask("tape", "label", "--label-text", label, "--pool", "sealed")
    assert len(ask("--store", store, "tape", "backup", "sealed")["written"]) == 3
    snapshots = finished(store)
    shutil.rmtree(store)
    fresh_machine(tmp_path / "media", monkeypatch, tmp_path)
    target = make_store(tmp_path / "target")
    keyfile = write_key(tmp_path / "key.json", bytes(range(32)))
    done = ask("--store", target, "--keyfile", keyfile, "tape", "restore", "sealed")
    assert len(done["restored"]) == 3 and finished(target) == snapshots
    assert damage(target, KEY) == []
    assert restored_differences(target, snapshots[-1], tree, tmp_path / "out", KEY) == []
    checked = ask("--keyfile", keyfile, "tape", "verify", "sealed")
    assert checked["unchecked"] == 0 and checked["snapshots"] == 3 and checked["items"] == []


def test_key_finds_what_a_crc_does_not(tmp_path: Path) -> None:
    """A chunk of another key in the place of a chunk: its CRC is right."""

    media = golden_media("multi", tmp_path / "media")
    path = media / "tapefile-4-M001L8.json"
    data = bytearray(path.read_bytes())
    at = data.index(bytes.fromhex("48576df2de428fdc")) + 48
    length = int.from_bytes(data[at - 8 : at], "little")
    plain = blob.decode(bytes(data[at : at + length]), GOLDEN_KEY)
    other = b"".join(map(bytes, _encoded(plain, CryptConfig(bytes(32)))))
    assert len(other) == length
    data[at : at + length] = other
    path.write_bytes(data)
    target = make_store(tmp_path / "target")
    done = restore_from(media, golden_catalog("multi", logs("multi")), target, crypt=GOLDEN_KEY)
    assert [problem.name for problem in done.result.problems] == [f"golden:{snapshots_of('multi')[1]}"]
    assert len(done.result.restored) == 2 and damage(target, GOLDEN_KEY) == []
    shelf, catalog = Shelf(media), golden_catalog("multi", logs("multi"))
    found = verify(catalog, catalog.members, shelf, GOLDEN_KEY, ignore, Clock())
    shelf.close()
    assert [(error.file, "its key does not open it" in error.reason) for error in found.errors] == [(5, True)]


def _encoded(plain: bytes, crypt: Any) -> tuple[bytes, Any]:

    return BlobEncoder(crypt).encode(plain, bytes(16))


# -- a great many chunks ---------------------------------------------------------------------------------------------


def test_a_million_chunks(tmp_path: Path) -> None:
    """Which of a snapshot's chunks are where is known in a second, and in bounded memory."""
    place = TapePlace(str(tmp_path / "state/archiver/tape"))
    one = in_set(medium("ONE"), "daily", "set", 0, 5)
    put_media(place, one)
    digests = np.random.default_rng(5).integers(0, 256, (1_000_000, 32), np.uint8)
    label = one.in_set
    assert label is not None
    entries: list[Entry] = []
    for number in range(10):
        part = digests[number * 100_000 : (number + 1) * 100_000]
        entries.append(ChunkFile(2 + 2 * number, bytes(16), "s", part))
        entries.append(SnapshotEntry(3 + 2 * number, bytes(16), "s", f"host/x/2023-11-14T22:13:2{number}Z"))
    CatalogLogs(place).rebuild(one.uuid, label.uuid, 0, entries)
    homes = {f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("STATE", "CACHE")}
    command = [sys.executable, "-m", "archiver", "tape", "media", "content"]
    log = tmp_path / "log"
    done = run(command, environment={**os.environ, **homes}, cwd=tmp_path, output=log)
    assert done.code == 0 and log.read_text().count("host/x/") == 10
    assert done.usage.anon < 256 << 20 and done.usage.cpu < 30
    with MediaSets(place, ignore, homes) as sets:
        known = KnownSet(place, sets, InventoryFile(place).load().media_set(label.uuid))
        wanted = np.unique(digests[::10].view("V32").ravel()).view(np.uint8).reshape(-1, 32)
        began = time.process_time()
        positions, files = known.find_chunks("s", wanted)
        assert time.process_time() - began < 1.0
        assert (positions == 0).all() and set(files.tolist()) == {2 + 2 * number for number in range(10)}
        assert len(known.absent("s", wanted)) == 0
