"""Any changes between any backups: each snapshot is the tree of its moment and stays it, and the accounts are right.

What is read is told by the kernel, what a tree holds by tests.compare, what is excluded by a model of its own.
"""

from __future__ import annotations

import os
import shutil
import stat as st
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from archiver.backup.run import Mode
from archiver.source.walk import WalkOptions
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.patterns import parse_exclude_option
from tests.attributes import write_sparse
from tests.backup.accesses import Accesses
from tests.backup.living_tree import CHANGES, EXCLUDE_FILE, LivingTree, selected
from tests.compare import Description, compare_descriptions, snapshot_tree
from tests.random_trees import build_plain, noise
from tests.stores import GROUP, KEY, Saved, bring_back, damage, make_store, restored_differences, save

pytestmark = pytest.mark.in_memory

OTHER = GroupRef("", "host", "other")
START = 1_700_000_000
HEADER = 16  # bytes before each content in a payload stream, and each of the markers at its two ends
OFTEN = ["append", "create", "link", "move", "rename", "rename_directory", "replace", "rewrite", "swap"]
KINDS = sorted(CHANGES.keys() - {"huge_directory"}) + OFTEN


class File(NamedTuple):
    """A regular file by all of its names: ``data`` bytes have to be read, the rest are holes."""

    names: list[Path]
    size: int
    data: int


def files_of(tree: Description, root: Path) -> list[File]:
    names: dict[str, list[Path]] = {}
    for key, entry in tree.items():
        if st.S_ISREG(entry["mode"]):
            names.setdefault(entry["link"] or key, []).append(root / os.fsdecode(bytes.fromhex(key)))
    return [File(paths, paths[0].stat().st_size, data_bytes(paths[0])) for paths in names.values()]


def data_bytes(path: Path) -> int:
    total = end = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            end = min(os.lseek(file.fileno(), start, os.SEEK_HOLE), size)
            total += end - start
    return total


def check_accounts(saved: Saved, store: Path, files: list[File], accessed: set[Path], mode: Mode) -> None:
    """The numbers of a run against what it had before it and what it read."""
    counted = saved.result.files
    assert saved.problems == [] and saved.result.errors == []
    assert (counted.read_errors, counted.torn, counted.vanished) == (0, 0, 0)
    assert counted.total == sum(len(file.names) for file in files)
    assert counted.unchanged + counted.reencoded == len(files)
    if mode != "metadata":
        assert counted.unchanged == 0
        assert counted.bytes_read == sum(file.data for file in files)
    # An exclude file is looked into by the walk, too.
    plain = [file for file in files if not any(name.name == EXCLUDE_FILE for name in file.names)]
    unclear = [file for file in files if file not in plain]
    read = [file for file in plain if accessed.intersection(file.names)]
    rest = counted.bytes_read - sum(file.data for file in read)
    assert 0 <= rest <= sum(file.data for file in unclear)
    assert len(read) <= counted.reencoded <= len(read) + len(unclear) + sum(not file.data for file in plain)
    if mode != "legacy":
        with Store.open(store, read_only=True) as opened:
            (payload,) = (file for file in opened.manifest(saved.snapshot).files if ".ppxar" in file.filename)
        contents = sum(HEADER + file.size for file in files)
        assert payload.size == 2 * HEADER + contents + saved.result.archives[0].counters.padding_bytes


