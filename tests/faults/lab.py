"""A house with stores, a source and a key that is tried with faults: what may become of a command that meets one."""

from __future__ import annotations

import errno
import faulthandler
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import archiver
from archiver import errors
from archiver.cli.main import run
from archiver.errors import ArchiverError
from archiver.keys.make import key_time
from archiver.store.database import inspection
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats.keyfile import KeyFile
from tests.faults.injector import Injector
from tests.faults.traced import Tracer, wait_for_tracer
from tests.random_trees import build_plain, mutate, noise
from tests.stores import KEY, Heard, damage, make_store, restored_differences, save
from tests.sync.pair import finished

HANGS = 60  # seconds
START = 1_700_000_000
DAY = 86400
PASSWORD = "a new one"
_SHOWN = 3000  # characters of a failure

# Said of no file, as it is none that is to blame.
_OWN = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_BARE = {os.strerror(number).lower() for number in range(1, 134) if number not in _OWN}


def _documented() -> set[int]:
    found, left = {errors.EXIT_OK, errors.EXIT_PARTIAL, errors.EXIT_DIFFERENT}, [ArchiverError]
    while left:
        kind = left.pop()
        found.add(kind.exit_code)
        left += kind.__subclasses__()
    return found


DOCUMENTED = _documented()

for module in pkgutil.walk_packages(archiver.__path__, "archiver."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)  # a child reads nothing of the program from the disk


@dataclass(frozen=True, slots=True)
class Work:
    """A command by its arguments; ``{}`` in one is the house. ``writes``: the store whose snapshots it may change."""

    name: str
    arguments: tuple[str, ...]
    writes: str = "store"
    adds: tuple[str, ...] = ()  # groups that may get snapshots
    removes: bool = False

    @property
    def saves(self) -> bool:
        return self.arguments[0] == "backup"


_BACKUP = ("backup", "--chunk-size", "64")
_TREE = "tree.pxar:{}/tree"
WORKS = {
    work.name: work
    for work in (
        Work("first", (*_BACKUP, "--mode", "data", "--id", "first", "--store", "{}/empty", _TREE), "empty", ("first",)),
        Work("nightly", (*_BACKUP, "--id", "test", "--store", "{}/store", _TREE), adds=("test",)),
        Work("legacy", (*_BACKUP, "--mode", "legacy", "--id", "old", "--store", "{}/store", _TREE), adds=("old",)),
        Work(
            "secret",
            (*_BACKUP, "--id", "secret", "--keyfile", "{}/key", "--store", "{}/store", _TREE),
            adds=("secret",),
        ),
        Work("restore", ("restore", "host/test", "{}/out", "--store", "{}/store"), ""),
        Work("verify", ("verify", "--keyfile", "{}/key", "--store", "{}/store")),
        Work("prune", ("prune", "--keep-last", "1", "--store", "{}/store"), removes=True),
        Work("gc", ("gc", "--store", "{}/store")),
        Work("gc-files", ("gc", "--from-files", "--cutoff", "1", "--store", "{}/store")),
        Work("sync", ("sync", "{}/store", "{}/second"), "second", ("test", "secret")),
        Work("key", ("key", "change-passphrase", "{}/key", "--kdf", "pbkdf2"), ""),
        Work("rebuild", ("db", "rebuild", "--store", "{}/store")),
        Work("init", ("init", "{}/new"), ""),
        Work("ls", ("ls", "host/test", "--store", "{}/store"), ""),
        Work("snapshots", ("snapshots", "--store", "{}/store"), ""),
        Work("protect", ("protect", "host/test", "--store", "{}/store")),
    )
}


class Kind(Protocol):
    """What fails."""

    @property
    def kind(self) -> str: ...


F = TypeVar("F", bound=Kind)


@dataclass
class Ended:
    """How a command ended; ``hits``: how often the fault was met; ``calls``: (name, site) -> how often; ``traced``: the
    calls that strace has made to fail, ``counts``: how often one thread made each."""

    code: int
    out: str
    err: str
    hits: int = 0
    calls: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)
    traced: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def in_a_child(
    report: Path, act: Callable[[], int], injector: Injector | None = None, trace: Callable[[int], Tracer] | None = None
) -> Ended:
    """Run ``act`` in a forked process, whose exit code it gives; ``trace`` is told its id."""
    sys.stdout.flush()
    if trace is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    # Opened here: that of the child's calls which is to fail must be one of the command's.
    out, err = open(f"{report}.out", "w"), open(f"{report}.err", "w")
    child = os.fork()
    if not child:
        code = 70
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(HANGS)
            faulthandler.dump_traceback_later(HANGS - 5, file=err)
            sys.stdout, sys.stderr = out, err
            if injector is not None:
                injector.install()
            if trace is not None:
                wait_for_tracer()
            code = act()
        except BaseException:
            sys.stderr.write(traceback.format_exc())
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            if injector is not None:
                calls = [[*key, count] for key, count in injector.calls.items()]
                Path(f"{report}.calls").write_text(json.dumps([injector.hits, calls]))
            os._exit(code)
    out.close()
    err.close()
    tracer = trace(child) if trace is not None else None
    _, status = os.waitpid(child, 0)
    if tracer is not None:
        tracer.end()
    out_text, err_text = (Path(f"{report}.{end}").read_text(errors="replace") for end in ("out", "err"))
    ended = Ended(os.waitstatus_to_exitcode(status), out_text, err_text)
    if tracer is not None:
        ended.traced, ended.counts = tracer.injected(), tracer.counts()
        ended.hits = len(ended.traced)
    if injector is not None and ended.code >= 0:
        hits, calls = json.loads(Path(f"{report}.calls").read_text())
        ended.hits, ended.calls = hits, {(name, site): count for name, site, count in calls}
    return ended


