"""Operations that make stores and keys."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from archiver.errors import KeyProblem, NotFound, TargetAbsent, UsageError
from archiver.keys.make import write_file
from archiver.keys.master import PRIVATE_NAME, create_pair
from archiver.keys.places import PUBLIC_NAME
from archiver.keys.ring import MASTER_PASSWORD, read_key_file
from archiver.store.store import Store
from formats import masterkey
from formats.keyfile import KeyFile, KeyTime, Pbkdf2
from tests.crash.checking import PlainScene, Scene
from tests.crash.stage import START, Stage
from tests.stores import KEY, Ahead


def init(place: Path) -> PlainScene:
    """In every state there is a store, or one can be made there."""
    (place / "root").mkdir()

    def run(path: Path) -> bool:
        try:
            Store.open(path / "store").close()
            return False  # as one is told by ``init`` then
        except (NotFound, TargetAbsent):
            Store.create(path / "store", name="test")
            return True

    def seen(path: Path, is_done: bool) -> None:
        try:
            with Store.open(path / "store") as store:
                assert store.database is not None
                assert not is_done or (store.identity is not None and store.identity.name == "test")
        except (NotFound, TargetAbsent):
            assert not is_done
            Store.create(path / "store", name="test")
        with Store.open(path / "store", clock=Ahead()) as store, store.session():
            pass

    return PlainScene(place / "root", run, seen)


def new_uuid(place: Path) -> Scene:
    stage = Stage(place)
    stage.snapshots(1)
    return stage.scene(Store.renew)


def _key_file(place: Path, before: KeyFile | None, after: KeyFile, *, force: bool) -> PlainScene:
    """The file is the old one or the new one, and opens the same key."""
    root = place / "root"
    root.mkdir()
    if before is not None:
        write_file(str(root / "keys" / "key.json"), before.encode(), force=False)

    def run(path: Path) -> bool:
        if not force and (path / "keys" / "key.json").exists():
            return False  # which is an error then
        write_file(str(path / "keys" / "key.json"), after.encode(), force=force)
        return True

    def seen(path: Path, is_done: bool) -> None:
        try:
            found = read_key_file(str(path / "keys" / "key.json"))
        except KeyProblem:
            assert before is None and not is_done and not (path / "keys" / "key.json").exists()
            return
        assert found == after or (found == before and not is_done)
        assert found.unlock(b"old old" if found == before else b"new new").fingerprint == KEY.fingerprint

    return PlainScene(root, run, seen)


def _wrapped(passphrase: bytes) -> KeyFile:
    return KeyFile.wrap(KEY, passphrase, Pbkdf2(10, bytes(32)), bytes(16), KeyTime(START), KeyTime(START))


def key_create(place: Path) -> PlainScene:
    return _key_file(place, None, _wrapped(b"new new"), force=False)


def key_change_passphrase(place: Path) -> PlainScene:
    return _key_file(place, _wrapped(b"old old"), _wrapped(b"new new"), force=True)


@cache
def _pair() -> tuple[bytes, bytes]:
    return masterkey.generate(b"new new")  # takes a second


def master_key(place: Path) -> PlainScene:
    """Never the public half without the private one: backups would be made that nobody can open with it."""
    root = place / "root"
    root.mkdir()
    public, private = _pair()

    def run(path: Path) -> bool:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(masterkey, "generate", lambda passphrase: (public, private))
            try:
                create_pair(str(path / "keys"), {MASTER_PASSWORD: "new new"}, lambda text: None, force=False)
            except UsageError:  # there is one
                return False
        return True

    def seen(path: Path, is_done: bool) -> None:
        found = [path / "keys" / name for name in (PUBLIC_NAME, PRIVATE_NAME)]
        assert not is_done or all(map(Path.exists, found))
        if found[0].exists():
            assert found[0].read_bytes() == public and found[1].exists()
        if found[1].exists():
            assert found[1].read_bytes() == private

    return PlainScene(root, run, seen)
