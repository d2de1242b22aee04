"""The tape commands: the documents that the README names, exit codes, what is said, nonsense."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.labels import write_label, write_set_label
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.place import TapePlace
from formats.tape.content import encode_uuid
from formats.tape.labels import MediaLabel, MediaSetLabel
from tests.cli.command import Done, ask, call, process
from tests.formats.tape.media import document
from tests.tape.media import golden_logs, golden_media
from tests.tape.sets import uuid_of

README = Path(__file__).parent.parent.parent / "README.md"


def tape(*arguments: str | Path) -> Done:
    return call("tape", *arguments)


def documented() -> dict[str, tuple[set[str], set[str] | None]]:
    """Of each command the members of its document, and of its items."""
    found: dict[str, tuple[set[str], set[str] | None]] = {}
    text = re.sub(r"\n  ", " ", README.read_text())
    for name, members in re.findall(r"^\* `(tape [a-z -]+)`: ([^;\n]*)", text, re.MULTILINE):
        items = re.search(r"items \[([^]]*)\](.*)", members)
        if items is None:
            found[name] = set(members.split(", ")), None
        else:
            rest = set(filter(None, (members[: items.start()] + items[2]).split(", ")))
            found[name] = {"items"} | rest, set(items[1].split(", "))
    return found


def state() -> TapePlace:
    return TapePlace.default(os.environ)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A drive with two media, one of them in a pool."""
    ask("tape", "drive", "add", "usb", "--path", tmp_path / "disk")
    ask("tape", "pool", "create", "weekly")
    ask("tape", "label", "--label-text", "ONE", "--pool", "weekly")
    ask("tape", "label", "--label-text", "TWO")
    return tmp_path / "disk"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """The golden set of two media, its labels read and its catalogs there."""
    place = golden_media("multi", tmp_path / "golden")
    ask("tape", "drive", "add", "usb", "--path", place)
    ask("tape", "inventory", "--read-all-labels")
    golden_logs("multi", Path(state().path))
    return place


# -- documents ---------------------------------------------------------------------------------------------------------


def check(name: str, done: dict[str, Any]) -> None:
    members, inner = documented()[name]
    assert done.keys() - {"schema"} == members, name
    if inner is not None:
        assert done["items"], name
        assert all(item.keys() == inner for item in done["items"]), name


