from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.errors import Damaged, KeyProblem, NotFound, Unsigned, UsageError
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig
from formats.manifest import CryptMode, FileInfo, Manifest
from tests.browse.small_store import KEY

pytestmark = pytest.mark.in_memory

REF = SnapshotRef(GroupRef("", "host", "x"), 1_700_000_000)


def manifest(*names: str, mode: CryptMode = "none") -> Manifest:
    return Manifest("host", "x", REF.time, tuple(FileInfo(name, mode, 1, bytes(32)) for name in names))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    Store.create(tmp_path / "store")
    return Store.open(tmp_path / "store")


def snapshot(store: Store, *names: str) -> Snapshot:
    return Snapshot(store, REF, manifest=manifest(*names))


def described(archives: list[ArchiveFiles]) -> list[tuple[str, str, list[str]]]:
    return [(archive.name, archive.kind, [file.filename for file in archive.files]) for archive in archives]


EVERYTHING = (
    "home.ppxar.didx",
    "home.mpxar.didx",
    "root.pxar.didx",
    "disk.img.fidx",
    "qemu.conf.blob",
    "catalog.pcat1.didx",
    "rsa-encrypted.key.blob",
)


def test_archives(store: Store) -> None:
    assert described(snapshot(store, *EVERYTHING).archives()) == [
        ("home.pxar", "tree", ["home.mpxar.didx", "home.ppxar.didx"]),
        ("root.pxar", "tree", ["root.pxar.didx"]),
        ("disk.img", "image", ["disk.img.fidx"]),
        ("qemu.conf", "blob", ["qemu.conf.blob"]),
        ("rsa-encrypted.key", "blob", ["rsa-encrypted.key.blob"]),
    ]
    swapped = snapshot(store, "home.mpxar.didx", "home.ppxar.didx")
    assert described(swapped.archives()) == [("home.pxar", "tree", ["home.mpxar.didx", "home.ppxar.didx"])]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("home.pxar", "home.pxar"),
        ("home", "home.pxar"),
        ("home.mpxar", "home.pxar"),
        ("home.ppxar", "home.pxar"),
        ("home.mpxar.didx", "home.pxar"),
        ("home.ppxar.didx", "home.pxar"),
        ("root.pxar", "root.pxar"),
        ("root.pxar.didx", "root.pxar"),
        ("disk", "disk.img"),
        ("disk.img.fidx", "disk.img"),
        ("qemu.conf", "qemu.conf"),
        ("qemu.conf.blob", "qemu.conf"),
        ("rsa-encrypted.key", "rsa-encrypted.key"),
    ],
)
def test_archive_by_name(store: Store, name: str, expected: str) -> None:
    assert snapshot(store, *EVERYTHING).archive(name).name == expected


@pytest.mark.parametrize(
    "name", ["", "hom", "home.", "home.pxar.didx", "catalog", "catalog.pcat1", "HOME", "../home", "*"]
)
def test_archive_that_is_not_there(store: Store, name: str) -> None:
    with pytest.raises(NotFound, match="has no archive") as caught:
        snapshot(store, *EVERYTHING).archive(name)
    assert "home.pxar, root.pxar, disk.img, qemu.conf" in str(caught.value.hint)


def test_archive_without_a_name(store: Store) -> None:
    assert snapshot(store, "a.pxar.didx", "disk.img.fidx").archive(None).name == "a.pxar"
    assert snapshot(store, "disk.img.fidx", "catalog.pcat1.didx").archive(None).name == "disk.img"
    for names in (("a.pxar.didx", "b.pxar.didx"), ("a.img.fidx", "b.img.fidx"), ()):
        with pytest.raises(UsageError, match=f"has {len(names)} archives"):
            snapshot(store, *names).archive(None)


def test_restorable(store: Store) -> None:
    assert [archive.name for archive in snapshot(store, *EVERYTHING).restorable()] == ["home.pxar", "root.pxar"]
    assert [archive.name for archive in snapshot(store, *EVERYTHING[3:5]).restorable()] == ["disk.img", "qemu.conf"]
    with pytest.raises(NotFound, match="has no archives"):
        snapshot(store, "catalog.pcat1.didx").restorable()