@dataclass
class House:
    """``held``: what the stores hold, snapshot -> a copy of its tree; None: parts of it could not be read."""

    path: Path
    held: dict[str, dict[SnapshotRef, Path | None]]

    @classmethod
    def build(cls, path: Path) -> House:
        path.mkdir()
        tree = path / "tree"
        build_plain(tree, 4, files=14, max_size=40_000)
        (tree / "large").write_bytes(noise(4, 400_000))
        (tree / "holes").write_bytes(bytes(200_000) + b"end")
        os.link(tree / "large", tree / "again")
        (tree / "link").symlink_to("large")
        os.mkfifo(tree / "fifo")
        os.setxattr(tree / "large", "user.note", b"kept")
        (path / "key").write_bytes(KeyFile.wrap(KEY, None, None, None, key_time(), key_time()).encode())
        house = cls(path, {name: {} for name in ("store", "second", "empty")})
        for name in house.held:
            make_store(path / name)
        secret = GroupRef("", "host", "secret")
        for number in range(3):
            mutate(tree, number, 3)
            kept = path / f"kept-{number}"
            _copy(tree, kept)
            when = START + DAY * number
            house.held["store"][save(path / "store", tree, time=when, mode="metadata").snapshot] = kept
            if number == 0:
                assert run(["sync", f"{path}/store", f"{path}/second", "-q"], False) == 0
                (ref,) = finished(path / "second")
                house.held["second"][ref] = kept
        saved = save(path / "store", tree, time=START, group=secret, mode="metadata", crypt=KEY).snapshot
        house.held["store"][saved] = kept
        first = min(ref for ref in house.held["store"] if ref.group.id == "test")
        assert run(["forget", str(first), "--store", f"{path}/store", "-q"], False) == 0
        del house.held["store"][first]
        mutate(tree, 9, 6)
        return house

    def copy(self, path: Path) -> House:
        """As it is; its databases are in order."""
        _copy(self.path, path)
        held: dict[str, dict[SnapshotRef, Path | None]] = {
            name: {ref: path / kept.relative_to(self.path) for ref, kept in snapshots.items() if kept is not None}
            for name, snapshots in self.held.items()
        }
        for name in held:
            database = path / name / ".archiver/db"
            if (database / inspection.DATA).exists():
                inspection.stamp(str(database))
            with Store.open(path / name, listener=Heard()) as store:
                _ = store.database  # it is told of the new inodes
        return House(path, held)

    def arguments(self, work: Work) -> list[str]:
        return [argument.replace("{}", str(self.path)) for argument in work.arguments]

    def run(self, work: Work, injector: Injector | None = None, trace: Callable[[int], Tracer] | None = None) -> Ended:
        os.environ["ARCHIVER_NEW_PASSWORD"] = os.environ["ARCHIVER_PASSWORD"] = PASSWORD
        return in_a_child(self.path / "report", lambda: run(self.arguments(work), False), injector, trace)

    # -- what must hold ----------------------------------------------------------------------------------------------

    def check(self, work: Work, ended: Ended, rng: random.Random) -> None:
        """It ended as the documents say, nothing that was saved is lost, and a second run that nothing disturbs does
        what the first one should have."""
        check_end(ended)
        self._check_stores(work, ended, rng)
        shutil.rmtree(self.path / "out", ignore_errors=True)
        is_made = work.name == "init" and (self.path / "new/.archiver/store.json").exists()
        again = self.run(work)
        assert again.code == (errors.UsageError.exit_code if is_made else 0), again
        assert "Traceback" not in again.err
        self._check_stores(work, again, rng)
        if work.name == "restore":
            self._check_restored()

    def _check_restored(self) -> None:
        from tests.compare import differences

        newest = max(ref for ref in self.held["store"] if ref.group.id == "test")
        kept = self.held["store"][newest]
        assert kept is not None and differences(kept, self.path / "out") == []

    def _check_stores(self, work: Work, ended: Ended, rng: random.Random) -> None:
        if work.name == "restore" and ended.code == 0:
            self._check_restored()
        if work.name == "key":
            self._check_key()
        for name, held in self.held.items():
            if name != work.writes:
                continue
            before, present = set(held), set(finished(self.path / name))
            lost, new = before - present, present - before
            assert not lost or work.removes, lost
            assert {ref.group.id for ref in new} <= set(work.adds), new
            if ended.code in (0, 3) and work.adds and not ended.hits:
                assert new or work.name == "sync"
            for ref in lost:
                del held[ref]
            if work.saves and new and ended.code not in (errors.EXIT_OK, errors.EXIT_PARTIAL):
                # It is complete, but its name may be lost in a power cut; or nobody was told of it.
                assert " publish " in ended.err or "write the result" in ended.err, ended
            assert damage(self.path / name, KEY) == []
            for ref in new:
                held[ref] = self.path / "tree" if work.saves else self.held["store"][ref]
                if ended.code == errors.EXIT_PARTIAL:
                    self._check_partial(name, ref, ended.err)
                    held[ref] = None
                else:
                    self._check_snapshot(name, ref)
            old = [ref for ref in sorted(before & present) if held[ref] is not None]
            for ref in rng.sample(old, min(1, len(old))):
                self._check_snapshot(name, ref)

    def _differences(self, name: str, ref: SnapshotRef) -> list[str]:
        out, kept = self.path / "restored", self.held[name][ref]
        assert kept is not None
        found = restored_differences(self.path / name, ref, kept, out, KEY if ref.group.id == "secret" else None)
        shutil.rmtree(out)
        return found

    def _check_snapshot(self, name: str, ref: SnapshotRef) -> None:
        assert self._differences(name, ref) == [], ref

    def _check_partial(self, name: str, ref: SnapshotRef, told: str) -> None:
        """Whatever is missing in it was named."""
        named = re.findall(r"^(?:unreadable|torn): /(.*?): ", told, re.MULTILINE)
        assert named, told
        tree = self.path / "tree"
        links = {(tree / each).lstat().st_ino for each in named}
        named += [str(each.relative_to(tree)) for each in tree.rglob("*") if each.lstat().st_ino in links]
        for line in self._differences(name, ref):
            path = line.split(": ")[0].strip("'")
            assert any(not each or f"{path}/".startswith(f"{each}/") for each in named), (line, told)

    def _check_key(self) -> None:
        file = KeyFile.decode((self.path / "key").read_bytes())
        assert file.unlock(None if file.kdf is None else PASSWORD.encode()).fingerprint == KEY.fingerprint


