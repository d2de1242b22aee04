"""Healing for tests: a store with its copy, ways to lose things, and a healing with what became of it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from archiver.browse.snapshot import Snapshot
from archiver.browse.verify import VerifyOptions, VerifyResult, verify
from archiver.core.clock import Clock
from archiver.core.events import Listener, ignore
from archiver.heal.candidates import OtherStore
from archiver.heal.damage import HealResult
from archiver.heal.plan import HealOptions, HealPlan, make_plan
from archiver.heal.run import carry_out
from archiver.heal.source import LivePlace
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.stores import every_snapshot


def heal(
    path: Path,
    *,
    copies: Sequence[Path] = (),
    live: Sequence[Path | str] = (),
    crypt: CryptConfig | None = None,
    read_all: bool = False,
    clock: Clock | None = None,
    listener: Listener = ignore,
) -> tuple[HealPlan, HealResult]:
    """The whole store."""
    with ExitStack() as opened:
        store = opened.enter_context(Store.open(path, clock=clock, listener=listener))
        plan = planned(store, opened, copies=copies, live=live, crypt=crypt, read_all=read_all, listener=listener)
        return plan, carry_out(store, plan, crypt, listener)


def planned(
    store: Store,
    opened: ExitStack,
    *,
    copies: Sequence[Path] = (),
    live: Sequence[Path | str] = (),
    crypt: CryptConfig | None = None,
    read_all: bool = False,
    listener: Listener = ignore,
) -> HealPlan:
    others = [OtherStore(store, opened.enter_context(Store.open(copy)), crypt) for copy in copies]
    options = HealOptions(others, [LivePlace.parse(str(place)) for place in live], read_all)
    return make_plan(store, every_snapshot(store), crypt, options, listener)


def copy_of(path: Path, place: Path) -> Path:
    """A store of its own with the same contents."""
    shutil.copytree(path, place, ignore=shutil.ignore_patterns("db"))
    Store.renew(place)
    return place


def checked(path: Path, crypt: CryptConfig | None = None, *, repairs: bool = False) -> VerifyResult:
    """What a verification says; ``repairs``: it sets damaged chunks aside and writes its result down."""
    options = VerifyOptions(set_aside=repairs, write_state=repairs)
    with Store.open(path) as store:
        return verify(store, every_snapshot(store), crypt, ignore, options)


def states(path: Path) -> dict[str, object]:
    with Store.open(path) as store:
        found = {str(ref): store.info(ref).verify_state for ref in every_snapshot(store)}
    return {name: state and state["state"] for name, state in found.items()}


def chunks_of(path: Path, ref: SnapshotRef, extension: str) -> list[Path]:
    """The chunk files of a snapshot's index, each once, in its order."""
    with Store.open(path) as store:
        snapshot = Snapshot(store, ref)
        (file,) = [file for file in snapshot.manifest.files if file.filename.endswith(extension)]
        index = snapshot.index(file)
        digests = dict.fromkeys(index.digest(number).hex() for number in range(len(index)))
        return [Path(store.layout.chunk(digest)) for digest in digests]


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randint(1, 255)
    path.write_bytes(data)
