"""The JSON documents that scripts rely on (DESIGN.md 5), what is printed without --json, and exit codes."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from archiver.core.locks import lock_range
from tests.cli.command import ask, call
from tests.cli.stores import SNAPSHOT
from tests.golden_store import FINGERPRINT, write_key

pytestmark = pytest.mark.in_memory

ARCHIVE_KEYS = {
    "name",
    "size",
    "chunks",
    "new_chunks",
    "new_bytes",
    "stored_bytes",
    "reused_chunks",
    "reused_bytes",
    "padding_bytes",
}
SNAPSHOT_KEYS = {"snapshot", "type", "id", "time", "ns", "files", "size", "protected", "owner", "note", "verify"}


def test_init(tmp_path: Path) -> None:
    done = ask("init", tmp_path / "new", "--name", "my-store")
    assert done.keys() == {"schema", "store", "uuid", "name"}
    assert (done["store"], done["name"]) == (str(tmp_path / "new"), "my-store")
    assert uuid.UUID(done["uuid"]).version == 4


def test_backup(store: Path, source: Path) -> None:
    done = ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "tester")
    assert done.keys() == {"schema", "snapshot", "archives", "files", "duration_s", "bytes_read", "errors"}
    assert done["snapshot"].startswith("host/tester/20")
    (archive,) = done["archives"]
    assert archive.keys() == ARCHIVE_KEYS and archive["name"] == "tree.pxar"
    assert archive["new_chunks"] == 0 and archive["chunks"] == 2
    assert done["files"].keys() >= {"total", "unchanged", "reencoded", "read_errors", "torn"}
    assert done["files"]["total"] == 2 and done["errors"] == []
    assert done["bytes_read"] == 14


def test_snapshots(store: Path) -> None:
    document = ask("--store", store, "snapshots")
    assert document.keys() == {"schema", "items"}
    (item,) = document["items"]
    assert item.keys() >= SNAPSHOT_KEYS | {"key_fingerprint"}
    assert (item["snapshot"], item["type"], item["id"], item["time"]) == (SNAPSHOT, "host", "tester", 1700000000)
    assert (item["ns"], item["protected"], item["owner"], item["note"]) == ("", False, "root@pam", None)
    assert item["verify"] is None and item["key_fingerprint"] is None
    assert {file["filename"] for file in item["files"]} == {"tree.mpxar.didx", "tree.ppxar.didx"}
    assert all(file.keys() == {"filename", "crypt_mode", "size"} for file in item["files"])
    assert item["size"] == sum(file["size"] for file in item["files"])


def test_groups_and_files(store: Path) -> None:
    (group,) = ask("--store", store, "groups")["items"]
    assert group.keys() == {"group", "type", "id", "ns", "owner", "count", "last", "files", "note"}
    assert (group["group"], group["count"], group["last"]) == ("host/tester", 1, 1700000000)
    document = ask("--store", store, "files", "host/tester")
    assert document.keys() == {"schema", "snapshot", "items"} and document["snapshot"] == SNAPSHOT
    assert all(item.keys() == {"filename", "crypt_mode", "size", "csum"} for item in document["items"])


def test_ls(store: Path) -> None:
    document = ask("--store", store, "ls", "-R", "latest")
    assert document.keys() == {"schema", "snapshot", "items"} and document["snapshot"] == SNAPSHOT
    items = {item["path"]: item for item in document["items"]}
    assert list(items) == ["/below", "/below/empty", "/file", "/link"]
    usual = {"path", "kind", "mode", "uid", "gid", "mtime", "mtime_nanos"}
    assert items["/below"].keys() == usual
    assert items["/file"].keys() == usual | {"size"} and items["/file"]["size"] == 14
    assert items["/link"].keys() == usual | {"target"} and items["/link"]["target"] == "file"
    (only,) = ask("--store", store, "ls", "latest", "/below/empty")["items"]
    assert only["path"] == "/below/empty"


def test_restore(store: Path, tmp_path: Path) -> None:
    document = ask("--store", store, "restore", "latest", tmp_path / "out")
    keys = {"schema", "snapshot", "target", "entries", "files", "bytes", "verified", "duration_s", "problems", "errors"}
    assert document.keys() == keys | {"replaced", "updated", "unchanged", "kept", "removed", "quarantine"}
    assert (document["entries"], document["files"], document["bytes"]) == (5, 2, 14)
    assert document["verified"] is True and document["errors"] == [] and document["problems"] == 0
    assert ask("--store", store, "restore", "latest", tmp_path / "again", "--no-verify")["verified"] is False


def test_verify(store: Path) -> None:
    document = ask("--store", store, "verify")
    assert document.keys() >= {"schema", "snapshots", "chunks", "bytes", "errors"}
    assert (document["snapshots"], document["chunks"], document["errors"]) == (1, 2, [])
    assert document["unfinished"] == 0 and "unfinished" not in call("--store", store, "verify").out


def test_verify_tells_of_unfinished_snapshots(store: Path) -> None:
    """One that has lost its manifest looks the same."""
    (store / "host/tester/2023-11-14T22:13:21Z").mkdir()
    document = ask("--store", store, "verify")
    assert (document["snapshots"], document["unfinished"], document["error_count"]) == (1, 1, 0)
    done = call("--store", store, "verify")
    assert done.code == 0 and done.lines[-1] == "  1 unfinished snapshots were passed over"


def test_status(store: Path) -> None:
    document = ask("--store", store, "status")
    totals = {"path", "name", "total", "used", "available", "chunks", "stored_bytes", "logical_bytes", "snapshots"}
    assert document.keys() == totals | {"schema", "items", "deduplication_factor", "jobs"}
    (group,) = document["items"]
    assert group.keys() == {"group", "snapshots", "logical_bytes", "stored_bytes", "last", "deduplication_factor"}
    assert document["chunks"] == 2 and document["snapshots"] == group["snapshots"] == 1


GC_KEYS = {"removed_chunks", "removed_bytes", "kept_chunks", "kept_bytes", "pending_chunks", "bad_chunks", "duration_s"}


def test_gc(store: Path, source: Path) -> None:
    (source / "file").write_bytes(b"other contents\n")
    other = ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "other")
    shutil.rmtree(store / SNAPSHOT)
    for line in ("--dry-run", "--dry-run --from-files", "--cutoff 1445", "--immediate", "--from-files"):
        options = line.split()
        document = ask("--store", store, "gc", *options)
        assert document.keys() >= GC_KEYS | {"schema", "mode", "reason", "complete"}
        assert document["mode"] == ("cutoff" if "--cutoff" in options else "immediate")
        assert document["dry_run"] == ("--dry-run" in options)
        left = 0 if options == ["--from-files"] else 2
        assert document["removed_chunks"] + document["pending_chunks"] == left
        assert document["pending_chunks"] == (2 if document["mode"] == "cutoff" else 0)
        assert (document["kept_chunks"], document["bad_chunks"]) == (2, 0)
    assert len(list((store / ".chunks").glob("*/*"))) == 2
    assert ask("--store", store, "verify", other["snapshot"])["errors"] == []
    lines = call("--store", store, "gc").lines
    assert lines[0] == "removed: 0 B in 0 chunks" and lines[1].startswith("kept: ") and len(lines) == 3


def test_gc_of_interrupted_runs(store: Path) -> None:
    name = "2001-02-03T04:05:06Z-00000000"
    (store / ".archiver/sessions" / name).mkdir(parents=True)
    for options in (["--dry-run"], []):
        assert ask("--store", store, "gc", *options)["interrupted"] == []
        told = call("--store", store, "gc", "--interrupted", "--dry-run").lines
        assert f"  and what the interrupted session {name} could be gone on with" in told
    assert ask("--store", store, "gc", "--interrupted")["interrupted"] == [name]
    assert list((store / ".archiver/sessions").iterdir()) == []


def test_gc_refuses(store: Path) -> None:
    assert call("--store", store, "gc", "--immediate", "--cutoff", "5").code == 2
    assert call("--store", store, "gc", "--cutoff", "0").code == 2
    assert call("--store", store, "gc", "--read-only").code == 2
    assert call("--store", store, "gc", "--read-only", "--dry-run").code == 0
    with open(store / ".lock", "r+b") as lock:
        assert lock_range(lock.fileno(), 1, 0, exclusive=True)
        done = call("--store", store, "gc", "--json")
        assert done.code == 11 and done.error["code"] == "locked"
    (store / SNAPSHOT / "tree.ppxar.didx").write_bytes(b"")
    done = call("--store", store, "gc", "--from-files")
    assert done.code == 20 and "nothing is removed" in done.err and "remove its snapshot" in done.err


def test_db(store: Path) -> None:
    assert ask("--store", store, "db", "check") == {"schema": 1, "items": []}
    for command in ("rebuild", "stats"):
        document = ask("--store", store, "db", command)
        assert document.keys() >= {"schema", "snap", "chunk", "bytes"}
        assert (document["snap"], document["chunk"]) == (1, 2)
    assert ask("db", "--store", store, "stats")["directory"] == ask("db", "stats", "--store", store)["directory"]


@pytest.mark.parametrize(
    ("name", "kind", "keys"),
    [
        ("index.json.blob", "manifest", {"encrypted", "compressed", "crc", "size", "digest", "manifest"}),
        ("tree.ppxar.didx", "dynamic index", {"uuid", "ctime", "size", "csum", "stored_csum", "chunks"}),
    ],
)
def test_inspect(store: Path, name: str, kind: str, keys: set[str]) -> None:
    document = ask("debug", "inspect", store / SNAPSHOT / name)
    assert document["kind"] == kind and document["file"] == str(store / SNAPSHOT / name)
    assert document.keys() >= keys
    assert call("debug", "inspect", store / SNAPSHOT / name).lines[0] == f"kind: {kind}"


def test_inspect_decodes(store: Path, tmp_path: Path) -> None:
    blob = store / SNAPSHOT / "index.json.blob"
    done = call("debug", "inspect", blob, "--decode", "-")
    assert done.code == 0 and done.raw.startswith(b"{")
    assert call("debug", "inspect", blob, "--decode", tmp_path / "plain").code == 0
    assert (tmp_path / "plain").read_bytes() == done.raw
    assert call("debug", "inspect", blob, "--decode", tmp_path / "plain").code == 2
    assert call("debug", "inspect", blob, "--decode", "-", "--json").error["code"] == "usage"
    assert call("debug", "inspect", tmp_path / "plain").code == 0


def test_cat_has_no_document(store: Path) -> None:
    done = call("--store", store, "cat", "latest", "/file", "--json")
    assert done.code == 2 and done.error["code"] == "usage"
    assert call("--store", store, "cat", "latest", "/file").raw == b"some contents\n"


@pytest.mark.parametrize("place", ["before", "after", "group"])
@pytest.mark.parametrize("command", [("snapshots",), ("db", "stats"), ("verify", SNAPSHOT)])
def test_global_options_in_every_place(store: Path, place: str, command: tuple[str, ...]) -> None:
    options = ("--store", store, "--json", "--read-only", "-v", "--ns", "")
    name, *rest = command
    where: dict[str, tuple[Any, ...]] = {
        "before": (*options, *command),
        "after": (*command, *options),
        "group": (name, *options, *rest),
    }
    done = call(*where[place])
    assert done.code == 0 and done.document


def test_later_option_wins(store: Path, tmp_path: Path) -> None:
    assert call("--store", tmp_path / "absent", "snapshots", "--store", store).code == 0
    assert call("--store", store, "snapshots", "--store", tmp_path / "absent").code == 13


def test_aliases(store: Path, source: Path) -> None:
    options = ("--backup-id", "other", "--backup-type", "ct", "--backup-time", "2024-01-02T03:04:05Z")
    modes = ("--change-detection-mode", "legacy", "--crypt-mode", "none")
    done = ask("--store", store, "backup", f"tree.pxar:{source}", *options, *modes)
    assert done["snapshot"] == "ct/other/2024-01-02T03:04:05Z"
    names = {item["filename"] for item in ask("--store", store, "files", "ct/other")["items"]}
    assert names == {"tree.pxar.didx", "catalog.pcat1.didx", "index.json.blob"}


def test_store_from_the_environment(store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_STORE", str(store))
    assert len(ask("snapshots")["items"]) == 1
    monkeypatch.setenv("ARCHIVER_STORE", str(store / "absent"))
    assert call("snapshots").code == 13
    assert call("backup", source).code == 13  # only the default store is made on first use
    assert call("--store", store, "snapshots").code == 0


def test_default_store_is_made_on_first_use(source: Path, tmp_path: Path) -> None:
    place = tmp_path / ".xdg/data/archiver/store"
    for command in ("snapshots", "verify", "status", "groups"):
        assert call(command).code == 13
    assert call("backup", source, "--read-only").code == 13
    assert call("backup", source, "--id", "a/b").code == 2
    assert not place.exists()
    done = call("backup", source)
    assert done.code == 0 and str(place) in done.err
    assert len(ask("snapshots")["items"]) == 1
    assert str(place) not in call("backup", source).err


def test_latest_and_groups(store: Path, source: Path) -> None:
    def save(*options: str) -> str:
        return str(ask("--store", store, "backup", f"tree.pxar:{source}", *options)["snapshot"])

    def found(*arguments: str) -> str:
        return str(ask("--store", store, "files", *arguments)["snapshot"])

    later = save("--id", "second", "--time", "1800000000")
    inner = save("--id", "second", "--time", "1900000000", "--ns", "a/b")
    save("--id", "tester", "--time", "1750000000")
    assert inner == "ns/a/ns/b/host/second/2030-03-17T17:46:40Z"
    assert found("latest") == found("host/second") == later
    assert (
        found("latest", "--ns", "a/b") == found("host/second", "--ns", "a/b") == found("ns/a/ns/b/host/second") == inner
    )
    assert found(SNAPSHOT) == SNAPSHOT
    assert call("--store", store, "files", "latest", "--ns", "a").code == 10
    assert call("--store", store, "snapshots", "--ns", "absent").code == 10
    assert call("--store", store, "verify", "--ns", "absent").code == 10
    assert len(ask("--store", store, "verify", "--ns", "a")) and ask("--store", store, "verify")["snapshots"] == 4


def test_time_moves_on(store: Path, source: Path) -> None:
    options = ("--store", store, "backup", f"tree.pxar:{source}", "--id", "tester")
    moved = call(*options, "--time", "1700000000", "--json")
    assert moved.document["snapshot"] == "host/tester/2023-11-14T22:13:21Z" and "moved" in moved.err
    assert call(*options, "--time", "253402300799").code == 0
    last = call(*options, "--json")
    assert last.code == 2 and "last possible time" in last.error["message"]


def test_two_archives(store: Path, source: Path, tmp_path: Path) -> None:
    ask("--store", store, "backup", f"one.pxar:{source}", f"two.pxar:{source / 'below'}", "--id", "pair")
    assert call("--store", store, "ls", "host/pair").lines == ["one.pxar", "two.pxar"]
    assert call("--store", store, "ls", "host/pair", "--archive", "two").lines == ["empty"]
    assert call("--store", store, "cat", "host/pair", "/file", "--archive", "one.pxar").raw == b"some contents\n"
    ask("--store", store, "restore", "host/pair", tmp_path / "both")
    assert (tmp_path / "both/one.pxar/file").read_bytes() == b"some contents\n"
    assert (tmp_path / "both/two.pxar/empty").is_file()
    ask("--store", store, "restore", "host/pair", tmp_path / "single", "--archive", "two")
    assert (tmp_path / "single/empty").is_file()


def test_nothing_is_written_when_one_of_two_places_is_taken(store: Path, source: Path, tmp_path: Path) -> None:
    ask("--store", store, "backup", f"one.pxar:{source}", f"two.pxar:{source / 'below'}", "--id", "pair")
    (tmp_path / "both/two.pxar/mine").mkdir(parents=True)
    assert call("--store", store, "restore", "host/pair", tmp_path / "both").code == 2
    assert not (tmp_path / "both/one.pxar").exists()


def test_quiet(tmp_path: Path, source: Path) -> None:
    """Nothing but what was asked for is printed, and errors."""
    store = tmp_path / "quiet"
    silent: list[tuple[Any, ...]] = [
        ("init", store),
        ("--store", store, "backup", f"tree.pxar:{source}", "--time", "1700000000"),
        ("--store", store, "backup", f"tree.pxar:{source}", "--time", "1700000000"),
        ("--store", store, "restore", "latest", tmp_path / "out"),
        ("--store", store, "verify"),
        ("--store", store, "gc"),
        ("--store", store, "db", "check"),
        ("--store", store, "db", "rebuild"),
    ]
    for arguments in silent:
        done = call(*arguments, "-q")
        assert (done.code, done.raw, done.err) == (0, b"", ""), arguments
    assert call("--store", store, "ls", "latest", "-q").lines == ["below", "file", "link"]
    assert "is not a store" in call("--store", source, "ls", "latest", "-q").err


def test_quiet_still_tells_errors(store: Path, tmp_path: Path) -> None:
    for chunk in ask("debug", "inspect", store / SNAPSHOT / "tree.ppxar.didx")["chunks"]:
        (store / ".chunks" / chunk["digest"][:4] / chunk["digest"]).unlink()
    done = call("--store", store, "restore", "latest", tmp_path / "out", "-q")
    assert done.code == 20 and done.raw == b""
    assert "damaged: /file: chunk" in done.err


def test_key(store: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyfile = write_key(tmp_path / "key.json")
    done = call("--store", store, "backup", f"tree.pxar:{source}", "--id", "sealed", "--keyfile", keyfile)
    assert done.code == 0 and FINGERPRINT[:23] in done.err and "encrypt" in done.err
    monkeypatch.setenv("ARCHIVER_KEYFILE", str(keyfile))
    signed = call("--store", store, "backup", f"tree.pxar:{source}", "--id", "signed", "--crypt", "sign-only")
    assert signed.code == 0 and "sign-only" in signed.err
    plain = call("--store", store, "backup", f"tree.pxar:{source}", "--id", "plain", "--crypt", "none")
    assert plain.code == 0 and plain.err.startswith("encryption: none")
    modes = {
        item["id"]: {file["crypt_mode"] for file in item["files"]}
        for item in ask("--store", store, "snapshots")["items"]
    }
    assert modes == {"sealed": {"encrypt"}, "signed": {"sign-only"}, "plain": {"none"}, "tester": {"none"}}
    assert call("--store", store, "backup", source, "--crypt", "none", "--keyfile", keyfile).code == 2
    monkeypatch.delenv("ARCHIVER_KEYFILE")
    for mode in ("encrypt", "sign-only"):
        assert call("--store", store, "backup", source, "--crypt", mode).code == 2
    for name in ("signed", "sealed"):
        assert call("--store", store, "cat", f"host/{name}", "/file").code == 12
    assert call("--store", store, "cat", "host/signed", "/file", "--allow-unsigned").raw == b"some contents\n"
    assert call("--store", store, "cat", "host/sealed", "/file", "--allow-unsigned").code == 12


@pytest.mark.parametrize("contents", [None, b"", b"no key", b"{}", b"\xff\xfe"])
def test_bad_key_is_no_reason_not_to_read_plain_snapshots(
    store: Path, source: Path, tmp_path: Path, contents: bytes | None
) -> None:
    """The user's own key is loaded where something is protected only; a key that was asked for always."""
    own = tmp_path / ".xdg/config/archiver/encryption-key.json"
    own.parent.mkdir(parents=True)
    if contents is not None:
        own.write_bytes(contents)
        assert call("--store", store, "backup", source).code == 12  # never without encryption instead
    assert call("--store", store, "cat", "latest", "/file").raw == b"some contents\n"
    assert call("--store", store, "ls", "latest").code == 0
    assert call("--store", store, "restore", "latest", tmp_path / "out").code == 0
    missing = own if contents is not None else tmp_path / "absent"
    assert call("--store", store, "ls", "latest", "--keyfile", missing).code == 12
    assert call("--store", store, "backup", source, "--keyfile", missing, "--json").error["code"] == "key"


