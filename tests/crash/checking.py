"""Is everything well in a state that a crash has left? The program itself opens it, with no repair step.

Of **every** state is checked

* the store opens, and the program sees the snapshots that must be there, none that must not, and none unfinished;
* each of them has all its bytes: its files and the chunks in its indexes are the very bytes of a snapshot that the
  program has verified and restored from a state before, bit for bit; where they are not, it does so now;
* the database is in use, has no contradictions, knows these snapshots and no others, and says of each manifest what
  its file says;
* a garbage collection that trusts the locks alone, and so removes all it can, leaves every chunk of them.

Of **one in** ``FULLY`` states also: everything is verified, and each snapshot restored and compared, after that
collection; then the operation is run again, and all is checked once more.

Page walks of a database by a child process are remembered by the file's contents.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from archiver.store.database import inspection
from archiver.store.gc.collect import collect
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.index import decode_index
from tests.compare import Description, compare_descriptions, snapshot_tree
from tests.crash.recording import DATABASE, History
from tests.crash.states import Contents, State
from tests.stores import Ahead, Heard, bring_back, damage, every_snapshot

FULLY = 25

View = frozenset[tuple[str, bytes]]


@dataclass
class Scene:
    """An operation, and what must be there after it has ended somewhere.

    ``kept`` snapshots are there in every state, ``new`` ones when it was done, ``gone`` ones until then, others
    ``maybe``. ``trees``: what each has to hold. ``again``: the next run, where it is not the same; it returns snapshots
    that it has made, with their trees. ``extra``: more to be seen in the open store, which was told to be done or not.
    ``run`` returns False when it tells that there is nothing to be done.
    """

    root: Path
    run: Callable[[Path], object]
    trees: dict[SnapshotRef, Description]
    kept: frozenset[SnapshotRef]
    new: frozenset[SnapshotRef] = frozenset()
    gone: frozenset[SnapshotRef] = frozenset()
    again: Callable[[Path], dict[SnapshotRef, Description]] | None = None
    extra: Callable[[Store, bool], None] | None = None
    crypt: CryptConfig | None = None
    damaged: frozenset[SnapshotRef] = frozenset()  # before the operation already: they must stay, that is all
    unfinished: frozenset[SnapshotRef] = frozenset()  # may be seen without a manifest
    maybe: frozenset[SnapshotRef] = frozenset()

    def next_run(self, path: Path) -> dict[SnapshotRef, Description]:
        if self.again is not None:
            return self.again(path)
        self.run(path)
        return {}


@dataclass
class PlainScene:
    """An operation on other files than a store's: ``seen`` looks at what is there when it was told to be done, or not.
    ``run`` returns False when it tells that it is not."""

    root: Path
    run: Callable[[Path], object]
    seen: Callable[[Path, bool], None]


@dataclass
class Checker:
    """Lays out states of one history at ``place`` and checks them."""

    history: History
    scene: Scene | PlainScene
    place: Path
    sound: set[View] = field(default_factory=set)
    digests: dict[bytes, frozenset[str]] = field(default_factory=dict)
    restored: int = 0
    full: int = 0

    # -- laying out --------------------------------------------------------------------------------------------------

    def lay_out(self, state: State) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        root, attic = str(self.place), str(self.history.attic)
        os.mkdir(root)
        for path in state.directories:
            os.mkdir(f"{root}/{path}")
        for path, contents in state.files.items():
            if contents.inode:
                os.link(f"{attic}/{contents.inode}", f"{root}/{path}")
            else:
                with open(f"{root}/{path}", "wb") as file:
                    file.write(contents.data)
        if state.database is not None and os.path.isdir(f"{root}/.archiver"):
            os.mkdir(root + DATABASE)
            with open(f"{root}{DATABASE}/{inspection.DATA}", "wb") as file:
                file.write(state.database)

    # -- checking ----------------------------------------------------------------------------------------------------

    def check(self, state: State, *, fully: bool) -> None:
        self.lay_out(state)
        self.full += fully
        if isinstance(self.scene, PlainScene):
            self.scene.seen(self.place, state.is_done)
            if fully:
                told = self.scene.run(self.place)
                self.scene.seen(self.place, told is not False)
        else:
            self._check_store(self.scene, state, fully)

    def _check_store(self, scene: Scene, state: State, fully: bool) -> None:
        found = self._open(scene, state)
        if not fully:
            return
        self._restore(scene, found)
        fresh = scene.next_run(self.place)
        scene.trees |= fresh
        with Store.open(self.place) as store:
            after = every_snapshot(store)
            if scene.extra is not None:
                scene.extra(store, True)
        self._restore(scene, after)
        expected = scene.kept | (scene.new - scene.gone if scene.again is None else fresh.keys())
        assert expected <= set(after) <= expected | (set(found) - scene.gone), after

    def _open(self, scene: Scene, state: State) -> list[SnapshotRef]:
        """The finished snapshots."""
        with Store.open(self.place, clock=Ahead(), listener=Heard()) as store:
            every = every_snapshot(store)
            found = [ref for ref in every if store.is_finished(ref)]
            present = set(found)
            assert set(every) - present <= scene.unfinished, "a half-visible snapshot"
            assert scene.kept <= present <= scene.kept | scene.new | scene.gone | scene.maybe, present
            if state.is_done:
                seen = present | (set(every) - scene.unfinished)
                assert scene.new <= present and not scene.gone & seen, "it was told to be done"
            self._check_database(state, store, present)
            if scene.extra is not None:
                scene.extra(store, state.is_done)
            views = {ref: self._view(state, ref) for ref in sorted(present)}
            self._collect(store, state, {digest for view in views.values() for digest, _ in view})
        for ref, view in views.items():
            if view not in self.sound and ref not in scene.damaged:
                self._restore(scene, [ref])
                self.sound.add(view)
        return found

    def _check_database(self, state: State, store: Store, present: set[SnapshotRef]) -> None:
        database = store.database
        if database is None:  # given up when it was read; the next process makes a new one
            assert "noise" in state.about, "there is no database"
            return
        if "page of noise" in state.about:
            return  # LMDB has no checksums: what is there may be read as another value
        assert database.check() == []
        assert set(database.stamps()) == {ref.path for ref in present}
        for ref in present:
            assert store.manifest(ref) == store.manifest(ref, from_file=True)

    def _view(self, state: State, ref: SnapshotRef) -> View:
        """All that is read to restore it: name and sum of each file, and of each chunk."""
        view: set[tuple[str, bytes]] = set()
        start = ref.path + "/"
        for path, contents in state.files.items():
            if path.startswith(start):
                view.add((path, contents.sum))
                if path.endswith("idx"):
                    for digest in self._digests(contents):
                        chunk = state.files.get(f".chunks/{digest[:4]}/{digest}")
                        view.add((digest, b"" if chunk is None else chunk.sum))
        return frozenset(view)

    def _digests(self, contents: Contents) -> frozenset[str]:
        if contents.sum not in self.digests:
            index = decode_index(contents.data)
            self.digests[contents.sum] = frozenset(index.digest(entry).hex() for entry in range(len(index)))
        return self.digests[contents.sum]

    def _collect(self, store: Store, state: State, needed: set[str]) -> None:
        there = [digest for digest in needed if len(digest) == 64 and self._has(digest)]
        collect(store, mode="immediate", from_files=state.cut % 10 == 0)
        lost = [digest for digest in there if not self._has(digest)]
        assert not lost, f"garbage collection took {lost}"

    def _has(self, digest: str) -> bool:
        return os.path.lexists(f"{self.place}/.chunks/{digest[:4]}/{digest}")

    def _restore(self, scene: Scene, refs: list[SnapshotRef]) -> None:
        """Verify everything; restore ``refs`` and compare."""
        target = self.place.with_name("restored")
        for error in damage(self.place, scene.crypt):
            assert any(error.snapshot == str(ref) for ref in scene.damaged), error
        for ref in refs:
            if ref in scene.damaged:
                continue
            shutil.rmtree(target, ignore_errors=True)
            assert bring_back(self.place, ref, target, crypt=scene.crypt).problems == []
            assert compare_descriptions(scene.trees[ref], snapshot_tree(target)) == []
            self.restored += 1


def remember_walks(patched: pytest.MonkeyPatch) -> None:
    """Reading every page of a database takes a child process 100 ms; the same bytes are read once."""
    real = inspection.walk_in_child
    known: dict[bytes, bool] = {}

    def walk(directory: str) -> bool:
        total = hashlib.blake2b(Path(directory, inspection.DATA).read_bytes()).digest()
        if total not in known:
            known[total] = real(directory)
        return known[total]

    patched.setattr(inspection, "walk_in_child", walk)
