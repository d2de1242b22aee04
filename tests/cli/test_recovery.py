"""Every way back to the files, each from nothing but that way's material; the drill; the wrapped key in snapshots."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from formats import blob, masterkey
from formats.keyfile import KeyFile
from formats.paperkey import PaperKey
from tests.attributes import unlock_tree
from tests.cli.command import Done, ask, call, process
from tests.compare import NOT_KEPT, compare_descriptions, snapshot_tree
from tests.formats.test_masterkey import KEYS, PASSPHRASE, PRIVATE, PROTECTED, PUBLIC, WRAPPED
from tests.formats.test_paperkey import between_marks, scanned
from tests.golden_store import ENCRYPTED, FINGERPRINT, unpack, write_key
from tests.trees import build_features

pytestmark = pytest.mark.in_memory

CONTENTS = b"the only copy of the diary\n"
KEY_PASSPHRASE = "passphrase of the key"
DRILL = {"schema", "snapshot", "way", "fingerprint", "archive", "path", "size"}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nothing of the machine that made the backup is: no configuration, no database, no passphrase."""
    for name in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "new" / name.lower()))
    for name in [name for name in os.environ if name.startswith("ARCHIVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir(exist_ok=True)
    return tmp_path


@pytest.fixture
def material(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A store with one encrypted snapshot, and what its owner has put into drawers."""
    source, drawer = tmp_path / "source", tmp_path / "drawer"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/diary").write_bytes(CONTENTS)
    (source / "empty").write_bytes(b"")
    drawer.mkdir()
    (drawer / "public.pem").write_bytes(PUBLIC)
    (drawer / "private.pem").write_bytes(PROTECTED)
    monkeypatch.setenv("ARCHIVER_PASSWORD", KEY_PASSPHRASE)
    made = ask("key", "create", "--hint", "in the drawer")
    assert call("key", "import-master-pubkey", drawer / "public.pem").code == 0
    ask("init", tmp_path / "store")
    done = ask("--store", tmp_path / "store", "backup", f"home.pxar:{source}", "--id", "me")
    page = call("key", "paper").out
    (drawer / "key.json").write_bytes(Path(made["path"]).read_bytes())
    shutil.rmtree(tmp_path / ".xdg")
    shutil.rmtree(source)
    return {"store": tmp_path / "store", "drawer": drawer, "page": page, "snapshot": done["snapshot"]} | made


def restored(material: dict[str, Any], target: Path, *options: Any) -> bytes:
    done = call("--store", material["store"], "restore", "host/me", target, *options)
    assert done.code == 0, done.err
    return (target / "deep/er/diary").read_bytes()


def material_only(material: dict[str, Any], *names: str) -> Path:
    """The drawer without everything but ``names``."""
    drawer: Path = material["drawer"]
    for path in drawer.iterdir():
        if path.name not in names:
            path.unlink()
    return drawer


# The ways.


def test_nothing_comes_back_without_material(material: dict[str, Any], desk: Path) -> None:
    assert call("--store", material["store"], "restore", "host/me", desk / "out").code == 12
    assert not (desk / "out").exists()


def test_key_file_and_passphrase(material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawer = material_only(material, "key.json")
    monkeypatch.setenv("ARCHIVER_PASSWORD", KEY_PASSPHRASE)
    assert restored(material, desk / "out", "--keyfile", drawer / "key.json") == CONTENTS


def typed_in(page: str) -> str:
    """Wrapped where a narrow page ends, indented and spaced by a tired person."""
    lines = [line.strip() for line in between_marks(page).strip().split("\n")]
    parts = [line[at : at + 50] for line in lines for at in range(0, len(line), 50)]
    body = "\n\n      ".join(parts)
    return f"my key:\n\n  -----BEGIN PROXMOX BACKUP KEY-----\n\n{body}\n-- END PROXMOX BACKUP KEY --\n"


def test_paper_key_typed_in(material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    material_only(material)
    (desk / "typed").write_text(typed_in(material["page"]))
    done = call("key", "recover", "--paper", desk / "typed")
    assert done.code == 0 and "compare the checksum" in done.err
    assert PaperKey.typed(material["page"]).checksum in done.err
    monkeypatch.setenv("ARCHIVER_PASSWORD", KEY_PASSPHRASE)
    assert restored(material, desk / "out") == CONTENTS
    for option in (("--kdf", "none"), ("--hint", "x")):
        assert call("key", "recover", "--paper", desk / "typed", "--force", *option).code == 2


def test_disaster_with_the_drive_and_the_paper_key(tmp_path: Path) -> None:
    """The machine is gone. A new one, with nothing but the drive and what was typed in from paper, gets every file,
    image and small file back. The store has even lost its database."""
    old, drive, new = tmp_path / "old", tmp_path / "drive", tmp_path / "new machine"
    for place in (old, drive):
        place.mkdir()
    build_features(old / "home", as_root=os.geteuid() == 0)
    (old / "disk").write_bytes(os.urandom(3 << 20).ljust(9_000_001, b"\0"))
    (old / "fstab").write_bytes(b"/dev/sda1 / ext4\n")

    def machine(home: Path, *arguments: str | Path, passphrase: str | None = KEY_PASSPHRASE) -> Done:
        """Run the program as a process that knows nothing but what is in ``home``."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
        if passphrase is not None:
            environment["ARCHIVER_PASSWORD"] = passphrase
        return process(*arguments, env=environment)

    assert machine(old, "key", "create").code == 0
    (old / "page").write_text(machine(old, "key", "paper").out)
    assert machine(old, "init", drive / "store").code == 0
    specs = (f"home.pxar:{old / 'home'}", f"disk.img:{old / 'disk'}", f"fstab.conf:{old / 'fstab'}")
    assert machine(old, "--store", drive / "store", "backup", *specs, "--id", "lost").code == 0
    before, disk, page = snapshot_tree(old / "home"), (old / "disk").read_bytes(), (old / "page").read_text()
    unlock_tree(old)
    subprocess.run(["rm", "-rf", str(old)], check=True)
    subprocess.run(["rm", "-rf", str(drive / "store/.archiver/db")], check=True)

    new.mkdir()
    (new / "typed").write_text(typed_in(page))
    store = ("--store", drive / "store")
    assert machine(new, *store, "restore", "host/lost", new / "out").code == 12, "nothing without the key"
    assert machine(new, "key", "recover", "--paper", new / "typed").code == 0
    assert machine(new, *store, "restore", "host/lost", new / "out", passphrase="a wrong one").code == 12
    for name, target in (("home.pxar", "home"), ("disk.img", "disk"), ("fstab.conf", "fstab")):
        done = machine(new, *store, "restore", "host/lost", new / target, "--archive", name)
        assert done.code == 0 and "verified" in done.out, done.err
    assert compare_descriptions(before, snapshot_tree(new / "home"), ignore=NOT_KEPT) == []
    assert (new / "disk").read_bytes() == disk
    assert (new / "fstab").read_bytes() == b"/dev/sda1 / ext4\n"
    assert machine(new, *store, "verify").code == 0
    unlock_tree(new)
    subprocess.run(["rm", "-rf", str(new)], check=True)


def test_text_between_the_marks_is_a_key_file(
    material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a person who does not know of "key recover"."""
    material_only(material)
    (desk / "typed").write_text(between_marks(material["page"]))
    monkeypatch.setenv("ARCHIVER_PASSWORD", KEY_PASSPHRASE)
    assert restored(material, desk / "out", "--keyfile", desk / "typed") == CONTENTS


def test_qr_code(material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    material_only(material)
    (code,) = scanned(material["page"])
    (desk / "scanned").write_text(code)
    monkeypatch.setenv("ARCHIVER_PASSWORD", KEY_PASSPHRASE)
    assert restored(material, desk / "out", "--keyfile", desk / "scanned") == CONTENTS


@pytest.mark.parametrize("way", ["snapshot", "restored file", "stored blob", "typed in"])
def test_private_master_key_alone(
    material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    pem = material_only(material, "private.pem") / "private.pem"
    store, file = material["store"], desk / "rsa-encrypted.key"
    source: list[Any] = []
    if way == "restored file":
        assert call("--store", store, "restore", "host/me", file, "--archive", "rsa-encrypted.key").code == 0
        source = ["--encrypted-keyfile", file]
    elif way == "stored blob":
        source = ["--encrypted-keyfile", store / material["snapshot"] / "rsa-encrypted.key.blob"]
    elif way == "typed in":
        page = call("key", "paper", pem).out
        pem.write_text(page)
    command = ("--store", store, "key", "recover", *source, "--master-keyfile", pem)
    assert call(*command).code == 12  # nobody knows the passphrase
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", PASSPHRASE.decode())
    assert call(*command).code == 12  # nor a new one
    monkeypatch.setenv("ARCHIVER_PASSWORD", "a new passphrase")
    document = ask(*command, "--hint", "new")
    assert document.keys() == {"schema", "path", "fingerprint"} and document["fingerprint"] == material["fingerprint"]
    shown = ask("key", "show")
    assert (shown["kdf"], shown["hint"], shown["created"]) == ("scrypt", "new", material["created"])
    assert stat.S_IMODE(os.stat(shown["path"]).st_mode) == 0o600
    assert restored(material, desk / "out") == CONTENTS


def test_recovered_without_a_passphrase(material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD_COMMAND", f"echo {PASSPHRASE.decode()}")
    command = ("key", "recover", "host/me", "--master-keyfile", material["drawer"] / "private.pem", "--kdf", "none")
    ask("--store", material["store"], *command, "-o", desk / "key.json")
    assert restored(material, desk / "out", "--keyfile", desk / "key.json") == CONTENTS


# The drill.


def leavings(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if "cache" not in str(path))


def test_drill_with_the_master_key(material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = material_only(material, "private.pem") / "private.pem"
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", PASSPHRASE.decode())
    before = leavings(desk)
    document = ask("--store", material["store"], "key", "drill", "--master-keyfile", pem)
    assert document.keys() == DRILL
    assert (document["snapshot"], document["fingerprint"]) == (material["snapshot"], material["fingerprint"])
    assert (document["archive"], document["path"], document["size"]) == ("home.pxar", "/deep/er/diary", len(CONTENTS))
    done = call("--store", material["store"], "key", "drill", "host/me", "--master-keyfile", pem)
    assert done.code == 0 and "bit for bit" in done.out and "signature is right" in done.out
    assert leavings(desk) == before


@pytest.mark.parametrize("through_stdin", [False, True])
def test_drill_with_a_paper_key(
    material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch, through_stdin: bool
) -> None:
    material_only(material)
    typed = typed_in(material["page"])
    (desk / "typed").write_text(typed)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
    before = leavings(desk)
    command = ("--store", material["store"], "key", "drill", "--paper", "-" if through_stdin else desk / "typed")
    assert call(*command).code == 12
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
    monkeypatch.setenv("ARCHIVER_PASSWORD", KEY_PASSPHRASE)
    document = ask(*command)
    assert document["way"] == "a paper key" and document["path"] == "/deep/er/diary"
    assert leavings(desk) == before


def test_drill_with_a_master_key_typed_in(
    material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = call("key", "paper", material["drawer"] / "private.pem").out
    material_only(material)
    (desk / "typed").write_text(page)
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", PASSPHRASE.decode())
    assert ask("--store", material["store"], "key", "drill", "--paper", desk / "typed")["way"] == "the master key"


def damage(store: Path) -> None:
    for chunk in (store / ".chunks").glob("*/*"):
        data = bytearray(chunk.read_bytes())
        data[-1] ^= 1
        chunk.write_bytes(data)


def test_drill_of_a_damaged_store(material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", PASSPHRASE.decode())
    damage(material["store"])
    pem = material["drawer"] / "private.pem"
    assert call("--store", material["store"], "key", "drill", "--master-keyfile", pem).code == 20
    assert os.listdir(desk / "temp") == []


def test_drill_finds_contents_that_are_damaged_only(
    material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are there, the file is not."""
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", PASSPHRASE.decode())
    index = ask("debug", "inspect", material["store"] / material["snapshot"] / "home.ppxar.didx")
    for chunk in index["chunks"]:
        (material["store"] / ".chunks" / chunk["digest"][:4] / chunk["digest"]).unlink()
    done = call("--store", material["store"], "key", "drill", "--master-keyfile", material["drawer"] / "private.pem")
    assert done.code == 20 and "did not come back" in done.err and os.listdir(desk / "temp") == []


def test_drill_notices_what_another_writes(
    material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is read again from the disk: a disk that keeps other bytes is found out."""
    from archiver.core import linux

    def spoil(fd: int) -> None:
        (path,) = (desk / "temp").rglob("diary")
        status = path.stat()
        path.write_bytes(CONTENTS[::-1])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    monkeypatch.setattr(linux, "syncfs", spoil)
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", PASSPHRASE.decode())
    pem = material["drawer"] / "private.pem"
    done = call("--store", material["store"], "key", "drill", "--master-keyfile", pem)
    assert done.code == 20 and "other contents" in done.err and os.listdir(desk / "temp") == []


def test_drill_takes_the_newest(material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is one that does not come back: that is what a drill is for."""
    source, key = desk / "more", write_key(desk / "more.json")
    source.mkdir()
    (source / "f").write_bytes(b"x")
    store, pem = material["store"], material["drawer"] / "private.pem"
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", PASSPHRASE.decode())
    options = ("--id", "you", "--ns", "a", "--time", "2100000000", "--keyfile", key)
    name = ask("--store", store, "backup", source, *options)["snapshot"]
    done = call("--store", store, "key", "drill", "--master-keyfile", pem)
    assert done.code == 12 and name in done.err and "wrapped" in done.err
    ask("--store", store, "backup", source, "--id", "plain", "--time", "2200000000", "--crypt", "none")
    again = ask("--store", store, "backup", source, *options, "--master-pubkey-file", material["drawer"] / "public.pem")
    assert ask("--store", store, "key", "drill", "--master-keyfile", pem)["snapshot"] == again["snapshot"]
    assert ask("--store", store, "key", "drill", "host/me", "--master-keyfile", pem)["snapshot"] == material["snapshot"]
    assert call("--store", store, "key", "drill", "host/plain", "--master-keyfile", pem).code == 12
    assert call("--store", store, "key", "drill", "host/absent", "--master-keyfile", pem).code == 10
    (store / again["snapshot"] / "index.json.blob").write_bytes(b"rot")
    assert call("--store", store, "key", "drill", "--master-keyfile", pem).code == 20
    (store / again["snapshot"] / "index.json.blob").unlink()  # as one that is unfinished
    assert call("--store", store, "key", "drill", "--master-keyfile", pem).code == 12  # the one before it


def test_drill_with_the_wrong_material(material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, drawer = material["store"], material["drawer"]
    write_key(desk / "other.json")
    (desk / "typed").write_text(call("key", "paper", desk / "other.json").out)
    done = call("--store", store, "key", "drill", "--paper", desk / "typed")
    assert done.code == 12 and material["fingerprint"][:23] in done.err and FINGERPRINT[:23] in done.err
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", "wrong passphrase")
    assert call("--store", store, "key", "drill", "--master-keyfile", drawer / "private.pem").code == 12
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", "master passphrase")
    ask("key", "create-master-key", desk / "pair")
    done = call("--store", store, "key", "drill", "--master-keyfile", desk / "pair/master-private.pem")
    assert done.code == 12 and "another master key" in done.err
    typo = typed_in(material["page"]).replace('"data": "', '"data": "*')
    (desk / "typo").write_text(typo)
    done = call("--store", store, "key", "drill", "--paper", desk / "typo")
    assert done.code == 12 and "data, character 1" in done.err
    for options in ((), ("--paper", "x", "--master-keyfile", "y")):
        assert call("--store", store, "key", "drill", *options).code == 2
        assert call("--store", store, "key", "recover", *options).code == 2


@pytest.mark.parametrize("snapshot", ENCRYPTED)
def test_drill_of_what_the_reference_wrote(desk: Path, snapshot: str) -> None:
    store = unpack(desk)
    (desk / "private.pem").write_bytes(PRIVATE)
    write_key(desk / "key.json")
    (desk / "paper").write_text(call("key", "paper", desk / "key.json").out)
    found = ask("--store", store, "key", "drill", snapshot, "--paper", desk / "paper")
    assert found["fingerprint"] == FINGERPRINT and found["size"] > 0
    wrapped = store / snapshot / "rsa-encrypted.key.blob"
    done = call("--store", store, "key", "drill", snapshot, "--master-keyfile", desk / "private.pem")
    assert done.code == (0 if wrapped.exists() else 12), done.err
    assert wrapped.exists() == (snapshot == ENCRYPTED[0])
    assert os.listdir(desk / "temp") == []


def test_drill_of_an_empty_store(desk: Path) -> None:
    ask("init", desk / "store")
    (desk / "private.pem").write_bytes(PRIVATE)
    assert call("--store", desk / "store", "key", "drill", "--master-keyfile", desk / "private.pem").code == 10


# The wrapped key in snapshots.


@pytest.mark.parametrize("mode", ["encrypt", "sign-only"])
def test_wrapped_key_in_a_snapshot(tmp_path: Path, source: Path, mode: str) -> None:
    (tmp_path / "public.pem").write_bytes(PUBLIC)
    keyfile, store = write_key(tmp_path / "key.json"), tmp_path / "store"
    ask("init", store)
    options = ("--keyfile", keyfile, "--crypt", mode, "--master-pubkey-file", tmp_path / "public.pem")
    done = call("--store", store, "backup", f"tree.pxar:{source}", "--id", "me", *options)
    assert done.code == 0 and "master key can recover" in done.err
    second = call("--store", store, "backup", f"tree.pxar:{source}", "--id", "me", *options, "--json")
    again = second.document
    assert second.code == 0 and "saved completely" not in second.err  # metadata mode goes on as ever
    assert again["archives"][0]["new_chunks"] == 0
    items = ask("--store", store, "files", "host/me")["items"]
    last = items[-2]  # the manifest itself comes last
    assert (last["filename"], last["crypt_mode"], last["size"]) == ("rsa-encrypted.key.blob", mode, 12 + 512)
    stored = (store / again["snapshot"] / "rsa-encrypted.key.blob").read_bytes()
    assert stored.startswith(blob.PLAIN_MAGIC)
    file = masterkey.unwrap(masterkey.load_private_key(PRIVATE, None), blob.decode(stored))
    original = KeyFile.decode(keyfile.read_bytes())
    assert (file.data, file.created, file.kdf, file.hint) == (original.data, original.created, None, None)
    assert file.modified.epoch > original.modified.epoch
    assert ask("--store", store, "verify")["errors"] == []
    found = ask("--store", store, "verify", "--keyfile", keyfile)
    assert found["errors"] == [] and found["without_key"] == 0
    for name in ("one", "two"):
        done = call("--store", store, "restore", "host/me", tmp_path / name, "--keyfile", keyfile)
        assert done.code == 0 and "not restored" not in done.err
    done = call("--store", store, "restore", "host/me", tmp_path / "raw", "--archive", "rsa-encrypted.key")
    assert done.code == 0 and (tmp_path / "raw").read_bytes() == stored[12:]


def test_wrapped_key_is_restored_without_the_passphrase(material: dict[str, Any], desk: Path) -> None:
    """The very case that it is kept for: the key file is there, its passphrase is forgotten."""
    command = ("--store", material["store"], "restore", "host/me")
    locked = ("--keyfile", material["drawer"] / "key.json")
    for name in ("rsa-encrypted.key", "rsa-encrypted.key.blob"):
        assert call(*command, desk / name, "--archive", name, *locked).code == 0
    assert call(*command, desk / "out", *locked).code == 12


def test_wrapped_key_that_was_altered(material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = material["store"] / material["snapshot"] / "rsa-encrypted.key.blob"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", PASSPHRASE.decode())
    pem = material["drawer"] / "private.pem"
    assert call("--store", material["store"], "key", "drill", "--master-keyfile", pem).code == 20
    assert call("--store", material["store"], "key", "recover", "--master-keyfile", pem, "--kdf", "none").code == 20
    assert call("--store", material["store"], "verify").code == 20


def test_key_that_somebody_else_wrapped(material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public key is public: a key put into the snapshot is not taken for the real one."""
    place = material["store"] / material["snapshot"]
    shutil.copy(KEYS / "rsa-encrypted.key.blob", place)
    text = json.loads(blob.decode((place / "index.json.blob").read_bytes()))
    text["files"][-1]["csum"] = hashlib.sha256((place / "rsa-encrypted.key.blob").read_bytes()).hexdigest()
    (place / "index.json.blob").write_bytes(blob.encode(json.dumps(text).encode()))
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", PASSPHRASE.decode())
    pem = material["drawer"] / "private.pem"
    for command in (("drill",), ("recover", "--kdf", "none")):
        done = call("--store", material["store"], "key", *command, "--master-keyfile", pem)
        assert done.code == 12 and material["fingerprint"][:23] in done.err
    assert not (desk / "new/config/archiver/encryption-key.json").exists()


def test_newest_snapshot_of_somebody_elses_key(
    material: dict[str, Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be told from one that was made after a change of keys, so it is told that there are two keys."""
    monkeypatch.setenv("ARCHIVER_MASTER_PASSWORD", PASSPHRASE.decode())
    store, pem = material["store"], material["drawer"] / "private.pem"
    (desk / "planted").mkdir()
    (desk / "planted/f").write_bytes(b"x")
    options = ("--keyfile", write_key(desk / "k"), "--master-pubkey-file", material["drawer"] / "public.pem")
    name = ask("--store", store, "backup", desk / "planted", "--id", "me", "--time", "2100000000", *options)["snapshot"]
    for command in (("drill",), ("recover", "--kdf", "none")):
        done = call("--store", store, "key", *command, "--master-keyfile", pem)
        assert done.code == 0 and name in done.err and f"with the key {material['fingerprint'][:23]}" in done.err
    shutil.rmtree(store / name)
    done = call("--store", store, "key", "drill", "--master-keyfile", pem)
    assert done.code == 0 and "other snapshots" not in done.err


def test_when_a_master_key_is_used(tmp_path: Path, source: Path, store: Path) -> None:
    imported = tmp_path / ".xdg/config/archiver/master-public.pem"
    imported.parent.mkdir(parents=True)
    imported.write_bytes(b"-----BEGIN")
    keyfile = write_key(tmp_path / "key.json")
    sealed = ("--store", store, "backup", source, "--keyfile", keyfile)
    done = call(*sealed)
    assert done.code == 12 and str(imported) in done.err  # never silently without
    assert call("--store", store, "backup", source, "--id", "plain").code == 0  # where it is of no use
    for options in ((), ("--crypt", "none")):
        done = call("--store", store, "backup", source, "--master-pubkey-file", imported, *options)
        assert done.code == 2 and "no use" in done.err
    imported.unlink()
    imported.symlink_to("/media/stick/master-public.pem")  # not plugged in
    assert call(*sealed).code == 12
    (tmp_path / "public.pem").write_bytes(PUBLIC)
    assert call(*sealed, "--master-pubkey-file", tmp_path / "public.pem").code == 0
    assert len(ask("--store", store, "snapshots")["items"]) == 3


@pytest.mark.parametrize("data", [b"", b"x", WRAPPED[:-1], b"x" * 10_000_000, blob.encode(b"x" * 100, compress=False)])
def test_files_that_are_no_wrapped_key(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "wrapped").write_bytes(data)
    (tmp_path / "private.pem").write_bytes(PRIVATE)
    command = ("key", "recover", "--encrypted-keyfile", tmp_path / "wrapped", "--kdf", "none")
    done = call(*command, "--master-keyfile", tmp_path / "private.pem", "-o", tmp_path / "k")
    assert done.code == 12 and not (tmp_path / "k").exists() and len(done.err) < 500


@pytest.mark.parametrize("kind", ["absent", "directory", "fifo", "empty", "public", "key file", "truncated"])
def test_files_that_are_no_private_key(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "pem"
    if kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind != "absent":
        key_file = (KEYS / "key-none.json").read_bytes()
        place.write_bytes({"empty": b"", "public": PUBLIC, "key file": key_file, "truncated": PRIVATE[:900]}[kind])
    (tmp_path / "wrapped").write_bytes(WRAPPED)
    command = ("key", "recover", "--encrypted-keyfile", tmp_path / "wrapped", "--kdf", "none")
    done = call(*command, "--master-keyfile", place, "-o", tmp_path / "k")
    assert done.code == 12 and str(place) in done.err and not (tmp_path / "k").exists()