@pytest.mark.parametrize("name", ["home.ppxar.didx", "home.mpxar.didx"])
def test_half_of_an_archive(store: Store, name: str) -> None:
    for names in ((name,), (name, "root.pxar.didx"), (name, "other.mpxar.didx", "other.ppxar.didx")):
        with pytest.raises(Damaged, match="home"):
            snapshot(store, *names).archives()


def test_what_is_no_tree(store: Store) -> None:
    found = snapshot(store, *EVERYTHING)
    for name in ("disk.img", "qemu.conf"):
        with pytest.raises(UsageError, match="not a directory tree"):
            found.tree(found.archive(name))


def test_missing_files(store: Store) -> None:
    found = snapshot(store, *EVERYTHING)
    for name in ("home", "root", "disk"):
        with pytest.raises(Damaged, match="is missing"):
            found.stream(found.archive(name).files[0])
    with pytest.raises(Damaged, match="cannot be read"):
        list(found.contents(found.archive("qemu.conf")))


# Keys.


def test_key_of_another_snapshot(store: Store) -> None:
    signed = manifest("a.pxar.didx", mode="encrypt").sign(KEY)
    assert Snapshot(store, REF, KEY, manifest=signed).crypt is KEY
    with pytest.raises(KeyProblem, match=r"was made with the key .*, the key given is"):
        Snapshot(store, REF, CryptConfig(bytes(32)), manifest=signed)


def test_altered_manifest(store: Store) -> None:
    signed = manifest("a.pxar.didx", mode="encrypt").sign(KEY)
    other = manifest("b.pxar.didx", mode="encrypt")
    altered = Manifest("host", "x", REF.time, other.files, signed.unprotected, signed.signature)
    with pytest.raises(Damaged, match="was altered"):
        Snapshot(store, REF, KEY, manifest=altered)
    stripped = Manifest("host", "x", REF.time, signed.files, signed.unprotected)
    nameless = Manifest("host", "x", REF.time, signed.files)  # neither signature nor fingerprint: still encrypted
    plain = Manifest("host", "x", REF.time, manifest("a.pxar.didx").files, signed.unprotected)  # but a fingerprint
    for bad in (stripped, nameless, plain):
        for crypt in (KEY, None):  # that it is missing shows without the key too
            with pytest.raises(Damaged, match="lost its signature"):
                Snapshot(store, REF, crypt, manifest=bad, allow_unsigned=True)


def test_signature_of_plain_archives(store: Store) -> None:
    """Whatever the manifest says of its archives: what is signed must have been signed so."""
    signed = manifest("a.pxar.didx").sign(KEY)
    assert Snapshot(store, REF, KEY, manifest=signed).made_with_key
    bare = Manifest("host", "x", REF.time, signed.files, {}, signed.signature)
    assert Snapshot(store, REF, KEY, manifest=bare).made_with_key
    other = Manifest("host", "x", REF.time, manifest("b.pxar.didx").files, {}, signed.signature)
    with pytest.raises(Damaged, match="was altered"):
        Snapshot(store, REF, KEY, manifest=other)


def test_refused_key_is_not_taken(store: Store) -> None:
    signed = manifest("a.pxar.didx", mode="encrypt").sign(KEY)
    found = Snapshot(store, REF, manifest=signed)
    with pytest.raises(KeyProblem):
        found.unlock(CryptConfig(bytes(32)))
    assert found.crypt is None


def test_key_for_what_is_not_protected(store: Store) -> None:
    assert Snapshot(store, REF, KEY, manifest=manifest("a.pxar.didx")).crypt is KEY


def test_encrypted_without_a_key(store: Store) -> None:
    found = Snapshot(store, REF, manifest=manifest("a.pxar.didx", "b.conf.blob", mode="encrypt").sign(KEY))
    for name in ("a", "b"):
        archive = found.archive(name)
        with pytest.raises(KeyProblem, match="is encrypted") as caught:
            found.require_key(archive.files[0])
        assert KEY.fingerprint[:8].hex(":") in str(caught.value.hint)
    with pytest.raises(KeyProblem):
        found.tree(found.archive("a"))


