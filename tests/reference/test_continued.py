"""Series that the reference implementation began go on in metadata mode: its chunks are taken over where that is
allowed, and nothing that it wrote is changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archiver.backup.run import CryptMode
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig
from tests.golden_store import ENCRYPTED, KEY, PLAIN
from tests.stores import Heard, Saved, bring_back, damage, restored_differences, save

ALPHA, SIGNED, SECRET = PLAIN[2], PLAIN[4], ENCRYPTED[0]
OTHER_KEY = CryptConfig(bytes(32))
NAME = "root"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners, devices and attributes can be restored by root only")


class Series:
    """A golden group, and its newest tree restored as the source of the next run."""

    def __init__(self, store: Path, snapshot: str, target: Path) -> None:
        self.store, self.source = store, target / "source"
        target.mkdir()
        with Store.open(store) as opened:
            self.ref: SnapshotRef = opened.find(snapshot)
            self.time = self.ref.time
            names = [file.filename for file in opened.manifest(self.ref).files]
        self.archive = next(name for name in names if name.startswith(f"{NAME}.") and "ppxar" not in name)
        bring_back(store, self.ref, self.source, archives=[self.archive], crypt=KEY)
        self.golden = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
        self.heard = Heard()

    def save(self, crypt: CryptConfig | None, crypt_mode: CryptMode) -> Saved:
        self.heard = Heard()
        self.time += 1
        return save(
            self.store,
            {NAME: self.source},
            group=self.ref.group,
            time=self.time,
            mode="metadata",
            crypt=crypt,
            crypt_mode=crypt_mode,
            heard=self.heard,
        )

    def check(self, saved: Saved, out: Path, crypt: CryptConfig | None) -> None:
        assert restored_differences(self.store, saved.snapshot, self.source, out, crypt) == []
        assert damage(self.store, crypt) == []
        changed = {path for path, data in self.golden.items() if path.read_bytes() != data}
        assert changed == set()

    def was_complete(self, saved: Saved) -> bool:
        """Whether nothing was taken over, and that was said once."""
        told = [text for text in self.heard.notices if text.startswith(f"{NAME}.pxar is saved completely: ")]
        return len(told) == 1 and reused(saved) == 0 and saved.result.files.unchanged == 0


def reused(saved: Saved) -> int:
    return sum(archive.counters.reused_chunks for archive in saved.result.archives)


def chunk_kinds(store: Path, saved: Saved) -> set[bytes]:
    """The magic numbers of all chunks of a snapshot."""
    found = set()
    with Store.open(store, read_only=True) as opened:
        for file in opened.manifest(saved.snapshot).files:
            entries = (store / saved.snapshot.path / file.filename).read_bytes()[4096:]
            for at in range(8, len(entries), 40):
                digest = entries[at : at + 32].hex()
                found.add((store / ".chunks" / digest[:4] / digest).read_bytes()[:8])
    return found


@pytest.mark.parametrize(("snapshot", "crypt"), [(ALPHA, None), (SECRET, KEY)])
def test_chunks_are_taken_over(store: Path, target: Path, snapshot: str, crypt: CryptConfig | None) -> None:
    """The first run of ours reads what the restore could not make as it was; the third nothing at all, when what the
    first left as padding is gone."""
    series = Series(store, snapshot, target)
    saved = series.save(crypt, "none" if crypt is None else "encrypt")
    files = saved.result.files
    assert reused(saved) > 0 and files.unchanged > 0
    assert files.bytes_read < saved.result.archives[0].counters.size / 2
    series.check(saved, target / "first", crypt)
    encrypted = {blob.ENCRYPTED_MAGIC, blob.ENCRYPTED_ZSTD_MAGIC}
    kinds = chunk_kinds(store, saved)
    assert kinds <= encrypted if crypt is not None else kinds.isdisjoint(encrypted)
    for number in (2, 3):
        saved = series.save(crypt, "none" if crypt is None else "encrypt")
        assert series.heard.notices == []
        series.check(saved, target / f"out-{number}", crypt)
    assert saved.result.files.bytes_read == 0


@pytest.mark.parametrize(
    ("snapshot", "crypt", "crypt_mode"),
    [
        (ALPHA, KEY, "encrypt"),
        (ALPHA, KEY, "sign-only"),
        (SECRET, None, "none"),
        (SECRET, OTHER_KEY, "encrypt"),
        (SECRET, KEY, "sign-only"),
        (SIGNED, KEY, "sign-only"),
        (SIGNED, KEY, "encrypt"),
        (SIGNED, None, "none"),
        (ENCRYPTED[1], KEY, "encrypt"),
    ],
)
def test_nothing_is_taken_over(
    store: Path, target: Path, snapshot: str, crypt: CryptConfig | None, crypt_mode: CryptMode
) -> None:
    """Another mode or key, or an archive in one stream; from then on the series is ours."""
    series = Series(store, snapshot, target)
    saved = series.save(crypt, crypt_mode)
    assert series.was_complete(saved), series.heard.notices
    series.check(saved, target / "first", crypt)
    again = series.save(crypt, crypt_mode)
    assert (again.result.files.bytes_read, again.result.files.reencoded) == (0, 0)
    series.check(again, target / "second", crypt)


def test_a_changed_file_is_read(store: Path, target: Path) -> None:
    """Of the same size as in the snapshot of the server; not all of the others are."""
    series = Series(store, ALPHA, target)
    largest = max((path for path in series.source.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    size = largest.stat().st_size
    with largest.open("r+b") as file:
        file.write(b"other bytes of the same length")
    assert largest.stat().st_size == size
    saved = series.save(None, "none")
    assert saved.result.files.bytes_read >= size and saved.result.files.unchanged > 0
    series.check(saved, target / "out", None)
