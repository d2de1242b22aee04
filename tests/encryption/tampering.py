"""Ways to tamper with the second snapshot of a lab: what is done, whom it must not fool, and what has to be said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archiver.store.layout import GroupRef, SnapshotRef
from formats import blob
from formats.crypt import CryptConfig, format_fingerprint
from formats.manifest import Manifest
from tests.encryption.lab import ELSEWHERE, FIRST, GROUP, SECOND, TIMES, Lab
from tests.random_trees import noise
from tests.stores import KEY

Tamper = Callable[[Lab], None]
CASES: dict[str, tuple[Tamper, list[SnapshotRef], str]] = {}  # what is done, whom it must not fool, what is said


def case(said: str, *victims: SnapshotRef) -> Callable[[Tamper], Tamper]:
    def add(tamper: Tamper) -> Tamper:
        CASES[tamper.__name__] = (tamper, list(victims), said)
        return tamper

    return add


def exchange(one: Path, other: Path) -> None:
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def signed_by(crypt: CryptConfig, fields: dict[str, Any]) -> dict[str, Any]:
    signed: dict[str, Any] = json.loads(Manifest.decode(json.dumps(fields).encode()).sign(crypt).encode())
    return signed


@case("chunk [0-9a-f]{64} is damaged", SECOND)
def chunks_exchanged(lab: Lab) -> None:
    """Two of the same stream, of the same size if possible."""
    chunks = sorted(lab.chunks(SECOND), key=lambda path: path.stat().st_size)
    exchange(chunks[-1], chunks[-2])


@case("chunk [0-9a-f]{64} is damaged", SECOND)
def chunk_of_the_other_kind(lab: Lab) -> None:
    """The right contents, but plain where they must be encrypted, and the other way round."""
    for path, (_, _, data) in lab.chunks(SECOND).items():
        encrypted = lab.mode != "encrypt"
        path.write_bytes(blob.encode(data, KEY, bytes(16)) if encrypted else blob.encode(data))


@case("chunk [0-9a-f]{64} is damaged", SECOND)
def plain_chunk_with_other_contents(lab: Lab) -> None:
    for path, (_, _, data) in lab.chunks(SECOND).items():
        path.write_bytes(blob.encode(noise(5, len(data))))


@case("chunk [0-9a-f]{64} is damaged", SECOND)
def chunk_of_another_key(lab: Lab) -> None:
    for path, (_, _, data) in lab.chunks(SECOND).items():
        path.write_bytes(blob.encode(data, CryptConfig(bytes(32)), bytes(16)))


@case("chunk [0-9a-f]{64} is missing", SECOND)
def chunk_taken_away(lab: Lab) -> None:
    for path in lab.chunks(SECOND):
        path.unlink()


@case(f"didx of {SECOND} is not the file that its manifest describes", SECOND)
def older_index_put_back(lab: Lab) -> None:
    for path in lab.indexes(SECOND):
        shutil.copy(lab.directory(FIRST) / path.name, path)


@case("didx of host/victim/.* is not the file that its manifest describes", FIRST, SECOND)
def indexes_exchanged(lab: Lab) -> None:
    for path in lab.indexes(SECOND):
        exchange(path, lab.directory(FIRST) / path.name)


@case("didx of host/.* is not the file that its manifest describes", SECOND, ELSEWHERE)
def indexes_exchanged_with_another_group(lab: Lab) -> None:
    for path in lab.indexes(SECOND):
        exchange(path, lab.directory(ELSEWHERE) / path.name)


@case(f"didx of {SECOND} is not the file that its manifest describes", SECOND)
def halves_exchanged(lab: Lab) -> None:
    exchange(*lab.indexes(SECOND))


@case(f"didx of {SECOND} is missing", SECOND)
def index_taken_away(lab: Lab) -> None:
    for path in lab.indexes(SECOND):
        path.unlink()


@case("belongs to another snapshot", FIRST, SECOND)
def snapshots_exchanged(lab: Lab) -> None:
    exchange(lab.directory(FIRST), lab.directory(SECOND))


@case("belongs to another snapshot", SECOND)
def older_snapshot_put_back(lab: Lab) -> None:
    shutil.rmtree(lab.directory(SECOND))
    shutil.copytree(lab.directory(FIRST), lab.directory(SECOND))


@case("belongs to another snapshot", SnapshotRef(GROUP, TIMES[2] + 1))
def snapshot_renamed(lab: Lab) -> None:
    """An old one becomes the newest."""
    lab.directory(FIRST).rename(lab.directory(SnapshotRef(GROUP, TIMES[2] + 1)))


@case("belongs to another snapshot", SnapshotRef(GroupRef("", "vm", "victim"), TIMES[1]))
def snapshot_of_another_type(lab: Lab) -> None:
    (lab.path / "vm").mkdir()
    (lab.path / "host/victim").rename(lab.path / "vm/victim")


@case("belongs to another snapshot", SECOND)
def snapshot_of_another_group(lab: Lab) -> None:
    shutil.rmtree(lab.directory(SECOND))
    lab.directory(ELSEWHERE).rename(lab.directory(SECOND))


@case("belongs to another snapshot", SECOND)
def older_manifest_put_back(lab: Lab) -> None:
    shutil.copy(lab.manifest_file(FIRST), lab.manifest_file(SECOND))


@case(f"manifest of {SECOND} was altered", SECOND)
def older_snapshot_under_the_new_time(lab: Lab) -> None:
    """With the time in the manifest changed too."""
    older_snapshot_put_back(lab)
    lab.alter(SECOND, lambda fields: fields.update({"backup-time": SECOND.time}))


@case(f"manifest of {SECOND} was altered", SECOND)
def older_indexes_with_their_entries(lab: Lab) -> None:
    older_index_put_back(lab)
    lab.alter(SECOND, lambda fields: fields.update(files=lab.fields(FIRST)["files"]))


@case(f"manifest of {SECOND} was altered", SECOND)
def signature_of_another_snapshot(lab: Lab) -> None:
    lab.alter(SECOND, lambda fields: fields.update(signature=lab.fields(FIRST)["signature"]))


@case(f"manifest of {SECOND} has lost its signature", SECOND)
def signature_stripped(lab: Lab) -> None:
    lab.alter(SECOND, lambda fields: fields.update(signature=None))


@case(f"manifest of {SECOND} has lost its signature", SECOND)
def signature_and_fingerprint_stripped(lab: Lab) -> None:
    lab.alter(SECOND, lambda fields: fields.update(signature=None, unprotected={}))


@case(f"manifest of {SECOND} has lost its signature", SECOND)
def all_but_the_fingerprint_stripped(lab: Lab) -> None:
    def strip(fields: dict[str, Any]) -> None:
        fields["signature"] = None
        for file in fields["files"]:
            file["crypt-mode"] = "none"

    lab.alter(SECOND, strip)


@case(f"{SECOND} is unsigned, other snapshots of its group are signed", SECOND)
def nothing_left_of_the_key(lab: Lab) -> None:
    all_but_the_fingerprint_stripped(lab)
    lab.alter(SECOND, lambda fields: fields.update(unprotected={}))


@case(f"{SECOND} is unsigned, other snapshots of its group are signed", SECOND)
def forged_without_a_key(lab: Lab) -> None:
    lab.forge(SECOND, b"anything")


@case(f"{SECOND} was made with the key", SECOND)
def signed_with_another_key(lab: Lab) -> None:
    lab.write_fields(SECOND, signed_by(CryptConfig(bytes(32)), lab.fields(FIRST) | {"backup-time": SECOND.time}))
    for path in lab.indexes(SECOND):
        shutil.copy(lab.directory(FIRST) / path.name, path)


@case(f"manifest of {SECOND} was altered", SECOND)
def signed_with_another_key_in_our_name(lab: Lab) -> None:
    signed_with_another_key(lab)
    ours = {"key-fingerprint": format_fingerprint(KEY.fingerprint)}
    lab.alter(SECOND, lambda fields: fields.update(unprotected=ours))


@case(f"manifest of {SECOND} was altered", SECOND)
def fingerprint_of_another_key(lab: Lab) -> None:
    other = {"key-fingerprint": format_fingerprint(bytes(32))}
    lab.alter(SECOND, lambda fields: fields.update(unprotected=other))


def set_modes(lab: Lab, mode: str, count: int) -> None:
    def set_some(fields: dict[str, Any]) -> None:
        for file in fields["files"][:count]:
            file["crypt-mode"] = mode

    lab.alter(SECOND, set_some)


@case(f"manifest of {SECOND} was altered", SECOND)
def one_entry_made_plain(lab: Lab) -> None:
    set_modes(lab, "none", 1)


@case(f"manifest of {SECOND} was altered", SECOND)
def all_entries_made_plain(lab: Lab) -> None:
    set_modes(lab, "none", 9)


@case(f"manifest of {SECOND} was altered", SECOND)
def entries_of_the_other_mode(lab: Lab) -> None:
    set_modes(lab, "sign-only" if lab.mode == "encrypt" else "encrypt", 9)


@case(f"manifest of {SECOND} was altered", SECOND)
def entries_without_a_mode(lab: Lab) -> None:
    """As in manifests before there were modes."""
    lab.alter(SECOND, lambda fields: [file.pop("crypt-mode") for file in fields["files"]])


@case(f"manifest of {SECOND} was altered", SECOND)
def entry_taken_away(lab: Lab) -> None:
    lab.alter(SECOND, lambda fields: fields["files"].pop())


@case(f"manifest of {SECOND} was altered", SECOND)
def entries_in_another_order(lab: Lab) -> None:
    lab.alter(SECOND, lambda fields: fields["files"].reverse())


@case(f"manifest of {SECOND} was altered", SECOND)
def field_that_no_signature_covers(lab: Lab) -> None:
    lab.alter(SECOND, lambda fields: fields["files"][0].update(other="value"))


@case(f"manifest of {SECOND} is damaged", SECOND)
def manifest_encrypted(lab: Lab) -> None:
    path = lab.manifest_file(SECOND)
    path.write_bytes(blob.encode(blob.decode(path.read_bytes()), KEY, bytes(16)))