def sweep(
    built: House,
    place: Path,
    chosen: Sequence[tuple[Work, F]],
    attempt: Callable[[House, Work, F, random.Random], Ended],
    seed: int,
) -> Counter[str]:
    """Try each fault in a house of its own, all of them whatever comes; how often which one led to which exit code."""
    rng = random.Random(seed)
    codes: Counter[str] = Counter()
    failures: list[str] = []
    for work, fault in chosen:
        try:
            ended = attempt(built.copy(place), work, fault, rng)
        except (AssertionError, ArchiverError, OSError):
            failures.append(f"{work.name}: {fault}\n{traceback.format_exc(limit=-3)}"[:_SHOWN])
        else:
            codes[f"{fault.kind} exit {ended.code}" if ended.hits else "not met"] += 1
        shutil.rmtree(place)
    assert not failures, f"{len(failures)} of {len(chosen)}:\n" + "\n".join(failures)
    return codes


def told(codes: Counter[str]) -> str:
    return ", ".join(f"{count} {text}" for text, count in sorted(codes.items()))


def check_end(ended: Ended) -> None:
    """A documented exit code, and one sentence that says what could not be done."""
    assert ended.code != -signal.SIGALRM, f"it hangs: {ended.err}"
    assert ended.code in DOCUMENTED, ended
    assert "Traceback" not in ended.err and "bug of archiver" not in ended.err, ended.err
    told = [line for line in ended.err.splitlines() if line.startswith("archiver: ")]
    if ended.code in (errors.EXIT_OK, errors.EXIT_PARTIAL, errors.EXIT_DIFFERENT):
        assert not told, ended
    elif ended.code != errors.EXIT_DAMAGED or told:  # damage may be in the result instead
        assert len(told) == 1, ended
        assert told[0].removeprefix("archiver: ") not in _BARE, f"it does not say of what: {ended.err}"


def _copy(source: Path, target: Path) -> None:
    """With links, holes, all times."""
    subprocess.run(["cp", "-a", source, target], check=True)
