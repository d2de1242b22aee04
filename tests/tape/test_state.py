"""The files of the tape state: what is written is read again, a PBS's is taken over, hostile ones are refused."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.errors import ArchiverError, Damaged, Held, NotFound, TooNew, UsageError
from archiver.tape.labelling import forget
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.drives import ChangerConfig, DriveConfig, Drives
from archiver.tape.state.inventory import InventoryFile, Location, Medium
from archiver.tape.state.place import TapePlace
from archiver.tape.state.pools import Pool, Pools
from archiver.tape.state.takeover import take_over
from formats.tape.labels import NO_SET, MediaLabel, MediaSetLabel
from tests.formats.tape.media import logs
from tests.tape.media import golden_logs
from tests.tape.sets import (
    append,
    archive,
    digests,
    in_set,
    inventory_of,
    medium,
    new_place,
    online,
    snapshot,
    store,
    uuid_of,
)

ONE, TWO = in_set(medium("ONE"), "pool", "set", 0, 10), in_set(medium("TWO"), "pool", "set", 1, 20)


@pytest.fixture
def place(tmp_path: Path) -> TapePlace:
    return new_place(tmp_path)


# -- inventory ---------------------------------------------------------------------------------------------------------

PBS_INVENTORY = """[
  {
    "id": {
      "label": {
        "label_text": "TAPE01",
        "uuid": "13998850-57f6-4bad-be54-b4392eb4e340",
        "ctime": 1700000000,
        "pool": "pool-A"
      },
      "media_set_label": {
        "pool": "pool-A",
        "uuid": "7488bcea-cd05-4648-89ba-d9ee0ff5aade",
        "seq_nr": 0,
        "ctime": 1700000100,
        "encryption_key_fingerprint": "FINGERPRINT"
      }
    },
    "location": "vault-attic",
    "status": "full",
    "bytes_used": 123,
    "something-new": [1]
  },
  {"id": {"label": {"label_text": "TAPE02", "uuid": "49043fc035884801818a62faed6e317b", "ctime": 5}}}
]""".replace("FINGERPRINT", ":".join(["ab"] * 32))


def test_inventory_of_a_pbs(place: TapePlace) -> None:
    place.write("inventory.json", PBS_INVENTORY.encode())
    inventory = InventoryFile(place).load()
    first, second = inventory.find("TAPE01"), inventory.find("TAPE02")
    assert first.in_set is not None and first.in_set.fingerprint == b"\xab" * 32
    assert (str(first.location), first.status, first.bytes_used, first.pool) == ("vault-attic", "full", 123, "pool-A")
    assert (str(second.location), second.status, second.in_set, second.pool) == ("offline", None, None, None)
    assert inventory.find("13998850-57f6-4bad-be54-b4392eb4e340") is first
    InventoryFile(place).change(lambda known: known.put(replace(second, status="retired")))
    again = InventoryFile(place).load()
    assert again.find("TAPE01") == first and again.find("TAPE02").status == "retired"
    written = json.loads(place.read("inventory.json") or b"")
    assert [entry["id"]["label"]["label_text"] for entry in written] == ["TAPE01", "TAPE02"]
    assert written[1] == {
        "id": {"label": {"ctime": 5, "label_text": "TAPE02", "uuid": "49043fc0-3588-4801-818a-62faed6e317b"}},
        "location": "offline",
        "status": "retired",
    }


labels = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9._-]{1,31}\Z")
uuids = st.binary(min_size=16, max_size=16)
times = st.integers(0, 2**63 - 1)
numbers = st.integers(0, 2**16 - 1)
prints = st.none() | st.binary(min_size=32, max_size=32)
media = st.builds(
    Medium,
    st.builds(MediaLabel, labels, uuids, times, st.none() | labels),
    st.none()
    | st.builds(
        MediaSetLabel, labels, uuids, numbers, times, st.none() | st.binary(min_size=32, max_size=32), st.none()
    ),
    st.just(Location("offline")) | st.builds(Location, st.just("online"), labels) | st.just(Location("vault", "attic")),
    st.sampled_from([None, "full", "damaged", "retired"]),
    st.none() | times,
)


@given(media)
def test_inventory_round_trip(each: Medium) -> None:
    assert Medium.from_json(json.loads(json.dumps(each.as_json()))) == each


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "3", "[3]", "[{}]", '[{"id": 3}]', '[{"id": {"label": 3}}]', "[" * 100_000, "\0" * 100,
        '[{"id": {"label": {"label_text": "../x", "uuid": "13998850-57f6-4bad-be54-b4392eb4e340", "ctime": 1}}}]',
        '[{"id": {"label": {"label_text": "T1", "uuid": "x", "ctime": 1}}}]',
        '[{"id": {"label": {"label_text": "T1", "uuid": "13998850-57f6-4bad-be54-b4392eb4e340", "ctime": 1.5}}}]',
        PBS_INVENTORY.replace("123", '"123"'), PBS_INVENTORY.replace("vault-attic", "vault-../../x"),
        PBS_INVENTORY.replace('"vault-attic"', "7"), PBS_INVENTORY.replace('"seq_nr": 0', '"seq_nr": 65536'),
        PBS_INVENTORY.replace("49043fc035884801818a62faed6e317b", "13998850-57f6-4bad-be54-b4392eb4e340"),
    ],
)  # fmt: skip
def test_hostile_inventory(place: TapePlace, text: str) -> None:
    place.write("inventory.json", text.encode())
    with pytest.raises(Damaged):
        InventoryFile(place).load()
    with pytest.raises(Damaged):
        InventoryFile(place).change(lambda known: known.put(ONE))
    assert place.read("inventory.json") == text.encode()  # what may be mended by hand stays


def test_no_state_is_an_empty_one(place: TapePlace) -> None:
    assert list(InventoryFile(place).load()) == [] and Pools(place).all() == {}
    assert not Drives(place).load().drives and CatalogLogs(place).media() == []
    assert not os.path.exists(place.path)  # reading never writes


def test_same_label_twice(place: TapePlace) -> None:
    store(place, medium("AA"), replace(medium("AB"), label=MediaLabel("AA", uuid_of("x"), 1)))
    inventory = InventoryFile(place).load()
    with pytest.raises(UsageError):
        inventory.find("AA")
    with pytest.raises(UsageError):
        InventoryFile(place).check_new_label("AA")
    with pytest.raises(NotFound):
        inventory.find("AC")


def test_locations() -> None:
    attic = Location.vault("attic")
    inventory = inventory_of(
        online(medium("HERE"), "lib"), online(medium("GONE"), "lib"), medium("SHELF"), medium("SHELF2"),
        replace(medium("VAULT"), location=attic), replace(medium("BACK"), location=attic),
        online(medium("ELSE"), "other"), online(medium("LOST"), "removed"),
    )  # fmt: skip

    def where() -> dict[str, str]:
        return {each.name: str(each.location) for each in inventory}

    before = where()
    inventory.update_online("lib", None, ["lib", "other", "removed"])  # it could not be asked
    assert where() == before
    inventory.update_online("lib", ["HERE", "SHELF", "BACK", "UNKNOWN"], ["lib", "other"])
    assert where() == {
        "HERE": "online-lib", "GONE": "offline", "SHELF": "online-lib", "SHELF2": "offline", "VAULT": "vault-attic",
        "BACK": "online-lib", "ELSE": "online-other", "LOST": "offline",
    }  # fmt: skip


def test_labels_that_are_read(place: TapePlace) -> None:
    reserved = replace(medium("OLD"), set_label=MediaSetLabel("pool", NO_SET, 0, 5), status="full", bytes_used=7)
    store(place, online(reserved, "lib"))
    read = InventoryFile(place).change(lambda known: known.store_labels(reserved.label, None, keep_status=True))
    assert read.set_label == reserved.set_label and (read.status, read.bytes_used) == ("full", 7)
    assert str(read.location) == "online-lib"
    read = InventoryFile(place).change(lambda known: known.store_labels(ONE.label, ONE.set_label, keep_status=False))
    assert read == ONE
    with pytest.raises(Held):
        forget(place, read, force=False)
    forget(place, read, force=True)
    assert ONE.uuid not in InventoryFile(place).load().media


# -- pools and drives --------------------------------------------------------------------------------------------------


def test_pools(place: TapePlace) -> None:
    pools = Pools(place)
    made = Pool.make("weekly", allocation="sat 18:15", retention="30d", template="set-%Y-%id%", comment="x")
    pools.create(made)
    assert Pools(place).get("weekly") == made
    with pytest.raises(UsageError):
        pools.create(made)
    changed = pools.update("weekly", lambda pool: replace(pool, require_encryption=True))
    assert Pools(place).all() == {"weekly": changed} and changed.require_encryption
    assert made.set_name(uuid_of("set"), 0).startswith("set-19")
    assert made.set_name(uuid_of("set"), None) in made.set_name(uuid_of("set"), 0)
    pools.remove("weekly")
    with pytest.raises(NotFound):
        pools.get("weekly")
    with pytest.raises(NotFound):
        pools.remove("weekly")


@pytest.mark.parametrize(
    "options",
    [
        {"name": "x"}, {"name": "a/b"}, {"name": "ab", "allocation": "sometimes"}, {"name": "ab", "retention": "long"},
        {"name": "ab", "template": "x"}, {"name": "ab", "template": "x" * 65}, {"name": "ab", "encrypt": "key"},
        {"name": "ab", "comment": "a\nb"},
    ],
)  # fmt: skip
def test_wrong_pools(options: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        Pool.make(**options)  # type: ignore[arg-type]


DRIVE = DriveConfig("usb", "virtual", "/mnt/usb/tapes", 900 << 30, "/mnt/usb")


def test_drives(place: TapePlace) -> None:
    drives = Drives(place)
    drives.add_drive(DRIVE)
    drives.add_changer(ChangerConfig("lib", "/dev/sg3", (7, 8)))
    drives.add_drive(DriveConfig("lto", "st", "/dev/nst0", changer="lib", changer_drive=1))
    found = drives.load()
    assert found.drive("usb") == DRIVE and found.changer("lib").export_slots == (7, 8)
    assert found.libraries == ["lib", "usb"]
    with pytest.raises(UsageError, match="2 drives"):
        found.chosen(None)
    wrong = [
        DRIVE,
        DriveConfig("a1", "virtual", "relative"),
        DriveConfig("a1", "virtual", "/x", 5),
        DriveConfig("a1", "st", "/dev/nst1", 1 << 30),
        DriveConfig("a1", "virtual", "/x", changer="lib"),
        DriveConfig("a1", "st", "/dev/nst1", changer="none"),
    ]
    for config in wrong:
        with pytest.raises((UsageError, NotFound)):
            drives.add_drive(config)
    with pytest.raises(UsageError):
        drives.add_changer(ChangerConfig("usb", "/dev/sg1"))
    with pytest.raises(UsageError, match="loads the drive lto"):
        drives.remove_changer("lib")
    with pytest.raises(NotFound):
        drives.remove_drive("none")
    drives.remove_drive("lto")
    drives.remove_changer("lib")
    assert drives.load().chosen(None) == DRIVE


@pytest.mark.parametrize("name", ["pools.json", "drives.json"])
def test_hostile_documents(place: TapePlace, name: str) -> None:
    Pools(place).create(Pool.make("weekly", allocation="daily", encrypt=":".join(["ab"] * 32)))
    Drives(place).add_drive(DRIVE)
    Drives(place).add_changer(ChangerConfig("lib", "/dev/sg3", (7, 8)))
    good = place.read(name) or b""
    rng = random.Random(3)
    values: list[Any] = [None, 3, -1, 1.5, True, "x", "", "/", [], [3], {}, {"name": 3}, "x" * 10**5, 10**30]
    outcomes = set()
    for _ in range(300):
        document = json.loads(good)
        target: Any = document
        while isinstance(target, (dict, list)) and target:
            key = rng.choice(list(target) if isinstance(target, dict) else range(len(target)))
            if rng.random() < 0.4 or not isinstance(target[key], (dict, list)) or not target[key]:
                target[key] = rng.choice(values)
                break
            target = target[key]
        place.write(name, json.dumps(document).encode())
        try:
            Pools(place).all()
            Drives(place).load()
            outcomes.add("good")
        except (Damaged, TooNew):
            outcomes.add("refused")
    assert outcomes == {"good", "refused"}
    for data in (b"", b"[]", b"\xff", b"{" * 1000, good[:-9]):
        place.write(name, data)
        with pytest.raises(Damaged):
            Pools(place).all()
            Drives(place).load()
    place.write(name, b'{"schema": 99}')
    with pytest.raises(TooNew):
        Pools(place).all()
        Drives(place).load()


# -- catalog logs ------------------------------------------------------------------------------------------------------


def test_log(place: TapePlace) -> None:
    found = CatalogLogs(place)
    append(place, TWO, archive(3, digests(0, 5)), snapshot(4, "host/a/2023-11-14T22:13:20Z"))
    append(place, TWO, archive(6, digests(5, 2), "other"))
    catalog = found.load(TWO.uuid)
    assert catalog is not None and (catalog.media_set, catalog.seq_nr, catalog.last_file) == (uuid_of("set"), 1, 6)
    assert [(each.file, each.store, len(each.digests)) for each in catalog.archives] == [(3, "s", 5), (6, "other", 2)]
    assert [each.path for each in catalog.snapshots] == ["host/a/2023-11-14T22:13:20Z"]
    assert found.is_of(TWO.uuid, uuid_of("set"), 1) and not found.is_of(TWO.uuid, uuid_of("set"), 0)
    assert not found.is_of(ONE.uuid, uuid_of("set"), 0) and not found.is_of(TWO.uuid, uuid_of("other"), 1)
    assert found.media() == [TWO.uuid] and found.load(ONE.uuid) is None
    log = found.open(TWO.uuid, uuid_of("set"), 1)
    for number in (6, 5, 0):
        with pytest.raises(ValueError):
            log.add(snapshot(number, "host/a/2023-11-14T22:13:20Z"))
    before = Path(found.path(TWO.uuid)).read_bytes()
    log.add(snapshot(9, "host/a/2023-11-14T22:13:21Z"))
    assert Path(found.path(TWO.uuid)).read_bytes() == before  # nothing before it is committed
    for media_set, number in ((uuid_of("other"), 1), (uuid_of("set"), 0)):
        with pytest.raises(Damaged):
            found.open(TWO.uuid, media_set, number)
    with pytest.raises(NotFound):
        found.open(ONE.uuid, uuid_of("set"), 0)


def test_torn_log(place: TapePlace) -> None:
    """Cut anywhere, it has what is complete; written on, the torn end is gone, and it is known that there was one."""
    found = CatalogLogs(place)
    append(place, ONE, archive(2, digests(0, 3)), snapshot(3, "host/a/2023-11-14T22:13:20Z"))
    path = Path(found.path(ONE.uuid))
    whole = path.read_bytes()
    start = len(whole) - 200
    for cut in (*range(start, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:cut])
        catalog = found.load(ONE.uuid)
        assert catalog is not None and catalog.end <= cut and len(catalog.snapshots) == 0
        assert bytes(found.read(ONE.uuid)) == whole[: catalog.end]
    assert found.unsure(ONE.uuid) is None
    append(place, ONE, snapshot(5, "host/b/2023-11-14T22:13:20Z"))
    catalog = found.load(ONE.uuid)
    assert catalog is not None and catalog.torn is None and [each.file for each in catalog.snapshots] == [5]
    assert found.unsure(ONE.uuid) is not None
    found.replace(ONE.uuid, whole)
    assert found.unsure(ONE.uuid) is None and path.read_bytes() == whole
    with pytest.raises(Damaged):
        found.replace(ONE.uuid, whole[:-1])
    with pytest.raises(Damaged):
        found.replace(TWO.uuid, whole)
    assert path.read_bytes() == whole and found.load(TWO.uuid) is None


def test_failed_append(place: TapePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that fails leaves the log as it was."""
    append(place, ONE, archive(2, digests(0, 3)))
    found = CatalogLogs(place)
    before = Path(found.path(ONE.uuid)).read_bytes()
    log = found.open(ONE.uuid, uuid_of("set"), 0)
    log.add(archive(3, digests(3, 100)))
    monkeypatch.setattr(os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ArchiverError):
        log.commit()
    monkeypatch.undo()
    assert Path(found.path(ONE.uuid)).read_bytes() == before
    log.commit()
    catalog = found.load(ONE.uuid)
    assert catalog is not None and catalog.last_file == 3


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"\x4c\x8e\xe8\xc1\x20\xa8\x89\x71", b"L" * 1000])
def test_hostile_logs(place: TapePlace, data: bytes) -> None:
    place.write(CatalogLogs(place).name(ONE.uuid), data)
    with pytest.raises(Damaged):
        CatalogLogs(place).load(ONE.uuid)


