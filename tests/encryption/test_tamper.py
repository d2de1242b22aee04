"""Who has the store but not the key cannot have a restore give wrong bytes: it is refused, and told what is wrong."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.run import CryptMode, Mode
from archiver.errors import ArchiverError
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig, format_fingerprint
from formats.manifest import Manifest
from tests.cli.command import call
from tests.encryption.lab import ELSEWHERE, FIRST, GROUP, SECOND, THIRD, TIMES, Lab, flipped
from tests.golden_store import write_key
from tests.random_trees import noise
from tests.stores import KEY, bring_back, save

CRYPT_MODES: list[CryptMode] = ["encrypt", "sign-only"]
_PAYLOAD_SAMPLES = 60  # bytes of each chunk behind its header


@pytest.fixture(scope="module", params=CRYPT_MODES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.build(tmp_path_factory.mktemp("lab"), request.param)


@pytest.fixture
def lab(built: Lab, tmp_path: Path) -> Lab:
    return built.copy(tmp_path / "store")


# -- every byte --------------------------------------------------------------------------------------------------------


def test_every_byte_of_the_manifest(lab: Lab) -> None:
    """With and without the database, which has a copy of it; seen and unseen by times."""
    path = lab.manifest_file(SECOND)
    assert lab.read(SECOND, database=True) is None
    rng = random.Random(1)
    for at in range(path.stat().st_size):
        for database, unseen in ((False, False), (True, False), (True, True)):
            if database and at % 8 != 0:
                continue
            for _ in flipped(path, at, rng.randrange(8), unseen=unseen):
                told = lab.read(SECOND, database=database)
                if not (database and unseen and told is None):  # then the copy answered
                    assert told is not None and f"manifest of {SECOND}" in told, (at, told)
    assert lab.read(SECOND, database=True) is None


def test_every_character_of_the_manifest(lab: Lab) -> None:
    """The blob is written anew with a good CRC, so that only the signature can tell. What is not signed may change."""
    path = lab.manifest_file(SECOND)
    good = path.read_bytes()
    text = blob.decode(good)
    unsigned = text.index(b'"unprotected"'), text.rindex(b"}") + 1
    harmless = 0
    for at in range(len(text)):
        altered = bytearray(text)
        altered[at] ^= 1 + at % 3
        path.write_bytes(blob.encode(altered, compress=False))
        told = lab.read(SECOND)
        if told is None:  # of the same meaning: white space, or what was never signed
            harmless += 1
            if not unsigned[0] <= at < unsigned[1]:
                assert Manifest.decode(bytes(altered)).canonical() == Manifest.decode(text).canonical()
        else:
            assert str(SECOND) in told, (at, told)
    path.write_bytes(good)
    assert 0 < harmless < len(text) / 2


@pytest.mark.parametrize("number", [0, 1])
def test_every_byte_of_the_indexes(lab: Lab, number: int) -> None:
    """A header holds things that mean nothing to a restore: with those it is right all the same."""
    path = lab.indexes(SECOND)[number]
    size, rng = path.stat().st_size, random.Random(2)
    accepted = set()
    for at in range(size):
        for _ in flipped(path, at, rng.randrange(8)):
            told = lab.read(SECOND)
            if told is None:
                accepted.add(at)
            else:
                assert path.name in told and str(SECOND) in told, (at, told)
    assert accepted <= set(range(8, 4096)) and lab.read(SECOND) is None  # magic and entries all count


def test_sampled_bytes_of_all_chunks(lab: Lab) -> None:
    chunks, rng = lab.chunks(SECOND), random.Random(3)
    assert len(chunks) >= 3
    for path in chunks:
        header = 44 if lab.mode == "encrypt" else 12
        places = [*range(header), *rng.choices(range(header, path.stat().st_size), k=_PAYLOAD_SAMPLES)]
        for at in places:
            for _ in flipped(path, at, rng.randrange(8)):
                told = lab.read(SECOND)
                assert told is not None and path.name in told, (at, told)
    assert lab.read(SECOND) is None


# -- exchanged, put back, taken away -----------------------------------------------------------------------------------

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


@case(f"{SECOND} was made with the key", SECOND)
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


@pytest.mark.parametrize("database", [False, True], ids=["no database", "database"])
@pytest.mark.parametrize("name", CASES)
def test_tampered(lab: Lab, tmp_path: Path, name: str, database: bool) -> None:
    tamper, victims, said = CASES[name]
    everything = [FIRST, SECOND, THIRD, ELSEWHERE]
    if database:
        for ref in everything:
            assert lab.read(ref, database=True) is None
    tamper(lab)
    told = {ref: lab.read(ref, database=database) for ref in victims}
    for ref, text in told.items():
        assert text is not None and re.search(said, text), (ref, text)
    for ref in everything:  # right or refused, whatever was done
        if ref not in victims and lab.directory(ref).exists():
            lab.read(ref, database=database)
    keyfile = write_key(tmp_path / "key.json", KEY.enc_key)
    check_commands(lab, keyfile, victims, said, tmp_path)
    check_next_backup(lab, tmp_path)


def check_commands(lab: Lab, keyfile: Path, victims: list[SnapshotRef], said: str, scratch: Path) -> None:
    """The same through the command line: exit code, sentence, and nothing wrong is left on the disk."""
    options: tuple[str | Path, ...] = ("--store", lab.path, "--keyfile", keyfile)
    for number, ref in enumerate(victims):
        out = scratch / f"out-{number}"
        done = call(*options, "restore", str(ref), out)
        assert done.code in (12, 20)
        assert re.search(said, done.err) or "damaged: /" in done.err, done.err
        restored = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} if out.exists() else {}
        held = b"".join(lab.expected.get(ref, {}).values())
        assert all(data in held for data in restored.values())
        for command in (("cat", str(ref), "/text"), ("ls", str(ref))):
            done = call(*options, *command)
            assert done.code in (0, 12, 20)
            if done.code == 0:  # a chunk that this file does not need
                assert command[0] == "ls" or done.raw in held
    verified = call(*options, "verify", "--json")
    if "unsigned" not in said and "was made with the key" not in said:
        assert verified.code == 20
        where = {error["snapshot"] for error in verified.document["errors"]}
        assert where >= {str(ref) for ref in victims if lab.manifest_file(ref).exists()}
    elif "unsigned" in said:
        forged = {str(ref) for ref in victims}
        assert set(verified.document["signatures"]["unsigned"]) & forged == forged


def check_next_backup(lab: Lab, scratch: Path) -> None:
    """It leans on nothing that was tampered with: what it saves is right, or refused when it is read."""
    saved = save(lab.path, lab.source, group=GROUP, time=TIMES[2] + 50, crypt=KEY, crypt_mode=lab.mode, mode="metadata")
    out = scratch / "next"
    try:
        result = bring_back(lab.path, saved.snapshot, out, crypt=KEY)
    except ArchiverError as error:
        assert "chunk" in str(error), error
        return
    bad = {problem.path for problem in result.problems}
    for path in lab.source.iterdir():
        assert os.fsencode(f"/{path.name}") in bad or (out / path.name).read_bytes() == path.read_bytes()


def test_what_is_not_signed_may_change(lab: Lab) -> None:
    """Notes, and what a verification notes; so the tests above do not refuse everything."""
    other = {"key-fingerprint": format_fingerprint(KEY.fingerprint), "notes": "new", "verify_state": {"state": "ok"}}
    lab.alter(SECOND, lambda fields: fields.update(unprotected=other))
    assert lab.read(SECOND) is None and lab.read(SECOND, database=True) is None
    lab.alter(SECOND, lambda fields: fields.update(unprotected={}))  # as before there were fingerprints
    assert lab.read(SECOND) is None


@pytest.mark.parametrize("archive", ["legacy", "data"])
def test_other_archive_modes(tmp_path: Path, archive: Mode) -> None:
    """The same kinds of things with archives in one stream and catalogs."""
    built = Lab.build(tmp_path / "built", "encrypt", archive)
    for name in ("older_index_put_back", "chunk_of_the_other_kind", "signature_stripped", "indexes_exchanged"):
        tamper, victims, said = CASES[name]
        lab = built.copy(tmp_path / name)
        tamper(lab)
        for ref in victims:
            assert re.search(said, lab.read(ref) or ""), name
    for ref in (FIRST, SECOND, THIRD):
        assert built.read(ref) is None


def test_the_store_is_sound_before_it_is_tampered_with(lab: Lab) -> None:
    for ref in lab.expected:
        assert lab.read(ref) is None and lab.read(ref, database=True) is None
    with Store.open(lab.path) as store:
        assert all(store.info(ref).problem is None for ref in lab.expected)
