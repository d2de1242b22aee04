"""The golden datastore, made by the reference implementation, read through every door there is."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from archiver.browse.snapshot import Snapshot
from archiver.store.indexes import load_index
from archiver.store.store import Store
from formats.index import DynamicIndex
from tests.cli.command import ask, call
from tests.compare import snapshot_tree
from tests.formats.pxar.listings import Listed, accessed, bytes_of, decoded, entries_only
from tests.golden_data import content
from tests.golden_store import (
    DATASTORE,
    ENCRYPTED,
    FINGERPRINT,
    KEY,
    PLAIN,
    TREES,
    expected,
    listing,
    write_key,
)

FILES = ("file", "hardlink")


def path_of(entry: dict[str, Any]) -> str:
    return f"ns/{entry['ns'].replace('/', '/ns/')}/{entry['snapshot']}" if entry["ns"] else str(entry["snapshot"])


def test_verify(store: Path, keyfile: Path) -> None:
    (totals,) = [entry for entry in DATASTORE["check"] if "chunks" in entry]
    without = ask("--store", store, "verify")
    assert (without["snapshots"], without["chunks"], without["errors"]) == (8, totals["chunks"], [])
    encrypted = {
        d for name, index in DATASTORE["indexes"].items() if name.startswith("ns/") for _, d in index["chunks"]
    }
    assert without["without_key"] == without["without_sum"] == len(encrypted)
    made_with_key = [name for name in (*PLAIN, *ENCRYPTED) if name in ENCRYPTED or "signed" in name]
    unsigned = [*reversed(PLAIN[:3]), PLAIN[3], PLAIN[5]]  # the newest of a group comes first
    assert without["signatures"] == {"valid": [], "unchecked": made_with_key, "unsigned": unsigned}
    with_key = ask("--store", store, "verify", "--keyfile", keyfile)
    signatures = {"valid": made_with_key, "unchecked": [], "unsigned": unsigned}
    assert with_key == without | {"without_key": 0, "without_sum": 0, "not_proven": [], "signatures": signatures}
    for name in (*PLAIN, *ENCRYPTED):
        one = ask("--store", store, "verify", name, "--keyfile", keyfile)
        assert one["errors"] == [] and one["snapshots"] == 1


def test_lists(store: Path) -> None:
    found = {item["snapshot"]: item for item in ask("--store", store, "snapshots")["items"]}
    groups = {item["group"]: item for item in ask("--store", store, "groups")["items"]}
    assert found.keys() == {path_of(entry) for entry in DATASTORE["list"]}
    for entry in DATASTORE["list"]:
        name = path_of(entry)
        item = found[name]
        assert (item["owner"], item["protected"], item["finished"]) == (
            entry["owner"],
            entry["protected"],
            entry["finished"],
        )
        assert f"{item['type']}/{item['id']}" == entry["group"] and item["ns"] == entry["ns"]
        group = groups[name.rsplit("/", 1)[0]]
        assert (group["owner"], group["ns"]) == (entry["owner"], entry["ns"])
        listed = {file["filename"]: file for file in ask("--store", store, "files", name)["items"]}
        assert listed.keys() == set(entry["files"])
        assert {file["filename"] for file in item["files"]} == listed.keys() - {"index.json.blob", "client.log.blob"}
        for filename, file in listed.items():
            index = DATASTORE["indexes"].get(f"{name}/{filename}")
            if index is not None:
                assert (file["size"], file["csum"]) == (index["size"], index["computed_csum"])
    assert groups["host/alpha"]["count"] == 3
    assert {name: item["note"] for name, item in found.items() if item["note"]} == {
        "host/alpha/2023-11-14T22:13:20Z": "first\nsecond line",
        "ns/one/ct/200/2023-11-14T22:13:27Z": "encrypted snapshot",
    }
    assert {name: item["verify"] for name, item in found.items() if item["verify"]} == {
        "host/alpha/2023-11-14T22:13:20Z": {"state": "ok", "time": 1700000000}
    }
    keyed = {name for name, item in found.items() if item["key_fingerprint"] == FINGERPRINT}
    assert keyed == {*ENCRYPTED, "host/signed/2023-11-14T22:13:29Z"}


def test_one_group_and_one_namespace(store: Path) -> None:
    def names(*arguments: str) -> list[str]:
        return [item["snapshot"] for item in ask("--store", store, "snapshots", *arguments)["items"]]

    assert names("host/alpha") == list(PLAIN[:3])
    assert names("--ns", "one") == names("--ns", "/one/") == list(ENCRYPTED)
    assert (
        names("--ns", "one/two")
        == names("ns/one/ns/two/ct/200")
        == names("ct/200", "--ns", "one/two")
        == [ENCRYPTED[1]]
    )
    assert [item["group"] for item in ask("--store", store, "groups", "--ns", "one/two")["items"]] == [
        "ns/one/ns/two/ct/200"
    ]


@pytest.mark.parametrize("name", DATASTORE["indexes"])
def test_index(store: Path, name: str) -> None:
    wanted = DATASTORE["indexes"][name]
    index = load_index(str(store / name))
    chunks = [[index.end(at), index.digest(at).hex()] for at in range(len(index))]
    assert chunks == wanted["chunks"]
    assert index.uuid.hex() == wanted["uuid"].replace("-", "")
    assert (index.ctime, index.size, index.csum().hex()) == (wanted["ctime"], wanted["size"], wanted["index_csum"])
    shown = ask("debug", "inspect", store / name)
    assert [[chunk["end"], chunk["digest"]] for chunk in shown["chunks"]] == chunks
    if isinstance(index, DynamicIndex):
        assert wanted["type"] == "didx" and shown["kind"] == "dynamic index"
    else:
        assert wanted["type"] == "fidx" and shown["kind"] == "fixed index"
        assert index.chunk_size == shown["chunk_size"] == wanted["chunk_size"]


@pytest.mark.parametrize("name", TREES)
def test_tree_in_memory(store: Path, name: str) -> None:
    """Every byte of both streams, read in order and through the goodbye tables."""
    with Store.open(store, read_only=True) as opened:
        snapshot = Snapshot(opened, opened.find(name), KEY)
        tree = snapshot.tree(snapshot.archive(None))
        archive = b"".join(tree.archive.pieces(0, tree.archive.size))
        payload = b"".join(tree.content.pieces(0, tree.content.size)) if tree.split else None
    wanted = entries_only(listing(name))
    assert accessed(archive, payload) == wanted
    found = decoded(archive, payload)
    # only a goodbye table tells whether the contents of a file were reused, and so count in its length
    assert _without_ends(found) == _without_ends(wanted)


def _without_ends(items: list[Listed]) -> list[Listed]:
    return [{key: value for key, value in item.items() if key != "entry_end"} for item in items]


@pytest.mark.parametrize("name", TREES)
def test_ls_and_cat(store: Path, keyfile: Path, name: str) -> None:
    base = ("--store", store, "--keyfile", keyfile)
    found = ask(*base, "ls", "-R", name)["items"]
    wanted = {_text(item, "path"): item for item in listing(name) if bytes_of(item, "path") != b"/"}
    assert [item["path"] for item in found] == sorted(wanted, key=lambda path: os.fsencode(path).split(b"/"))
    for item in found:
        entry = wanted[item["path"]]
        assert item["kind"] == entry["kind"]
        for ours, theirs in {"mode": "mode", "uid": "uid", "gid": "gid", "mtime": "mtime_secs"}.items():
            assert item.get(ours) == entry.get(theirs)
        assert item.get("mtime_nanos") == entry.get("mtime_nanos")
        assert item.get("size") == entry.get("size")
        if "target" in item:
            assert item["target"] == _text(entry, "target")
    by_path = {**wanted}
    for path, entry in wanted.items():
        done = call(*base, "cat", name, path)
        if entry["kind"] not in FILES:
            assert (done.code, done.raw) == (2, b""), path
            continue
        file = by_path["/" + _text(entry, "target")] if entry["kind"] == "hardlink" else entry
        assert done.code == 0 and len(done.raw) == file["size"], path
        assert sha256(done.raw).hexdigest() == file["sha256"], path
        if "content" in file:
            assert done.raw == content(file["content"])


def _text(item: Listed, key: str) -> str:
    return bytes_of(item, key).decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("name", TREES)
def test_restored_tree(store: Path, keyfile: Path, target: Path, name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("owners, devices and attributes can be restored by root only")
    result = ask("--store", store, "--keyfile", keyfile, "restore", name, target)
    assert result["verified"] and result["errors"] == []
    items = listing(name)
    assert result["entries"] == len(items)
    wanted, found = expected(items), snapshot_tree(target)
    assert found.keys() == wanted.keys()
    for path, entry in wanted.items():
        kept = {key: found[path][key] for key in entry}
        kept["flags"] &= ~0x40  # nodump: what was on the directory is not ours
        assert kept == entry, bytes.fromhex(path)
        assert found[path]["errors"] == {}
    for item in items:
        if item["kind"] == "file":
            data = (target / os.fsdecode(bytes_of(item, "path")[1:])).read_bytes()
            assert (len(data), sha256(data).hexdigest()) == (item["size"], item["sha256"])


@pytest.mark.parametrize(
    ("name", "archive"), [(PLAIN[5], "drive-scsi0.img"), (PLAIN[5], "drive-scsi0"), (ENCRYPTED[0], "raw.img.fidx")]
)
def test_image(store: Path, keyfile: Path, target: Path, name: str, archive: str) -> None:
    base = ("--store", store, "--keyfile", keyfile)
    image = content(DATASTORE["image"])
    result = ask(*base, "restore", name, target, "--archive", archive)
    assert result["bytes"] == len(image) and result["verified"]
    assert target.read_bytes() == image
    assert target.stat().st_blocks * 512 < len(image) - (3 << 20)  # the zeros take no space
    target.unlink()
    assert call(*base, "cat", name, "/", "--archive", archive).raw == image


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        (PLAIN[0], "etc.conf"),
        (PLAIN[1], "etc.conf.blob"),
        (PLAIN[4], "etc"),
        (PLAIN[5], "qemu-server.conf"),
        (ENCRYPTED[0], "pct.conf"),
    ],
)
def test_config(store: Path, keyfile: Path, target: Path, name: str, archive: str) -> None:
    base = ("--store", store, "--keyfile", keyfile)
    ask(*base, "restore", name, target, "--archive", archive)
    assert target.read_bytes() == content(DATASTORE["conf"])
    assert call(*base, "cat", name, "x", "--archive", archive).raw == content(DATASTORE["conf"])


def test_whole_machine(store: Path, target: Path) -> None:
    """A snapshot without a tree: every archive becomes a file of the target."""
    result = ask("--store", store, "restore", "vm/100", target)
    assert result["files"] == 2
    assert (target / "drive-scsi0.img").read_bytes() == content(DATASTORE["image"])
    assert (target / "qemu-server.conf").read_bytes() == content(DATASTORE["conf"])


def test_what_a_whole_restore_leaves_out_is_told(store: Path, target: Path) -> None:
    done = call("--store", store, "restore", PLAIN[1], target)
    assert done.code == 0
    assert "not restored" in done.err and "etc.conf" in done.err


def test_wrapped_key_needs_no_key(store: Path, target: Path) -> None:
    done = call("--store", store, "restore", ENCRYPTED[0], target, "--archive", "rsa-encrypted.key")
    assert done.code == 0, done.err
    assert target.stat().st_size > 100


@pytest.mark.parametrize("command", ["ls", "cat", "restore"])
@pytest.mark.parametrize("name", ENCRYPTED)
def test_no_key_and_wrong_key(store: Path, tmp_path: Path, target: Path, command: str, name: str) -> None:
    """Told before any work, with the fingerprint of the key that is needed."""
    arguments = {"ls": (name,), "cat": (name, "/x"), "restore": (name, target)}[command]
    short = FINGERPRINT[:23]
    missing = call("--store", store, command, *arguments)
    assert missing.code == 12 and short in missing.err and missing.raw == b""
    other = write_key(tmp_path / "other.json", bytes(32))
    wrong = call("--store", store, command, *arguments, "--keyfile", other)
    assert wrong.code == 12 and short in wrong.err and wrong.raw == b""
    if command != "cat":
        assert call("--store", store, command, *arguments, "--json").error["code"] == "key"
    assert not target.exists()


def test_image_without_key_makes_nothing(store: Path, target: Path) -> None:
    done = call("--store", store, "restore", ENCRYPTED[0], target / "disk", "--archive", "raw.img")
    assert done.code == 12
    assert not target.exists()


def test_verify_with_a_wrong_key(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here was made with it: told before any work. One that nobody chose is no reason not to check what can be
    checked without, and so is the right one of other snapshots."""
    other = write_key(tmp_path / "other.json", bytes(32))
    for name in ([], ["host/signed"], [ENCRYPTED[0]]):
        done = call("--store", store, "verify", *name, "--json", "--keyfile", other)
        assert done.code == 12 and FINGERPRINT[:23] in done.error["message"]
    monkeypatch.setenv("ARCHIVER_KEYFILE", str(other))
    assert call("--store", store, "verify").code == 12
    monkeypatch.delenv("ARCHIVER_KEYFILE")
    own = tmp_path / ".xdg/config/archiver"
    own.mkdir(parents=True)
    write_key(own / "encryption-key.json", bytes(32))
    done = call("--store", store, "verify", "--json")
    assert done.code == 0 and done.document["without_key"] > 0 and FINGERPRINT[:23] in done.err
    signed = call("--store", store, "verify", "host/signed")
    assert signed.code == 0 and FINGERPRINT[:23] in signed.err
    ask("--store", store, "backup", f"a.pxar:{own}", "--keyfile", other, "--id", "other")
    done = call("--store", store, "verify", "--json", "--keyfile", other)
    assert done.code == 0 and done.document["without_key"] > 0 and FINGERPRINT[:23] in done.err
    assert len(done.document["signatures"]["valid"]) == 1


def test_continued(store: Path, tmp_path: Path, target: Path) -> None:
    """A backup into the store that a server made; what was there stays as it is."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"new")
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    done = ask("--store", store, "backup", f"root.pxar:{source}", "--id", "alpha", "--chunk-size", "64")
    assert done["snapshot"].startswith("host/alpha/20")
    assert {path: path.read_bytes() for path in before} == before
    assert (store / "host/alpha/owner").read_text() == "root@pam\n"
    ask("--store", store, "restore", "host/alpha", target)
    assert (target / "file").read_bytes() == b"new"
    assert ask("--store", store, "verify")["errors"] == []
    assert len(ask("--store", store, "snapshots", "host/alpha")["items"]) == 4


def test_same_answers_with_and_without_database(store: Path) -> None:
    before = {command: ask("--store", store, command)["items"] for command in ("snapshots", "groups", "status")}
    numbers = ask("--store", store, "db", "rebuild")
    assert (numbers["snap"], numbers["chunk"]) == (8, 73)
    assert ask("--store", store, "db", "check")["items"] == []
    after = {command: ask("--store", store, command)["items"] for command in before}
    read_only = {command: ask("--store", store, "--read-only", command)["items"] for command in before}
    assert before == after == read_only
