"""Every call that the program itself makes fails once: in time each place of each command, here a sample of them.

Each time the command ends as documented with a sentence, or as if nothing had been; every published snapshot restores;
a run that nothing disturbs then does all of the work.
"""

from __future__ import annotations

import random
import re
import shutil
import time
from pathlib import Path

import pytest

from archiver.errors import EXIT_OK, EXIT_PARTIAL, NoSpace
from tests.faults.injector import SHORT, Fault, Injector, faults
from tests.faults.lab import WORKS, Ended, House, Work, sweep, told

pytestmark = pytest.mark.in_memory

# What is not written down costs time or is told as a warning, and nothing else depends on it.
_MAY_BE_LOST = ("store/labels:set_verify_state", "store/removal:sweep", "store/removal:remove_group", "store/database/")
# Reading a source file or what is kept with it.
_SOURCE = ("source/content:", "source/metadata:collect", "source/metadata:_values")


def places(built: House, place: Path, work: Work) -> list[Fault]:
    """All faults that the command can meet."""
    house = built.copy(place)
    ended = house.run(work, Injector())
    assert ended.code == EXIT_OK, ended
    shutil.rmtree(place)
    return faults(ended.calls)


def attempt(house: House, work: Work, fault: Fault, rng: random.Random) -> Ended:
    ended = house.run(work, Injector(fault))
    house.check(work, ended, rng)
    check_what(work, fault, ended)
    return ended


def check_what(work: Work, fault: Fault, ended: Ended) -> None:
    """What follows from the kind of the fault."""
    if not ended.hits:
        return
    if fault.kind in (SHORT, "EINTR"):
        assert ended.code == EXIT_OK
        return
    if fault.call in ("fsync", "syncfs"):
        assert ended.code != EXIT_OK or any(part in fault.site for part in _MAY_BE_LOST)
    if work.saves and fault.site.startswith(_SOURCE) and fault.kind == "EIO":
        assert ended.code in (EXIT_OK, EXIT_PARTIAL)
    if fault.kind == "ENOSPC" and fault.call in ("write", "writev", "pwrite", "mkdir", "rename"):
        assert ended.code in (EXIT_OK, EXIT_PARTIAL, NoSpace.exit_code)


def test_a_sample(built: House, tmp_path: Path) -> None:
    rng = random.Random(1)
    found = []
    for name in ("nightly", "first", "restore", "prune", "gc", "sync", "verify", "key", "rebuild"):
        for fault in rng.sample(places(built, tmp_path / "copy", WORKS[name]), 2):
            found.append((WORKS[name], fault))
    codes = sweep(built, tmp_path / "copy", found, attempt, 1)
    assert codes.total() == len(found) and codes["not met"] < len(found) / 4, codes


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", WORKS)
def test_every_place(built: House, tmp_path: Path, name: str) -> None:
    began = time.monotonic()
    found = places(built, tmp_path / "copy", WORKS[name])
    codes = sweep(built, tmp_path / "copy", [(WORKS[name], fault) for fault in found], attempt, 2)
    sites = len({(fault.call, fault.site) for fault in found})
    print(f"{name}: {len(found)} faults at {sites} places in {time.monotonic() - began:.0f} s: {told(codes)}")
    assert codes["not met"] < len(found) / 2


@pytest.mark.parametrize("name", ["first", "nightly", "secret", "restore", "sync", "verify", "prune", "rebuild"])
def test_every_transfer_is_short(house: House, name: str) -> None:
    """All reads and writes of the program are done in halves: the same comes of it."""
    work = WORKS[name]
    ended = house.run(work, Injector(Fault("", "", 0, SHORT)))
    assert ended.code == EXIT_OK and ended.hits > 3, ended
    house.check(work, ended, random.Random(1))


def test_a_source_file_that_cannot_be_read(house: House) -> None:
    """It is named, and all else is saved."""
    work = WORKS["nightly"]
    (house.path / "tree/large").write_bytes(bytes(range(256)) * 2000)
    whole = house.copy(house.path.with_name("whole"))
    calls = whole.run(work, Injector()).calls
    (site,) = {site for call, site in calls if call == "preadv" and "content" in site}
    ended = house.run(work, Injector(Fault("preadv", site, 1, "EIO")))
    assert ended.code == EXIT_PARTIAL, ended
    assert re.search("^(torn|unreadable): /(large|again): .*input/output error$", ended.err, re.I | re.M), ended
    house.check(work, ended, random.Random(1))


def test_a_disk_that_does_not_take_what_was_written(house: House) -> None:
    """Neither the failing fsync nor any later one is asked a second time for the same file."""
    work = WORKS["first"]
    calls = house.copy(house.path.with_name("whole")).run(work, Injector()).calls
    site = next(site for call, site in calls if call == "fsync" and "core/disk:commit" in site)
    ended = house.run(work, Injector(Fault("fsync", site, 1, "EIO")))
    assert ended.code == 1 and "cannot publish" in ended.err, ended
    assert ended.calls["fsync", site] == 1
    house.check(work, ended, random.Random(1))
