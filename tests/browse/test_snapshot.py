from __future__ import annotations

from pathlib import Path

import pytest

from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.errors import Damaged, KeyProblem, NotFound, UsageError
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.manifest import CryptMode, FileInfo, Manifest
from tests.browse.small_store import KEY

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
    with pytest.raises(Damaged, match="lost its signature"):
        Snapshot(store, REF, KEY, manifest=stripped)
    nameless = Manifest("host", "x", REF.time, signed.files)  # neither signature nor fingerprint: still encrypted
    with pytest.raises(Damaged, match="lost its signature"):
        Snapshot(store, REF, KEY, manifest=nameless)


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
