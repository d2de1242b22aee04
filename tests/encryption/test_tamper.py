"""Who has the store but not the key cannot have a restore give wrong bytes: it is refused, and told what is wrong."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from archiver.backup.run import CryptMode, Mode
from archiver.errors import ArchiverError
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.crypt import format_fingerprint
from formats.manifest import Manifest
from tests.cli.command import call
from tests.encryption.lab import ELSEWHERE, FIRST, GROUP, SECOND, THIRD, TIMES, Lab, flipped
from tests.encryption.tampering import CASES
from tests.golden_store import write_key
from tests.stores import KEY, bring_back, save

pytestmark = pytest.mark.in_memory

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
    """A header holds things that mean nothing to a restore: with those it is right all the same. Of its zeros, which
    are the same in both indexes and modes, all have their turn in one of them and some in the others."""
    path = lab.indexes(SECOND)[number]
    size, rng = path.stat().st_size, random.Random(2)
    accepted = set()
    for at in (*range(64), *range(64, 4096, 1 if lab.mode == "encrypt" and not number else 16), *range(4096, size)):
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