def test_signed_without_a_key(store: Store) -> None:
    """Its contents are there to be read, but nobody can tell whether they are what was saved."""
    signed = manifest("a.pxar.didx", "rsa-encrypted.key.blob", mode="sign-only").sign(KEY)
    found = Snapshot(store, REF, manifest=signed)
    with pytest.raises(KeyProblem, match="whether it was altered cannot be told") as caught:
        found.require_key(signed.files[0])
    assert KEY.fingerprint[:8].hex(":") in str(caught.value.hint) and "--allow-unsigned" in str(caught.value.hint)
    found.require_key(signed.files[1])  # for those who have lost the key
    Snapshot(store, REF, manifest=signed, allow_unsigned=True).require_key(signed.files[0])
    Snapshot(store, REF, KEY, manifest=signed).require_key(signed.files[0])


def put(store: Store, found: Manifest) -> SnapshotRef:
    """Put a manifest into the store as that of a snapshot."""
    ref = SnapshotRef(GroupRef("", found.backup_type, found.backup_id), found.backup_time)
    directory = Path(store.layout.snapshot(ref))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "index.json.blob").write_bytes(blob.encode(found.encode()))
    return ref


@pytest.mark.parametrize("others", [[], ["plain"], ["signed"], ["plain", "signed", "plain"], ["damaged", "signed"]])
def test_unsigned_among_signed_ones(store: Store, others: list[str]) -> None:
    """With a key in use nobody may pass something off as a snapshot of a group that is signed."""
    plain = manifest("a.pxar.didx")
    ref = put(store, plain)
    for number, kind in enumerate(others, -1):
        other = Manifest("host", "x", REF.time + (number or 9), plain.files)
        put(store, other.sign(KEY) if kind == "signed" else other)
        if kind == "damaged":
            Path(store.layout.manifest(SnapshotRef(REF.group, other.backup_time))).write_bytes(b"nothing")
    put(store, Manifest("host", "other-group", REF.time, plain.files).sign(KEY))
    file = plain.files[0]
    Snapshot(store, ref).require_key(file)  # no key is in use
    Snapshot(store, ref, KEY, allow_unsigned=True).require_key(file)
    with_key, announced = Snapshot(store, ref, KEY), Snapshot(store, ref)
    announced.key_in_use = True
    for found in (with_key, announced):
        if "signed" not in others:
            found.require_key(file)
            continue
        with pytest.raises(Unsigned):
            found.tree(found.archive("a"))
        with pytest.raises(Unsigned, match="is unsigned, other snapshots of its group are signed") as caught:
            found.require_key(file)
        assert "--allow-unsigned" in str(caught.value.hint) and caught.value.exit_code == 20


@pytest.mark.parametrize("mode", ["none", "sign-only", "encrypt"])
@pytest.mark.parametrize("name", ["a.conf.blob", "rsa-encrypted.key.blob"])
def test_blob_of_the_other_kind(store: Store, mode: CryptMode, name: str) -> None:
    """Although the manifest has its checksum, and a signature."""
    directory = Path(store.layout.snapshot(REF))
    directory.mkdir(parents=True)
    for encrypted in (False, True):
        data = blob.encode(b"contents", KEY, bytes(16)) if encrypted else blob.encode(b"contents")
        (directory / name).write_bytes(data)
        file = FileInfo(name, mode, len(data), sha256(data).digest())
        signed = Manifest("host", "x", REF.time, (file,)).sign(KEY)
        found = Snapshot(store, REF, KEY, manifest=signed)
        keyless = Snapshot(store, REF, manifest=signed, allow_unsigned=True)
        if encrypted == (mode == "encrypt" and name == "a.conf.blob"):
            assert found.blob(file) == b"contents"
            keyless.check_blob(file)
            found.check_blob(file)
        else:
            for check in (found.blob, found.check_blob, keyless.check_blob):
                with pytest.raises(Damaged, match=name):
                    check(file)