# -- taking over from a PBS --------------------------------------------------------------------------------------------


def test_take_over(place: TapePlace, tmp_path: Path) -> None:
    pbs = golden_logs("single", tmp_path / "pbs")
    (pbs / "inventory.json").write_text(PBS_INVENTORY)
    with pytest.raises(NotFound):
        take_over(place, str(tmp_path))
    before = {file.name: file.read_bytes() for file in pbs.iterdir()}
    result = take_over(place, str(pbs))
    assert [each.name for each in result.media] == ["TAPE01", "TAPE02"]
    assert [each.name for each in result.catalogs] == ["TAPE01"] and result.problems == []
    (log,) = logs("single").values()
    assert Path(CatalogLogs(place).path(result.media[0].uuid)).read_bytes() == log
    again = take_over(place, str(pbs))
    assert not again.media and not again.catalogs and not again.problems
    assert {file.name: file.read_bytes() for file in pbs.iterdir()} == before


def test_take_over_what_is_torn_or_known(place: TapePlace, tmp_path: Path) -> None:
    pbs = golden_logs("single", tmp_path / "pbs")
    (pbs / "inventory.json").write_text(PBS_INVENTORY)
    (name,) = logs("single")
    (pbs / name).write_bytes(logs("single")[name][:-3])
    store(place, medium("TAPE02"))  # another one with that label
    result = take_over(place, str(pbs))
    assert [each.name for each in result.media] == ["TAPE01"] and len(result.problems) == 1
    assert CatalogLogs(place).unsure(result.media[0].uuid) is not None
    (pbs / name).write_bytes(logs("single")[name])
    assert len(take_over(place, str(pbs)).catalogs) == 1
    assert CatalogLogs(place).unsure(result.media[0].uuid) is None
    (pbs / name).write_bytes(b"rubbish")
    assert len(take_over(place, str(pbs)).problems) == 2
