"""Power cuts and kill -9 at every moment of every operation: promises P1 and P4 in each state that may be left.

What a state is stands in ``states``, what is checked of it in ``checking``. Half of the states is of runs that follow
one that was killed. The normal run looks at 1,000 states; the full counts, printed:
``pytest -m slow -rP -n 2 tests/crash/test_power_cut.py`` (half an hour on two processors that do nothing else).
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.store.layout import SnapshotRef
from tests.crash.checking import FULLY, Checker, PlainScene, Scene, remember_walks
from tests.crash.operations import OPERATIONS, Prepare
from tests.crash.recording import STEP_KINDS, Killed, Recorder
from tests.crash.states import State, States

FEW, MANY = 40, 20_000  # states of each operation; simple ones have no more than some thousands
_BARREN = 1000  # states that are no new ones, one after the other: there are no more


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In memory where possible. The database of a store is in the store, as it is on the device of the cache."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="crash-", dir=memory if memory.is_dir() else None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(path / "cache"))
    monkeypatch.setenv("ARCHIVER_RESERVE", "8K")
    remember_walks(monkeypatch)
    yield path
    shutil.rmtree(path)


def record(prepare: Prepare, place: Path, kill_at: int = -1) -> tuple[Recorder, Scene | PlainScene]:
    """``kill_at``: before which step a first run is killed; none is without it, or with one that does not come."""
    place.mkdir(parents=True)
    scene = prepare(place)
    recorder = Recorder(scene.root, place / "attic", kill_at)
    with recorder.recording():
        try:
            told = scene.run(scene.root)
        except Killed:
            told = None
        if recorder.killed:
            recorder.revive()
            told = scene.run(scene.root)
    if told is False:
        recorder.history.is_acknowledged = False
    if isinstance(scene, Scene) and isinstance(told, SnapshotRef):
        scene.maybe |= scene.new
        scene.new = frozenset({told})
    return recorder, scene


def distinct(states: States, count: int) -> Iterator[State]:
    """First what every kill -9 leaves, as far as half of ``count`` goes."""
    barren = 0
    seen: set[bytes] = set()
    kills = list(states.kills())
    if len(kills) > count // 2:
        kills = kills[:: len(kills) * 2 // count + 1] + kills[-1:]
    for source in (iter(kills), states.any()):
        for state in source:
            if state.signature in seen:
                barren += 1
                if barren > _BARREN:
                    return
                continue
            barren = 0
            seen.add(state.signature)
            yield state
            count -= 1
            if not count:
                return


def look_at(name: str, place: Path, count: int, kills: int, seed: int) -> int:
    """The states of a whole run, and as many of runs that follow one that was killed, at ``kills`` places."""
    rng = random.Random(zlib.crc32(name.encode()) + seed)
    modes: Counter[str] = Counter()
    full = restored = steps = 0
    began = time.process_time()
    for number in range(kills + 1):
        kill_at = int(steps * (number - 1 + rng.random()) / kills) if number else -1
        recorder, scene = record(OPERATIONS[name], place / str(number), kill_at)
        steps = steps or recorder.steps
        checker = Checker(recorder.history, scene, place / "state")
        share = count // 2 if not number else count // 2 // kills
        for tried, state in enumerate(distinct(States(recorder.history, rng), share)):
            modes[state.mode] += 1
            try:
                checker.check(state, fully=tried % FULLY == 0)
            except BaseException as error:
                error.add_note(f"{name}, killed first at {kill_at}: {state}")
                raise
        full, restored = full + checker.full, restored + checker.restored
        shutil.rmtree(place / str(number))
    total = sum(modes.values())
    seconds = time.process_time() - began
    print(
        f"{name}: {total} states ({', '.join(f'{modes[mode]} {mode}' for mode in sorted(modes))}), {full} fully,"
        f" {restored} restores, {seconds * 1000 / total:.0f} ms a state"
    )
    return total


@pytest.mark.parametrize("name", OPERATIONS)
def test_some_states(name: str, place: Path) -> None:
    assert look_at(name, place, FEW, 2, 1) > 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", OPERATIONS)
def test_many_states(name: str, place: Path) -> None:
    assert look_at(name, place, MANY, 60, 2) > 20


# -- killed, run again, and then the power goes ----------------------------------------------------------------------


def telling_steps(recorder: Recorder) -> list[int]:
    """The steps behind each new name that is no chunk's, nor in a session: where the name is not durable yet."""
    steps = [op for op in recorder.history.ops if op.kind in STEP_KINDS]
    return [
        number + 1
        for number, op in enumerate(steps)
        if op.kind in ("mkdir", "rename", "link") and not any(part in op.path for part in ("/.chunks/", "/sessions/"))
    ]


@pytest.mark.parametrize("name", ["first backup", "sync", "labels", "ns create", "ns move", "init", "key create"])
def test_what_a_killed_run_has_made(name: str, place: Path) -> None:
    """The next run finds it, and must not take it for durable: when that has told to be done, all of it stays."""
    whole, _ = record(OPERATIONS[name], place / "whole")
    for kill_at in telling_steps(whole):
        recorder, scene = record(OPERATIONS[name], place / str(kill_at), kill_at)
        states = States(recorder.history, random.Random(kill_at))
        checker = Checker(recorder.history, scene, place / "state")
        seen: set[bytes] = set()
        for _ in range(8):
            state = states.at(len(recorder.history.ops), "unordered")
            if state.signature not in seen:  # there may be fewer than that
                seen.add(state.signature)
                checker.check(state, fully=False)
        shutil.rmtree(place / str(kill_at))