class TreeMachine(RuleBasedStateMachine):
    """Snapshots are kept as descriptions of the tree that they were made of.

    With ``forged`` times only the records of the run before tell what has changed, so these are never lost.
    """

    def __init__(self, place: Path, *, forged: bool) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(dir=place))
        self.tree = LivingTree(self.place / "source", forged=forged)
        self.store = make_store(self.place / "store")
        self.kept: dict[SnapshotRef, Description] = {}
        self.crypt: CryptConfig | None = None

    @initialize(
        crypt=some.sampled_from([None, KEY]), seed=some.integers(0, 9), directories=some.sampled_from([6, 6, 1, 0])
    )
    def begin(self, crypt: CryptConfig | None, seed: int, directories: int) -> None:
        self.crypt = crypt
        build_plain(self.tree.root, seed, files=10 * directories, directories=directories, max_size=60_000)
        if not directories:
            self.tree.change("create", seed)
            return
        for number, kind in enumerate(("sparse", "link", "link", "attribute", "symlink", "exclude")):
            self.tree.change(kind, seed + number)

    @rule(
        changes=some.lists(some.tuples(some.sampled_from(KINDS), some.integers(0, 99)), max_size=6),
        mode=some.sampled_from(["metadata", "metadata", "metadata", "metadata", "data", "legacy"]),
        group=some.sampled_from([GROUP, GROUP, GROUP, OTHER]),
        excludes=some.sampled_from([[], [], [], ["*.tmp"]]),
        number=some.integers(0, 99),
    )
    def change_and_back_up(
        self, changes: list[tuple[str, int]], mode: Mode, group: GroupRef, excludes: list[str], number: int
    ) -> None:
        """Each change is made three times. ``number`` chooses an older snapshot to look at."""
        for kind, seed in changes:
            for again in range(3):
                self.tree.change(kind, 3 * seed + again)
        excludes = [] if mode == "legacy" else excludes  # there they would become a file of the archive
        tree = selected(snapshot_tree(self.tree.root), self.tree.root, excludes)
        files = files_of(tree, self.tree.root)
        walk = WalkOptions(excludes=[parse_exclude_option(text.encode()) for text in excludes])
        time = max((ref.time for ref in self.kept if ref.group == group), default=START) + 1
        with Accesses(self.tree.root) as accesses:
            saved = save(self.store, self.tree.root, group=group, time=time, mode=mode, crypt=self.crypt, walk=walk)
            accessed = accesses.files()
        check_accounts(saved, self.store, files, accessed, mode)
        assert saved.snapshot.time == time
        self.kept[saved.snapshot] = tree
        self.check(saved.snapshot)
        self.check(sorted(self.kept)[number % len(self.kept)])
        assert damage(self.store, self.crypt) == []

    def check(self, ref: SnapshotRef) -> None:
        out = self.place / "out"
        shutil.rmtree(out, ignore_errors=True)  # of the check before
        assert bring_back(self.store, ref, out, crypt=self.crypt, verify=False).problems == []
        assert compare_descriptions(self.kept[ref], snapshot_tree(out)) == []

    @precondition(lambda self: self.kept and not self.tree.forged)
    @rule()
    def forget_the_newest(self) -> None:
        """Its time is given to the next one."""
        newest = max(self.kept, key=lambda ref: (ref.time, ref))
        shutil.rmtree(self.store / newest.path)
        del self.kept[newest]

    @precondition(lambda self: not self.tree.forged)
    @rule(how=some.sampled_from(["lose", "keep", "put back", "put back"]))
    def database(self, how: str) -> None:
        """It may be absent, or of any earlier time."""
        directory, copy = self.store / ".archiver/db", self.place / "db"
        if how == "keep" and directory.is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(directory, copy)
        elif how == "lose":
            shutil.rmtree(directory, ignore_errors=True)
        elif how == "put back" and copy.is_dir():
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(copy, directory)

    def teardown(self) -> None:
        for ref in self.kept:
            self.check(ref)
        with Store.open(self.store) as store:
            assert store.database is not None and store.database.check() == []
        shutil.rmtree(self.place)


def run_machine(place: Path, examples: int, steps: int, *, forged: bool) -> None:
    run_state_machine_as_test(
        lambda: TreeMachine(place, forged=forged),  # type: ignore[arg-type]  # anything that makes one will do
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("forged", [False, True])
def test_any_changes_between_any_backups(tmp_path: Path, forged: bool) -> None:
    run_machine(tmp_path, 7 - 3 * forged, 12, forged=forged)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("forged", [False, True])
def test_very_many_changes_between_backups(tmp_path: Path, forged: bool) -> None:
    run_machine(tmp_path, 200, 40, forged=forged)


def test_a_huge_directory_and_a_huge_hole(tmp_path: Path) -> None:
    """3,000 names and one more each night, beside a file of 256 MiB with few bytes in it."""
    tree, store = LivingTree(tmp_path / "source"), make_store(tmp_path / "store")
    write_sparse(tree.root / "hole", 256 << 20, {200 << 20: noise(1, 100_000)})
    unchanged = 0
    for night in range(3):
        tree.change("huge_directory", night)
        files = files_of(snapshot_tree(tree.root), tree.root)
        with Accesses(tree.root) as accesses:
            saved = save(store, tree.root, time=START + night, mode="metadata")
            check_accounts(saved, store, files, accesses.files(), "metadata")
        assert restored_differences(store, saved.snapshot, tree.root, tmp_path / f"out-{night}") == []
        unchanged += saved.result.files.unchanged
    assert unchanged > 2000