def test_documents(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_PASSWORD", "a passphrase")
    known = documented()
    ask("tape", "load", "M001L8")
    for name in ("tape drive list", "tape drive status", "tape changer status", "tape read-label", "tape media list"):
        check(name, ask(*name.split()))
    for name in ("tape inventory", "tape media content", "tape scan"):
        check(name, ask(*name.split()))
    pool = ask("tape", "pool", "create", "weekly", "--allocation", "daily", "--retention", "30d")["pool"]
    assert pool.keys() == known["tape pool list"][1]
    assert ask("tape", "pool", "update", "weekly", "--comment", "x")["pool"] == pool | {"comment": "x"}
    check("tape pool list", ask("tape", "pool", "list"))
    check("tape label", ask("tape", "label", "--label-text", "NEW", "--pool", "weekly"))
    (golden / "tape-BLANK.json").touch()
    check("tape barcode-label", ask("tape", "barcode-label"))
    changer = ask("tape", "changer", "add", "lib", "--path", "/dev/sg7", "--export-slots", "3,4")["changer"]
    assert changer.keys() == known["tape changer list"][1] and changer["export-slots"] == [3, 4]
    check("tape changer list", ask("tape", "changer", "list"))
    made = ask("tape", "key", "create", "--hint", "h", "--kdf", "pbkdf2")
    assert made.keys() - {"schema"} == {"kdf", "created", "modified", "fingerprint", "hint"}
    check("tape key list", ask("tape", "key", "list"))
    drive = ask("tape", "drive", "add", "more", "--path", golden.parent / "more", "--max-size", "10G")["drive"]
    assert drive.keys() | {"present"} == known["tape drive list"][1] and drive["max-size"] == 10 << 30


def test_golden_set(golden: Path) -> None:
    """What is listed is what the golden data says."""
    media = ask("tape", "media", "list")["items"]
    assert [(item["label-text"], item["seq-nr"], item["catalog"]) for item in media] == [
        ("M001L8", 0, True),
        ("M002L8", 1, True),
    ]
    assert {item["status"] for item in media} == {"unknown"}  # its pool is not set up here
    ask("tape", "pool", "create", media[0]["pool"], "--template", "set-%id%")
    media = ask("tape", "media", "list", "--pool", media[0]["pool"])["items"]
    assert [item["status"] for item in media] == ["full", "writable"]
    assert {item["media-set-name"] for item in media} == {f"set-{media[0]['media-set-uuid']}"}
    said = {
        (name, entry["store"], entry["snapshot"], entry["file_number"])
        for name, entries in document("multi")["catalogs"].items()
        for entry in entries
        if entry["type"] == "S"
    }
    content = ask("tape", "media", "content")
    found = {(f"{i['uuid']}.log", i["store"], i["snapshot"], i["file-number"]) for i in content["items"]}
    assert found == said and content["missing-catalogs"] == []
    some = ask("tape", "media", "content", "--backup-type", "ct")["items"]
    assert [(item["snapshot"], item["backup-time"]) for item in some] == [
        ("ns/one/ns/two/ct/200/2023-11-14T22:25:00Z", 1700000700)
    ]
    assert ask("tape", "media", "content", "--backup-id", "none")["items"] == []
    uuid = media[0]["uuid"]
    by_label = ask("tape", "media", "content", "--label-text", "M001L8")["items"]
    assert by_label == ask("tape", "media", "content", "--media", uuid)["items"] and by_label
    whole = ask("tape", "media", "content", "--media-set", media[0]["media-set-uuid"].replace("-", ""))["items"]
    assert whole == content["items"]
    log = Path(state().path) / f"{uuid}.log"
    good = log.read_bytes()
    log.write_bytes(b"rubbish")
    done = tape("media", "content", "--json")
    assert done.code == 20 and done.document["missing-catalogs"] == ["M001L8", "M002L8"] and uuid in done.err
    log.write_bytes(good)
    log.unlink()
    done = tape("media", "content", "--json")
    assert done.code == 20 and done.document["missing-catalogs"] == ["M001L8"] and done.document["items"]
    ask("tape", "load", "M002L8")
    kinds = [(item["file-number"], item["kind"], item["bytes"]) for item in ask("tape", "scan")["items"]]
    files = [(each["file"], each["bytes"]) for each in document("multi")["dump"] if each["label"] == "M002L8"]
    assert [(number, size) for number, _, size in kinds] == files
    assert [kind for _, kind, _ in kinds][:3] == ["media label", "media-set label", "catalog archive"]


# -- what is done ------------------------------------------------------------------------------------------------------


def test_tables(disk: Path) -> None:
    assert tape("media", "list").lines[0].split()[:2] == ["label-text", "pool"]
    assert any(line.startswith("ONE ") and "online-usb" in line for line in tape("media", "list").lines)
    assert "TWO" in tape("inventory").out and "label-text:" in tape("read-label").out
    assert "media label" in tape("scan").out and "virtual" in tape("drive", "list").out
    assert "continue" in tape("pool", "list").out and "capacity" in tape("drive", "status").out
    for name in ("media content", "key list", "changer list"):
        assert "no" in tape(*name.split()).out
    assert tape("rewind", "-q").raw == b""


def test_unplugged(disk: Path, tmp_path: Path) -> None:
    disk.rename(tmp_path / "away")
    for command in (("label", "--label-text", "NEW"), ("read-label",), ("eject",), ("inventory",), ("drive", "status")):
        done = tape(*command, "--json")
        assert (done.code, done.error["code"]) == (13, "target-absent")
    (item,) = ask("tape", "drive", "list")["items"]
    assert item["present"] is False
    assert {item["location"] for item in ask("tape", "media", "list")["items"]} == {"offline"}
    disk.mkdir(exist_ok=True)
    for file in disk.iterdir():
        file.unlink()
    assert tape("read-label").code == 13 and list(disk.iterdir()) == []


def test_moved_and_set(disk: Path) -> None:
    ask("tape", "media", "set-status", "ONE", "damaged")
    ask("tape", "media", "move", "TWO", "attic")
    items = {item["label-text"]: item for item in ask("tape", "media", "list", "--no-update-status")["items"]}
    assert items["ONE"]["status"] == "damaged" and items["TWO"]["location"] == "vault-attic"
    ask("tape", "media", "set-status", "ONE", "none")
    ask("tape", "media", "move", "TWO")
    items = {item["label-text"]: item for item in ask("tape", "media", "list", "--no-update-status")["items"]}
    assert items["ONE"]["status"] == "writable" and items["TWO"]["location"] == "offline"
    assert ask("tape", "media", "destroy", "TWO")["label-text"] == "TWO"
    assert [item["label-text"] for item in ask("tape", "media", "list")["items"]] == ["ONE"]


def test_erased(disk: Path) -> None:
    ask("tape", "load", "ONE")
    with VirtualDrive("v", str(disk)) as drive:
        write_set_label(drive, MediaSetLabel("weekly", uuid_of("set"), 0, 5), 5)
    done = tape("format", "--json")
    assert (done.code, done.error["code"]) == (30, "held")
    assert tape("format", "--label-text", "TWO", "--force").code == 2
    assert ask("tape", "format", "--force", "--label-text", "ONE")["label-text"] == "ONE"
    assert tape("read-label").code == 10
    assert ask("tape", "label", "--label-text", "ONE")["location"] == "online-usb"


def test_vanished_state(disk: Path) -> None:
    """On a fresh machine the labels bring back what is known."""
    before = {item["label-text"]: item["uuid"] for item in ask("tape", "inventory")["items"]}
    (Path(state().path) / "inventory.json").unlink()
    assert {item["uuid"] for item in ask("tape", "inventory")["items"]} == {None}
    after = ask("tape", "inventory", "--read-labels")["items"]
    assert {item["label-text"]: item["uuid"] for item in after} == before
    assert ask("tape", "load", "ONE")["drive"] == "usb"
    assert ask("tape", "read-label", "--inventorize")["pool"] == "weekly"


def test_taken_over(tmp_path: Path) -> None:
    pbs = golden_logs("single", tmp_path / "pbs")
    label = {"label_text": "TAPE01", "uuid": "13998850-57f6-4bad-be54-b4392eb4e340", "ctime": 1700000000}
    place = {"pool": "pool-A", "uuid": "7488bcea-cd05-4648-89ba-d9ee0ff5aade", "seq_nr": 0, "ctime": 1700000100}
    (pbs / "inventory.json").write_text(json.dumps([{"id": {"label": label, "media_set_label": place}}]))
    done = ask("tape", "inventory", "--from", pbs)
    assert done["items"][0].keys() == {"label-text", "uuid", "location", "catalog"} and done["problems"] == []
    assert len(ask("tape", "media", "content")["items"]) == 2
    assert tape("inventory", "--from", tmp_path).code == 10
    assert tape("inventory", "--from", pbs, "--read-labels").code == 2
    next(pbs.glob("*.log")).write_bytes(b"rubbish")
    CatalogLogs(state()).remove(bytes.fromhex("1399885057f64badbe54b4392eb4e340"))
    assert tape("inventory", "--from", pbs).code == 20


def test_scan_tells_what_is_wrong(disk: Path) -> None:
    ask("tape", "load", "ONE")
    with VirtualDrive("v", str(disk)) as drive:
        drive.locate_end()
        with drive.create_file() as file:
            file.write(bytes(256 << 10))
    done = tape("scan", "--json")
    assert done.code == 20 and done.document["items"][1]["warnings"]
    assert "warning:" in tape("scan").out


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key comes back from each place where it is kept."""
    monkeypatch.setenv("ARCHIVER_PASSWORD", "a passphrase")
    made = ask("tape", "key", "create", "--hint", "the usual", "--kdf", "pbkdf2")
    fingerprint = made["fingerprint"]
    assert ask("tape", "key", "show", fingerprint[:11]) == made
    ask("tape", "pool", "update", "weekly", "--encrypt", fingerprint[:11])
    assert ask("tape", "pool", "list")["items"][0]["encrypt"] == fingerprint
    assert tape("key", "remove", fingerprint).code == 30
    ask("tape", "pool", "update", "weekly", "--encrypt", "")
    paper = tape("key", "paperkey", fingerprint).raw
    (tmp_path / "paper.txt").write_bytes(paper)
    config = Path(os.environ["XDG_CONFIG_HOME"]) / "archiver"
    (wrapped,) = json.loads((config / "tape-encryption-key-config.json").read_bytes())
    (tmp_path / "key.json").write_text(json.dumps(wrapped))
    (plain,) = json.loads((config / "tape-encryption-keys.json").read_bytes())
    assert plain.keys() == {"fingerprint", "key"} and len(plain["key"]) == 64
    for place in (("--key-file", tmp_path / "key.json"), ("--key-file", tmp_path / "paper.txt")):
        assert tape("key", "restore", *place).code == 2  # it is there
        ask("tape", "key", "remove", fingerprint)
        assert ask("tape", "key", "restore", *place)["fingerprint"] == fingerprint
    ask("tape", "key", "remove", fingerprint)
    assert ask("tape", "key", "restore", "--key", json.dumps(wrapped))["fingerprint"] == fingerprint
    monkeypatch.setenv("ARCHIVER_NEW_PASSWORD", "another one")
    changed = ask("tape", "key", "change-passphrase", fingerprint, "--hint", "new", "--kdf", "pbkdf2")
    assert (changed["created"], changed["hint"]) == (made["created"], "new")
    assert tape("key", "change-passphrase", fingerprint, "--hint", "x", "--kdf", "pbkdf2").code == 12
    ask("tape", "key", "change-passphrase", fingerprint, "--hint", "x", "--kdf", "pbkdf2", "--force")
    # from a medium, with the passphrase of that time
    from formats.keyfile import KeyFile

    file = KeyFile.decode(json.dumps(wrapped).encode())
    with VirtualDrive("v", str(disk)) as drive:
        drive.load("ONE")
        label = MediaSetLabel("weekly", uuid_of("set"), 0, 5, file.fingerprint, file)
        write_set_label(drive, label, 5)
    ask("tape", "key", "remove", fingerprint, "--force")
    assert ask("tape", "key", "restore")["hint"] == "the usual"
    monkeypatch.setenv("ARCHIVER_PASSWORD", "wrong one")
    done = tape("key", "restore", "--drive", "usb")
    assert done.code == 12 and "the usual" in done.err
    ask("tape", "load", "TWO")
    assert tape("key", "restore").code == 12


# -- nonsense ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("drive", "add", "usb", "--path", "{tmp}/m"), 2),
        (("drive", "add", "x", "--path", "/tmp"), 2),
        (("drive", "add", "more", "--path", ""), 2),
        (("drive", "add", "more", "--path", "/nowhere/at/all"), 13),
        (("drive", "add", "more", "--path", "{tmp}/m", "--max-size", "big"), 2),
        (("drive", "add", "more", "--path", "{tmp}/m", "--max-size", "1"), 2),
        (("drive", "add", "more", "--path", "{tmp}/m", "--changer", "lib"), 2),
        (("drive", "add", "more", "--path", "/dev/nst9", "--changer", "none"), 10),
        (("drive", "remove", "none"), 10),
        (("drive", "status", "--drive", "none"), 10),
        (("changer", "remove", "none"), 10),
        (("changer", "add", "lib", "--path", "sg3"), 2),
        (("changer", "add", "lib", "--path", "/dev/sg3", "--export-slots", "a"), 2),
        (("changer", "add", "usb", "--path", "/dev/sg3"), 2),
        (("pool", "create", "weekly"), 2),
        (("pool", "create", "a/b"), 2),
        (("pool", "create", "more", "--allocation", "sometimes"), 2),
        (("pool", "create", "more", "--retention", "long"), 2),
        (("pool", "create", "more", "--encrypt", "ab"), 10),
        (("pool", "update", "none", "--comment", "x"), 10),
        (("pool", "remove", "none"), 10),
        (("label", "--label-text", "ONE"), 2),
        (("label", "--label-text", "../x"), 2),
        (("label", "--label-text", "NEW", "--pool", "none"), 10),
        (("load", "none"), 10),
        (("media", "move", "none"), 10),
        (("media", "move", "ONE", "a"), 2),
        (("media", "set-status", "none", "full"), 10),
        (("media", "set-status", "ONE", "writable"), 2),
        (("media", "destroy", "none"), 10),
        (("media", "content", "--label-text", "none"), 10),
        (("media", "content", "--media-set", "none"), 2),
        (("key", "show", "none"), 10),
        (("key", "show", ""), 10),
        (("key", "restore", "--key", "{{}}"), 12),
        (("key", "restore", "--key-file", "/nowhere"), 12),
        (("key", "restore", "--key", "x", "--drive", "usb"), 2),
        (("key", "create", "--hint", ""), 2),
        (("nothing",), 2),
    ],
)
def test_nonsense(disk: Path, tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    """One sentence, the right code, nothing changed."""
    before = {file.name: file.read_bytes() for file in Path(state().path).iterdir()}
    done = tape(*(text.format(tmp=tmp_path) for text in arguments), "--json")
    assert done.code == code, done.out
    assert done.error["message"]
    after = {file.name: file.read_bytes() for file in Path(state().path).iterdir()}
    assert {name: data for name, data in after.items() if not name.endswith(".lck")} == {
        name: data for name, data in before.items() if not name.endswith(".lck")
    }


def test_without_a_drive() -> None:
    for command in (("read-label",), ("inventory",), ("eject",), ("label", "--label-text", "NEW")):
        assert tape(*command).code == 10
    assert ask("tape", "media", "list")["items"] == ask("tape", "drive", "list")["items"] == []


def test_damaged_state(disk: Path) -> None:
    for name, command in {
        "inventory.json": ("media", "list"),
        "pools.json": ("pool", "list"),
        "drives.json": ("drive", "list"),
    }.items():
        path = Path(state().path) / name
        good = path.read_bytes()
        path.write_bytes(b"{")
        done = tape(*command, "--json")
        assert done.code == 20 and name in done.error["message"] and done.error["hint"]
        path.write_bytes(good)


def test_choosing_a_drive(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("tape", "drive", "add", "more", "--path", tmp_path / "more")
    assert tape("inventory").code == 2
    assert ask("tape", "drive", "status", "--drive", "more")["drive"] == "more"
    monkeypatch.setenv("ARCHIVER_TAPE_DRIVE", "usb")
    assert ask("tape", "drive", "status")["drive"] == "usb"


def test_in_use(disk: Path) -> None:
    with VirtualDrive("usb", str(disk)):
        done = process("tape", "media", "list", "--json")  # asks no drive
        assert done.code == 0
    lock = state().lock_drive("usb")
    with lock:
        from archiver.tape.access import open_access

        with pytest.raises(Exception, match="in use"):
            open_access(state(), "usb", wait_seconds=0)


def test_same_label_on_two_media(disk: Path) -> None:
    """They are told apart by their uuids."""
    with VirtualDrive("v", str(disk)) as drive:
        drive.add("THREE")
        write_label(drive, MediaLabel("ONE", uuid_of("other"), 5), 5)
    ask("tape", "load", "THREE")
    ask("tape", "read-label", "--inventorize")
    assert tape("media", "set-status", "ONE", "full").code == 2
    assert ask("tape", "media", "set-status", encode_uuid(uuid_of("other")), "full")["status"] == "full"
