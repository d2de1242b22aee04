"""Damage to the golden datastore: found, named exactly, never restored as if it was good, and nobody else's problem."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from archiver.browse.verify import verify
from archiver.core.events import ignore
from archiver.store.store import Store
from formats import blob
from tests.cli.command import ask, call
from tests.formats.pxar.listings import bytes_of
from tests.golden_store import DATASTORE, ENCRYPTED, PLAIN, TREES, listing
from tests.trees import remove_tree

CHUNKS = sorted({digest for index in DATASTORE["indexes"].values() for _, digest in index["chunks"]})


# -- ways to damage a file ---------------------------------------------------------------------------------------------


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    # the first 4096 bytes of an index hold things that no checksum covers and nobody needs, its time for example
    start = 4096 if path.name.endswith("idx") else 0
    data[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_unseen(path: Path, rng: random.Random) -> None:
    """As a disk does it: size and times stay."""
    before = path.stat()
    flip(path, rng)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def extend(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def empty(path: Path, rng: random.Random) -> None:
    os.truncate(path, 0)


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def symlink(path: Path, rng: random.Random) -> None:
    """To the very same bytes: even so it is not what a store consists of."""
    copy = path.with_name("elsewhere")
    path.rename(copy)
    path.symlink_to(copy)


def swap(path: Path, rng: random.Random) -> None:
    """Replace a chunk by another one that is good in itself, and of the same kind."""
    magic = path.read_bytes()[:8]
    others = [other for other in sorted(path.parent.parent.glob("*/*")) if other.name != path.name]
    shutil.copy(rng.choice([other for other in others if other.read_bytes()[:8] == magic]), path)


def lose_shard(path: Path, rng: random.Random) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_bytes(b"a file")


Damage = Callable[[Path, random.Random], None]
TO_CHUNKS: tuple[Damage, ...] = (flip, truncate, extend, empty, delete, swap, directory, fifo, symlink, lose_shard)
TO_FILES: tuple[Damage, ...] = (flip, truncate, extend, empty, delete, directory, fifo, symlink)


# -- what is to be expected --------------------------------------------------------------------------------------------


def references(digest: str) -> dict[str, list[tuple[int, int]]]:
    """Index file (with its snapshot) -> ranges of its stream that lie in the chunk."""
    found: dict[str, list[tuple[int, int]]] = {}
    for name, index in DATASTORE["indexes"].items():
        ends = [0] + [end for end, _ in index["chunks"]]
        ranges = [(ends[at], ends[at + 1]) for at, (_, used) in enumerate(index["chunks"]) if used == digest]
        if ranges:
            found[name] = ranges
    return found


def touched(snapshot: str, start: int, end: int) -> set[str]:
    """Files with contents in a range of the payload stream, their headers included; in a version 1 archive of the
    archive stream."""
    found = set()
    for item in listing(snapshot):
        if item["kind"] == "file":
            place = item["offset"] if item["payload_offset"] is None else item["payload_offset"]
            length = item["size"] if item["payload_offset"] is None else 16 + item["size"]
            if place < end and place + length > start and length:
                found.add(bytes_of(item, "path").decode("utf-8", "surrogateescape"))
    return found


def check_restored(target: Path, snapshot: str) -> set[str]:
    """Every file that is there has the right bytes; returns the paths of those that are not."""
    missing = set()
    for item in listing(snapshot):
        if item["kind"] == "file":
            path = target / os.fsdecode(bytes_of(item, "path")[1:])
            if path.exists():
                assert sha256(path.read_bytes()).hexdigest() == item["sha256"], path
            else:
                missing.add("/" + os.fsdecode(bytes_of(item, "path")[1:]))
    return missing


def check_errors(errors: list[dict[str, Any]], digest: str) -> None:
    places = references(digest)
    assert all(error.keys() == {"snapshot", "archive", "chunk", "reason", "files"} for error in errors)
    found = sorted((f"{error['snapshot']}/{error['archive']}", error["chunk"]) for error in errors)
    assert found == sorted((name, digest) for name, ranges in places.items() for _ in ranges)
    for name, ranges in places.items():
        snapshot, archive = name.rsplit("/", 1)
        of_archive = [error for error in errors if (error["snapshot"], error["archive"]) == (snapshot, archive)]
        for error, (start, end) in zip(of_archive, ranges, strict=True):
            check_files(error["files"], snapshot, archive, start, end)
            assert error["reason"]


def check_files(files: list[str], snapshot: str, archive: str, start: int, end: int) -> None:
    if archive.startswith("catalog"):
        assert files == []
    elif archive.endswith(".fidx"):
        assert files == [archive.removesuffix(".fidx")]
    elif archive.endswith(".ppxar.didx"):
        assert sorted(files) == sorted(touched(snapshot, start, end))
    elif archive.endswith(".mpxar.didx"):
        assert len(files) == 1 and files[0].startswith("(everything after /")
    else:  # names and contents in one stream: what comes after a hidden name cannot be named
        named, hurt = set(files), touched(snapshot, start, end)
        if files[-1].startswith("(everything after"):
            named.remove(files[-1])
            last = files[-1].removeprefix("(everything after ").removesuffix(")")
            order = [bytes_of(item, "path").decode("utf-8", "surrogateescape") for item in listing(snapshot)]
            hurt = {path for path in hurt if order.index(path) <= order.index(last)}
        assert named == hurt


# -- chunks ------------------------------------------------------------------------------------------------------------


def one_chunk(store: Path, keyfile: Path, target: Path, damage: Damage, digest: str, rng: random.Random) -> None:
    damage(store / ".chunks" / digest[:4] / digest, rng)
    done = call("--store", store, "--keyfile", keyfile, "verify", "--json")
    assert done.code == 20
    check_errors(done.document["errors"], digest)
    hurt = {name.rsplit("/", 1)[0] for name in references(digest)}
    for name in (*PLAIN, *ENCRYPTED):
        assert call("--store", store, "verify", name, "--keyfile", keyfile).code == (20 if name in hurt else 0)
    for name, index in TREES.items():
        if name in hurt or name in rng.sample(sorted(TREES), 1):
            restore_tree(store, keyfile, target, name, digest, index)


def restore_tree(store: Path, keyfile: Path, target: Path, name: str, digest: str, index: str) -> None:
    done = call("--store", store, "--keyfile", keyfile, "restore", name, target, "--json")
    base = index.removesuffix("pxar.didx").removesuffix("m")
    places = references(digest)
    lost = set()
    for index_name in (f"{base}ppxar.didx", f"{base}pxar.didx"):
        lost |= {path for piece in places.get(index_name, ()) for path in touched(name, *piece)}
    if done.document.keys() == {"schema", "error"}:  # names were hidden, what came before is there
        assert done.code == 20 and done.error["code"] == "damaged"
        assert f"{base}mpxar.didx" in places or f"{base}pxar.didx" in places
        if target.is_dir():
            check_restored(target, name)
    else:
        assert done.code == (20 if lost else 0)
        told = {error["path"] for error in done.document["errors"] if error["kind"] == "damaged"}
        assert told == lost == check_restored(target, name)
    if target.is_dir():
        remove_tree(target)


@pytest.mark.parametrize("damage", TO_CHUNKS)
@pytest.mark.parametrize("seed", [1, 2])
def test_chunk(store: Path, keyfile: Path, target: Path, damage: Damage, seed: int) -> None:
    rng = random.Random(f"{seed} {damage.__name__}")
    one_chunk(store, keyfile, target, damage, rng.choice(CHUNKS), rng)


@pytest.mark.slow
@pytest.mark.parametrize("digest", CHUNKS)
@pytest.mark.parametrize("damage", [flip, delete])
def test_every_chunk(store: Path, keyfile: Path, target: Path, damage: Damage, digest: str) -> None:
    one_chunk(store, keyfile, target, damage, digest, random.Random(digest))


def test_gap_that_no_file_refers_to(store: Path, target: Path) -> None:
    """The chunk behind the gap is missing: verify tells, every file of the snapshot restores."""
    name = "host/alpha/2023-11-16T22:13:20Z"
    ends = DATASTORE["indexes"][f"{name}/root.ppxar.didx"]["chunks"]
    ((start, end),) = next(entry for entry in DATASTORE["check"] if entry.get("snapshot") == name)["files"][
        "root.mpxar.didx"
    ]["pxar"]["payload_gaps"]
    inside = [at for at in range(1, len(ends)) if start <= ends[at - 1][0] and ends[at][0] <= end]
    if not inside:  # then the gap is a part of a chunk, which is read for the files beside it
        digest = next(digest for reached, digest in ends if reached >= end)
        assert touched(name, start, end) == set()
        (store / ".chunks" / digest[:4] / digest).unlink()
        done = call("--store", store, "restore", name, target, "--json")
        assert {error["path"] for error in done.document["errors"]} == check_restored(target, name)
    for at in inside:
        (store / ".chunks" / ends[at][1][:4] / ends[at][1]).unlink()
        done = call("--store", store, "verify", name, "--json")
        assert done.code == 20 and done.document["errors"][-1]["files"] == []
        assert call("--store", store, "restore", name, target).code == 0
        assert check_restored(target, name) == set()


def test_many_chunks(store: Path, keyfile: Path, target: Path) -> None:
    """A third of all chunks gone: the rest is told and restored as it should be."""
    gone = set(random.Random(7).sample(CHUNKS, len(CHUNKS) // 3))
    for digest in gone:
        (store / ".chunks" / digest[:4] / digest).unlink()
    done = call("--store", store, "--keyfile", keyfile, "verify", "--json")
    assert done.code == 20
    assert {error["chunk"] for error in done.document["errors"]} == gone
    for digest in gone:
        check_errors([error for error in done.document["errors"] if error["chunk"] == digest], digest)
    for name in TREES:
        result = call("--store", store, "--keyfile", keyfile, "restore", name, target, "--json")
        missing = check_restored(target, name) if target.is_dir() else {"everything"}
        assert result.code == (20 if missing else 0)
        if target.is_dir():
            remove_tree(target)


@pytest.mark.parametrize(("name", "archive"), [(PLAIN[5], "drive-scsi0.img"), (ENCRYPTED[0], "raw.img")])
@pytest.mark.parametrize("damage", [flip, swap, delete])
def test_image(store: Path, keyfile: Path, target: Path, name: str, archive: str, damage: Damage) -> None:
    """Nothing is left behind of an image that is not complete."""
    digest = DATASTORE["indexes"][f"{name}/{archive}.fidx"]["chunks"][-1][1]
    damage(store / ".chunks" / digest[:4] / digest, random.Random(1))
    done = call("--store", store, "--keyfile", keyfile, "restore", name, target, "--archive", archive, "--json")
    assert done.code == 20 and digest in done.error["message"]
    assert not target.exists()


@pytest.mark.parametrize("damage", [flip, swap, delete])
def test_cat(store: Path, damage: Damage) -> None:
    """Only bytes that were checked reach stdout, and it ends with an error."""
    name = "host/alpha/2023-11-15T22:13:20Z"
    item = next(item for item in listing(name) if item["kind"] == "file" and item["size"] > 50_000)
    digest = next(
        d for end, d in DATASTORE["indexes"][f"{name}/root.ppxar.didx"]["chunks"] if end > item["payload_offset"]
    )
    path = bytes_of(item, "path").decode()
    good = call("--store", store, "cat", name, path)
    assert good.code == 0
    damage(store / ".chunks" / digest[:4] / digest, random.Random(1))
    done = call("--store", store, "cat", name, path)
    assert done.code == 20 and digest in done.err
    assert len(done.raw) < len(good.raw) and good.raw.startswith(done.raw)


def test_text_of_verify(store: Path) -> None:
    name = "host/alpha/2023-11-15T22:13:20Z"
    end, digest = DATASTORE["indexes"][f"{name}/root.ppxar.didx"]["chunks"][0]
    (store / ".chunks" / digest[:4] / digest).unlink()
    done = call("--store", store, "verify", name, "-q")
    assert done.code == 20
    assert f"{name} root.ppxar.didx: chunk {digest} is missing" in done.lines
    assert {line.strip() for line in done.lines if line.startswith("    ")} == touched(name, 0, end)


# -- the other files of a snapshot -------------------------------------------------------------------------------------


def others_are_fine(store: Path, target: Path, name: str, *, listed: int = 8) -> None:
    """Every other snapshot is listed, verifies and restores; the commands that look at all of them go on."""
    assert len(ask("--store", store, "snapshots")["items"]) == listed
    for command in ("snapshots", "groups", "status"):
        ask("--store", store, command)
        ask("--store", store, "--read-only", command)
    other = "host/signed" if name.startswith("host/alpha") else PLAIN[1]
    ask("--store", store, "verify", other)
    ask("--store", store, "restore", other, target / "other", "--allow-unsigned")


@pytest.mark.parametrize("damage", TO_FILES)
@pytest.mark.parametrize("filename", ["root.ppxar.didx", "root.mpxar.didx"])
def test_index(store: Path, target: Path, damage: Damage, filename: str) -> None:
    name = "host/alpha/2023-11-16T22:13:20Z"
    damage(store / name / filename, random.Random(5))
    done = call("--store", store, "verify", "--json")
    assert done.code == 20
    assert {(error["snapshot"], error["archive"]) for error in done.document["errors"]} == {(name, filename)}
    result = call("--store", store, "restore", name, target, "--json")
    assert result.code == 20 and filename in result.error["message"]
    assert not target.exists()
    others_are_fine(store, target, name)


def test_index_of_another_snapshot(store: Path, target: Path) -> None:
    """Good in itself, but not the one that the manifest describes."""
    name = "host/alpha/2023-11-16T22:13:20Z"
    shutil.copy(store / PLAIN[1] / "root.ppxar.didx", store / name / "root.ppxar.didx")
    assert call("--store", store, "verify", name).code == 20
    assert call("--store", store, "restore", name, target).code == 20
    assert not target.exists()


@pytest.mark.parametrize("damage", [flip_unseen, flip, truncate, extend, empty, directory, fifo, symlink])
@pytest.mark.parametrize("known", [False, True])
def test_manifest(store: Path, target: Path, damage: Damage, known: bool) -> None:
    """``known``: the database has the manifest too."""
    name = "host/alpha/2023-11-16T22:13:20Z"
    if known:
        ask("--store", store, "db", "rebuild")
    damage(store / name / "index.json.blob", random.Random(5))
    with Store.open(store) as opened:
        assert opened.database is not None
        ref = opened.find(name)
        (error,) = verify(opened, [ref], None, ignore).errors
        assert (error.snapshot, error.archive) == (name, "index.json.blob")
    done = call("--store", store, "verify", "--json")
    assert done.code == 20
    assert [(error["snapshot"], error["archive"]) for error in done.document["errors"]] == [(name, "index.json.blob")]
    for snapshot in (name, "host/alpha", "latest"):
        result = call("--store", store, "restore", snapshot, target, "--json")
        assert result.code == 20 and name in result.error["message"]
    (item,) = [item for item in ask("--store", store, "snapshots")["items"] if item["snapshot"] == name]
    assert not item["finished"] and item["problem"] and item["files"] == []
    others_are_fine(store, target, name)


def test_unfinished(store: Path, target: Path) -> None:
    """Without a manifest it is no snapshot yet: the one before is the newest."""
    name = "host/alpha/2023-11-16T22:13:20Z"
    (store / name / "index.json.blob").unlink()
    assert ask("--store", store, "verify")["snapshots"] == 7
    for command in (("restore", name, target), ("ls", name), ("files", name), ("verify", name)):
        assert call("--store", store, *command).code == 10, command
    assert ask("--store", store, "files", "host/alpha")["snapshot"] == PLAIN[1]
    (item,) = [item for item in ask("--store", store, "snapshots")["items"] if item["snapshot"] == name]
    assert not item["finished"] and item["problem"] is None
    others_are_fine(store, target, name)


def test_manifest_of_another_snapshot(store: Path, target: Path) -> None:
    shutil.copy(store / PLAIN[1] / "index.json.blob", store / PLAIN[2] / "index.json.blob")
    assert call("--store", store, "verify", PLAIN[2]).code == 20
    assert call("--store", store, "restore", PLAIN[2], target).code == 20
    assert not target.exists()


def alter(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(bytes(blob.decode(path.read_bytes())))
    change(fields)
    path.write_bytes(blob.encode(json.dumps(fields).encode()))


def lose_signature(fields: dict[str, Any]) -> None:
    fields["signature"] = None


def lose_half(fields: dict[str, Any]) -> None:
    fields["files"] = [file for file in fields["files"] if "mpxar" not in file["filename"]]


def downgrade(fields: dict[str, Any]) -> None:
    """Pretend that nothing is encrypted or signed."""
    fields["signature"] = None
    del fields["unprotected"]["key-fingerprint"]
    for file in fields["files"]:
        file["crypt-mode"] = "none"


@pytest.mark.parametrize("change", [lose_signature, lose_half])
@pytest.mark.parametrize("name", [ENCRYPTED[0]])
def test_altered_manifest(
    store: Path, keyfile: Path, target: Path, name: str, change: Callable[[dict[str, Any]], object]
) -> None:
    alter(store / name / "index.json.blob", change)
    done = call("--store", store, "--keyfile", keyfile, "verify", "--json")
    assert done.code == 20
    assert {(error["snapshot"], error["archive"]) for error in done.document["errors"]} == {(name, "index.json.blob")}
    assert call("--store", store, "--keyfile", keyfile, "restore", name, target).code == 20
    assert not target.exists()


@pytest.mark.parametrize("name", ENCRYPTED)
def test_downgraded_manifest(store: Path, keyfile: Path, target: Path, name: str) -> None:
    """A chunk is never taken for another kind than its archive says."""
    alter(store / name / "index.json.blob", downgrade)
    for options in ((), ("--keyfile", keyfile)):
        assert call("--store", store, *options, "restore", name, target).code == 20
        assert call("--store", store, *options, "verify", name).code == 20
        assert not target.is_dir() or not any(target.iterdir())


def test_half_an_archive(store: Path, target: Path) -> None:
    """A manifest that lacks one half of a split archive, while a chunk of the other half is bad."""
    alter(store / PLAIN[1] / "index.json.blob", lose_half)
    digest = DATASTORE["indexes"][f"{PLAIN[1]}/root.ppxar.didx"]["chunks"][3][1]
    (store / ".chunks" / digest[:4] / digest).unlink()
    done = call("--store", store, "verify", "--json")
    assert done.code == 20
    found = {(error["snapshot"], error["archive"]) for error in done.document["errors"]}
    assert found >= {(PLAIN[1], "index.json.blob"), (PLAIN[1], "root.ppxar.didx")}
    assert call("--store", store, "restore", PLAIN[1], target).code == 20


@pytest.mark.parametrize("damage", TO_FILES)
def test_blob(store: Path, target: Path, damage: Damage) -> None:
    """The tree beside it is not concerned."""
    name = "host/alpha/2023-11-15T22:13:20Z"
    damage(store / name / "etc.conf.blob", random.Random(5))
    done = call("--store", store, "verify", "--json")
    assert done.code == 20
    assert [(error["snapshot"], error["archive"]) for error in done.document["errors"]] == [(name, "etc.conf.blob")]
    result = call("--store", store, "restore", name, target / "conf", "--archive", "etc.conf", "--json")
    assert result.code == 20 and "etc.conf.blob" in result.error["message"]
    assert not (target / "conf").exists()
    assert call("--store", store, "restore", name, target / "tree").code == 0
    assert check_restored(target / "tree", name) == set()


@pytest.mark.parametrize("damage", [flip, delete])
def test_catalog(store: Path, target: Path, damage: Damage) -> None:
    name = "host/alpha/2023-11-14T22:13:20Z"
    digest = DATASTORE["indexes"][f"{name}/catalog.pcat1.didx"]["chunks"][0][1]
    damage(store / ".chunks" / digest[:4] / digest, random.Random(1))
    (error,) = call("--store", store, "verify", "--json").document["errors"]
    assert (error["snapshot"], error["archive"], error["chunk"]) == (name, "catalog.pcat1.didx", digest)
    assert call("--store", store, "restore", name, target).code == 0
    assert check_restored(target, name) == set()


@pytest.mark.parametrize("damage", [*TO_FILES, lambda path, rng: path.write_bytes(b"\xff\x1b[31m\n")])
@pytest.mark.parametrize("filename", ["owner", "notes"])
def test_owner_and_notes(store: Path, target: Path, damage: Damage, filename: str) -> None:
    damage(store / "host/alpha" / filename, random.Random(1))
    assert ask("--store", store, "verify")["errors"] == []
    assert len(ask("--store", store, "groups")["items"]) == 6
    for command in ("snapshots", "groups"):
        assert "\x1b" not in call("--store", store, command).out
    others_are_fine(store, target, "host/alpha")
    assert call("--store", store, "restore", "host/alpha", target / "mine").code == 0


def test_strangers_in_the_store(store: Path, target: Path) -> None:
    """Files and directories that do not belong there are passed over."""
    (store / "host" / "a b").mkdir()
    (store / "host" / "file").write_bytes(b"")
    (store / "host/alpha/2023-13-45T99:99:99Z").mkdir()
    (store / "host/alpha/2023-11-17T22:13:20Z").write_bytes(b"")
    (store / "host/link").symlink_to("alpha")
    (store / "ns" / "..bad").mkdir()
    (store / "tape").mkdir()
    (store / ".chunks/0000").mkdir()
    (store / ".chunks/0000/strange").write_bytes(b"x")
    others_are_fine(store, target, "host/features")
    assert ask("--store", store, "verify")["snapshots"] == 8
