"""Labels on media: read exactly, written byte for byte as the reference does, foreign media left alone."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from archiver.core.events import Event, Notice, ignore
from archiver.errors import Held, KeyProblem, TargetAbsent, UsageError
from archiver.keys.make import key_time, new_key
from archiver.tape.access import Access, open_access
from archiver.tape.drive.interface import NoMedium
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.keys import TapeKeys, drive_key, use_key
from archiver.tape.labelling import NotLabelled, enter, erase, label_all, label_medium, read_all, read_medium
from archiver.tape.labels import NotALabel, read_labels, write_label, write_set_label
from archiver.tape.request import WrongMedium, request_medium
from archiver.tape.scan import scan
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.drives import DriveConfig, Drives
from archiver.tape.state.inventory import InventoryFile
from archiver.tape.state.place import TapePlace
from archiver.tape.state.pools import Pool, Pools
from formats.crypt import CryptConfig
from formats.keyfile import KeyFile, Pbkdf2
from formats.tape.blocks import PAYLOAD_SIZE
from formats.tape.content import decode_uuid
from formats.tape.labels import MediaLabel, MediaSetLabel
from tests.formats.tape.media import SETS, files
from tests.tape.media import golden_media, put_stream
from tests.tape.sets import medium, new_place, uuid_of


@pytest.fixture
def place(tmp_path: Path) -> TapePlace:
    place = new_place(tmp_path)
    VirtualDrive("usb", str(tmp_path / "tapes"), new=True).close()
    Drives(place).add_drive(DriveConfig("usb", "virtual", str(tmp_path / "tapes")))
    Pools(place).create(Pool.make("pool"))
    return place


@pytest.fixture
def access(place: TapePlace) -> Access:
    return open_access(place, None)


@pytest.mark.parametrize("name", SETS)
def test_golden_labels(name: str, tmp_path: Path) -> None:
    """Those of the golden media are read as the golden data says, and written again to the same bytes."""
    golden = golden_media(name, tmp_path / "golden")
    with VirtualDrive("g", str(golden)) as drive, VirtualDrive("v", str(tmp_path / "own"), new=True) as own:
        for text in drive.labels():
            drive.load(text)
            own.add(text)
            found = read_labels(drive)
            assert found is not None and found.set_label is not None and drive.status().file == 2
            said = {file.number: file.said for file in files(name) if file.label == text}
            assert found.label.label_text == text and found.label.pool == said[0]["header"].get("pool")
            assert found.set_label.seq_nr == said[1]["header"]["seq_nr"]
            uuids = [decode_uuid(said[number]["uuid"], "") for number in (0, 1)]
            random_of = [partial(lambda uuid, _: uuid, uuid) for uuid in uuids]
            write_label(own, found.label, said[0]["ctime"], random_of[0])
            write_set_label(own, found.set_label, said[1]["ctime"], random_of[1])
            assert own.status().file == 2 and read_labels(own) == found
            for number in (0, 1):
                name_of = f"tapefile-{number}-{text}.json"
                assert (tmp_path / "own" / name_of).read_bytes() == (golden / name_of).read_bytes()
            kinds = [each.content.kind if each.content else None for each in scan(drive)]
            assert kinds[:2] == ["media label", "media-set label"] and len(kinds) == len(said)
            assert all(not each.warnings for each in scan(drive))


def test_label(access: Access, place: TapePlace) -> None:
    made = label_medium(access, "ONE", "pool")
    assert (made.name, made.pool, str(made.location), made.status) == ("ONE", "pool", "online-usb", None)
    assert read_medium(access).label == made.label
    log = CatalogLogs(place).load(made.uuid)
    assert log is not None and log.media_set is None
    for text in ("ONE", "x", "../x", "CLN001"):
        with pytest.raises(UsageError):
            label_medium(access, text, None)
    assert InventoryFile(place).load().find("ONE") == made
    access.close()


def test_data_is_never_labelled(access: Access, place: TapePlace) -> None:
    """Not a label of another machine, not other data, not damage; an empty file at its start is nothing."""
    drive = access.drive
    assert isinstance(drive, VirtualDrive)
    for number, data in enumerate((b"", b"other data", bytes(3 * PAYLOAD_SIZE))):
        drive.add(f"DATA{number}")
        put_stream(drive, data)
        before = drive.status().bytes_used
        with pytest.raises(NotALabel):
            label_medium(access, f"DATA{number}", None)
        assert drive.status().bytes_used == before
    drive.add("FOREIGN")
    write_label(drive, MediaLabel("FOREIGN", uuid_of("x"), 5), 5)
    with pytest.raises(UsageError, match="has the label"):
        label_medium(access, "FOREIGN", None)
    drive.add("MARK")
    with drive.create_file() as file:
        file.finish()
    assert label_medium(access, "MARK", None).name == "MARK"
    assert [each.name for each in InventoryFile(place).load()] == ["MARK"]
    access.close()


def test_all_media_at_hand(access: Access, place: TapePlace) -> None:
    drive = access.drive
    assert isinstance(drive, VirtualDrive)
    for text in ("BB", "AA", "CC"):
        drive.add(text)
    put_stream(drive, b"data")
    heard: list[Event] = []
    done = label_all(access, None, heard.append)
    assert [(each.label_text, each.medium is not None) for each in done] == [("AA", True), ("BB", True), ("CC", False)]
    assert len(heard) == 1
    assert [each.label_text for each in label_all(access, None, ignore)] == ["CC"]
    access.close()


def test_a_fresh_machine_reads_labels(tmp_path: Path, place: TapePlace) -> None:
    golden = golden_media("multi", tmp_path / "golden")
    Drives(place).add_drive(DriveConfig("disk", "virtual", str(golden)))
    with open_access(place, "disk") as access:
        (golden / "tape-EMPTY.json").write_text('{\n  "files": 0\n}')
        (golden / "tape-FOREIGN.json").touch()
        (golden / "tapefile-0-FOREIGN.json").write_bytes(b"something")
        notes = {each.label_text: each.note for each in read_all(access, ignore, known_too=False)}
        assert notes["M001L8"] == notes["M002L8"] == "read" and notes["EMPTY"] == "empty"
        assert "no label" in notes["FOREIGN"]
        inventory = InventoryFile(place).load()
        (found,) = inventory.sets()
        assert [each.name for each in found.media] == ["M001L8", "M002L8"] and not found.missing
        assert {str(each.location) for each in inventory} == {"online-disk"}
        again = {each.label_text: each.note for each in read_all(access, ignore, known_too=False)}
        assert again["M001L8"] == "known"
        assert {each.note for each in read_all(access, ignore, known_too=True)} >= {"read", "empty"}


def test_request(access: Access, place: TapePlace, tmp_path: Path) -> None:
    one, two = label_medium(access, "ONE", None), label_medium(access, "TWO", None)
    assert request_medium(access, one, ignore).label == one.label
    assert request_medium(access, two, ignore).label == two.label
    with pytest.raises(WrongMedium, match="not in usb") as raised:
        request_medium(access, medium("THREE"), ignore)
    assert raised.value.exit_code == TargetAbsent.exit_code == 13
    with pytest.raises(WrongMedium, match="same label"):
        request_medium(access, replace(one, label=replace(one.label, uuid=uuid_of("x"))), ignore)
    heard: list[str] = []
    passed: list[float] = []

    lost = medium("LOST")

    def listen(event: Event) -> None:
        assert isinstance(event, Notice)
        heard.append(event.text)

    with pytest.raises(WrongMedium):
        request_medium(access, lost, listen, wait_seconds=0.05, pause=lambda seconds: None)
    assert len(heard) == 1 and "please insert the medium LOST" in heard[0]
    (tmp_path / "tapes").rename(tmp_path / "elsewhere")  # nothing is there at first
    (tmp_path / "tapes").mkdir()

    def plug_in(seconds: float) -> None:
        passed.append(seconds)
        if len(passed) == 2:
            (tmp_path / "tapes").rmdir()
            (tmp_path / "elsewhere").rename(tmp_path / "tapes")

    assert isinstance(access.drive, VirtualDrive)
    with access.drive.let_go():
        pass
    assert request_medium(access, one, listen, wait_seconds=60, pause=plug_in).label == one.label
    assert len(passed) == 2 and list((tmp_path / "tapes").glob("tape-*")) != []
    access.close()


def test_erase(access: Access, place: TapePlace) -> None:
    with pytest.raises(NoMedium):
        erase(access, fast=True, label_text=None, force=True)
    one = label_medium(access, "ONE", None)
    with pytest.raises(UsageError, match="is ONE"):
        erase(access, fast=True, label_text="TWO", force=True)
    write_set_label(access.drive, MediaSetLabel("pool", uuid_of("set"), 0, 5), 5)
    with pytest.raises(Held):
        erase(access, fast=True, label_text="ONE", force=False)
    assert read_medium(access).set_label is not None
    assert erase(access, fast=True, label_text="ONE", force=True) == one
    assert list(InventoryFile(place).load()) == [] and CatalogLogs(place).media() == []
    with pytest.raises(NotLabelled):
        read_medium(access)
    put_stream(access.drive, b"other data")
    with pytest.raises(Held):
        erase(access, fast=True, label_text=None, force=False)
    assert erase(access, fast=True, label_text=None, force=True) is None
    assert label_medium(access, "ONE", "pool").uuid != one.uuid
    access.close()


def test_hostile_labels(access: Access) -> None:
    """Whatever is at the start of a medium: it is refused with a sentence."""
    drive = access.drive
    label_medium(access, "ONE", "pool")
    write_set_label(drive, MediaSetLabel("pool", uuid_of("set"), 0, 5), 5)
    assert isinstance(drive, VirtualDrive)
    rng = random.Random(8)
    outcomes = set()
    for number in (0, 1):
        path = Path(drive.path) / f"tapefile-{number}-ONE.json"
        good = path.read_bytes()
        for _ in range(60):
            data = bytearray(good)
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(220)] = rng.randrange(256)
            path.write_bytes(data[: rng.choice((len(data), rng.randrange(400)))])
            try:
                outcomes.add(type(read_labels(drive)).__name__)
            except NotALabel as error:
                outcomes.add(type(error).__name__)
        path.write_bytes(good)
    assert "NotALabel" in outcomes
    access.close()


# -- keys --------------------------------------------------------------------------------------------------------------


class HardwareDrive(VirtualDrive):
    """One that encrypts, as it were."""

    can_encrypt = True
    key: bytes | None = None

    def set_key(self, key: bytes | None) -> None:
        self.key = key


def wrapped(crypt: CryptConfig, passphrase: bytes = b"a passphrase") -> KeyFile:
    now = key_time()
    return KeyFile.wrap(crypt, passphrase, Pbkdf2(1000, bytes(32)), bytes(16), now, now, "the usual")


def test_drive_key() -> None:
    """The vector of the specification."""
    media_set = decode_uuid("7488bcea-cd05-4648-89ba-d9ee0ff5aade", "")
    crypt = CryptConfig(bytes(range(32)))
    assert drive_key(crypt, media_set).hex() == "8286e4686f14be95a7a1d0b8741ffe7a34f57a6918992bd4ad6392176f0c989b"
    assert crypt.fingerprint.hex(":").startswith("0e:ab:d4:46:0b:6e:b9:ca")


def test_keys_of_a_set(tmp_path: Path) -> None:
    keys, crypt = TapeKeys(str(tmp_path / "config")), new_key()
    label = MediaSetLabel("pool", uuid_of("set"), 0, 5, crypt.fingerprint, wrapped(crypt))
    with HardwareDrive("h", str(tmp_path / "tapes"), new=True) as drive:
        with pytest.raises(KeyProblem, match="the usual"):
            use_key(drive, label, keys)
        keys.put(wrapped(crypt), crypt, overwrite=False)
        use_key(drive, label, keys)
        assert drive.key == drive_key(crypt, uuid_of("set"))
        use_key(drive, replace(label, fingerprint=None, key=None), keys)
        assert drive.key is None
    with VirtualDrive("v", str(tmp_path / "tapes")) as drive:
        use_key(drive, None, keys)
        with pytest.raises(Exception, match="cannot read or write"):
            use_key(drive, label, keys)
        drive.add("ONE")
        write_label(drive, MediaLabel("ONE", uuid_of("ONE"), 5), 5)
        write_set_label(drive, label, 5)
        found = read_labels(drive)
        assert found is not None and found.set_label == label  # the key is on the medium, and not in the inventory
        place = new_place(tmp_path)
        assert enter(place, found).in_set == replace(label, key=None)


def test_key_files(tmp_path: Path) -> None:
    directory = tmp_path / "config"
    keys, one, two = TapeKeys(str(directory)), new_key(), new_key()
    keys.put(wrapped(one), one, overwrite=False)
    keys.put(wrapped(two), two, overwrite=False)
    with pytest.raises(UsageError):
        keys.put(wrapped(one), one, overwrite=False)
    assert {each.fingerprint for each in keys.all()} == {one.fingerprint, two.fingerprint}
    assert keys.find(one.fingerprint.hex(":")[:23].upper()).plain is not None
    for name in ("tape-encryption-keys.json", "tape-encryption-key-config.json"):
        assert (directory / name).stat().st_mode & 0o777 == 0o600
    keys.remove(two.fingerprint)
    (entry,) = keys.all()
    assert entry.file is not None and entry.file.unlock(b"a passphrase").enc_key == one.enc_key