def test_restore_dry_run(store: Path, source: Path, tmp_path: Path) -> None:
    totals = {"create", "replace", "update", "remove", "blocked", "kept", "unchanged", "incomplete", "bytes", "space"}
    document = ask("--store", store, "restore", "latest", tmp_path / "out", "--dry-run")
    assert document.keys() == totals | {"schema", "snapshot", "target", "dry_run", "available", "items"}
    assert (document["create"], document["bytes"], document["dry_run"]) == (5, 14, True)
    assert {item["path"]: item["action"] for item in document["items"]} == dict.fromkeys(
        ["/", "/below", "/below/empty", "/file", "/link"], "create"
    )
    assert all(item.keys() == {"target", "path", "action", "kind", "bytes", "reasons"} for item in document["items"])
    assert not (tmp_path / "out").exists()
    shutil.copytree(source, tmp_path / "out", symlinks=True)
    (tmp_path / "out/file").write_bytes(b"other contents")
    (tmp_path / "out/extra").write_bytes(b"extra")
    (tmp_path / "out/below/empty").chmod(0o600)
    options = ("--overwrite", "always", "--delete", "--owner", "none")
    document = ask("--store", store, "restore", "latest", tmp_path / "out", "--dry-run", *options)
    found = {item["path"]: item["action"] for item in document["items"] if item["kind"] == "file"}
    assert found == {"/below/empty": "update", "/extra": "remove", "/file": "replace"}
    lines = call("--store", store, "restore", "latest", tmp_path / "out", "--dry-run", *options).lines
    assert "~ replace file     /file  14 B" in lines and any("14 B to write, at most 4 KiB" in line for line in lines)
    document = ask("--store", store, "restore", "latest", tmp_path / "out", *options)
    assert (document["replaced"], document["removed"], len(document["quarantine"])) == (1, 1, 1)
