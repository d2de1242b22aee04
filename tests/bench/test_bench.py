"""The benchmark's machinery on tiny trees: nothing here looks at how long anything takes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import lmdb
import pytest
import zstandard

from bench import __main__ as command
from bench import changes, database, datasets, limit, measure, peers, report, trees
from bench.database import DatabaseSize
from bench.measure import Usage
from bench.peers import Command, Program
from bench.suite import WORKLOADS, Row, Suite
from formats.blob.layout import inspect

pytestmark = pytest.mark.in_memory


class Copier(Program):
    """A backup program that is three lines of shell, in the place of ours."""

    name = "archiver"
    restore_options: tuple[tuple[str, ...], ...] = ((), ("--no-verify",))

    def version(self) -> str | None:
        return "1.0"

    def init(self, place: Path) -> Command:
        return ["mkdir", str(self.repository(place))]

    def backup(self, place: Path, source: Path, name: str) -> Command:
        return ["cp", "-a", str(source), str(self.repository(place) / name)]

    def restore(self, place: Path, target: Path, name: str) -> Command:
        return ["sh", "-c", 'cp -a "$0"/. "$1"', str(self.repository(place) / name), str(target)]

    def restored(self, target: Path, source: Path) -> Path:
        return target

    def verify(self, place: Path) -> Command:
        return ["ls", str(self.repository(place) / "first")]

    def snapshots(self, place: Path) -> Command:
        return ["ls", str(self.repository(place))]

    def help(self) -> Command:
        return ["true"]


class Careless(Copier):
    name = "careless"
    restore_options = ((),)

    def restore(self, place: Path, target: Path, name: str) -> Command:
        return ["sh", "-c", 'cp -a "$0"/. "$1"; rm "$1"/a', str(self.repository(place) / name), str(target)]


class Crashing(Copier):
    name = "crashing"
    restore_options = ((),)

    def backup(self, place: Path, source: Path, name: str) -> Command:
        return ["sh", "-c", "echo disk on fire >&2; exit 9"]


class Absent(Copier):
    name = "absent"

    def version(self) -> str | None:
        return None


class Forgetful(Copier):
    """Saves the same state for ever."""

    name = "forgetful"
    restore_options = ((),)

    def backup(self, place: Path, source: Path, name: str) -> Command:
        if name == "first":
            return super().backup(place, source, name)
        repository = self.repository(place)
        return ["cp", "-a", str(repository / "first"), str(repository / name)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "SETTLED_SECONDS", 0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "a").write_bytes(b"alpha")
    (root / "sub" / "b").write_bytes(os.urandom(5000))
    (root / "sub" / "deep" / "empty").touch()
    (root / "link").symlink_to("a")
    os.link(root / "sub" / "b", root / "hard")
    os.utime(root / "a", ns=(1, 1_234_567_891_234_567_891))
    return root


def run_suite(tree: Path, programs: list[Program], repeat: int = 1, only: list[str] | None = None) -> list[Row]:
    data = datasets.take("tree", tree)
    directory, logs = tree.parent / "run", tree.parent / "logs"
    suite = Suite(data, programs, directory, logs, repeat=repeat, progress=lambda line: None)
    return suite.run(only or list(WORKLOADS))


def row(rows: list[Row], workload: str, label: str) -> Row:
    return next(one for one in rows if (one.workload, one.label) == (workload, label))


# Runs


def test_every_workload_gives_a_row_for_each_command(tree: Path) -> None:
    rows = run_suite(tree, [Copier()], repeat=2)
    assert [(one.workload, one.label) for one in rows] == [
        ("first", "archiver"),
        ("first", "limit"),
        ("unchanged", "archiver"),
        ("changed", "archiver"),
        ("restore", "archiver"),
        ("restore", "archiver --no-verify"),
        ("verify", "archiver"),
        ("list", "archiver"),
        ("help", "archiver"),
    ]
    assert all(len(one.runs) == 2 and not one.problems for one in rows)
    assert [(one.workload, one.label) for one in rows if one.checked] == [
        ("changed", "archiver"),
        ("restore", "archiver"),
        ("restore", "archiver --no-verify"),
    ]
    assert [one.workload for one in rows if one.entries == 7] == ["first", "unchanged", "changed"]
    assert (row(rows, "first", "archiver").stored or 0) >= 5005
    assert (row(rows, "first", "limit").stored or 0) >= 5005


def test_rounds_are_interleaved(tree: Path) -> None:
    seen: list[str] = []
    data = datasets.take("tree", tree)
    suite = Suite(data, [Copier(), Careless()], tree.parent / "run", tree.parent, repeat=2, progress=seen.append)
    suite.run(["unchanged"])
    assert [line.split(": ")[1:3] for line in seen] == [
        ["unchanged 1/2", "archiver"],
        ["unchanged 1/2", "careless"],
        ["unchanged 2/2", "archiver"],
        ["unchanged 2/2", "careless"],
    ]


def test_a_restore_that_lost_a_file_is_a_problem(tree: Path) -> None:
    rows = run_suite(tree, [Copier(), Careless()], only=["restore"])
    assert not row(rows, "restore", "archiver").problems
    said = "restore is not the source: "
    assert set(row(rows, "restore", "careless").problems) == {f"{said}mtime: {tree}", f"{said}missing: {tree / 'a'}"}


def test_a_failing_program_stops_nothing_else(tree: Path) -> None:
    rows = run_suite(tree, [Crashing(), Copier()], only=["first", "unchanged"])
    assert row(rows, "first", "crashing").problems == ["exit code 9: disk on fire"]
    assert row(rows, "first", "crashing").runs == []
    assert len(row(rows, "unchanged", "archiver").runs) == 1


def test_changes_are_made_to_a_copy_and_all_get_the_same(tree: Path) -> None:
    before = restored_copy(tree)
    rows = run_suite(tree, [Copier(), Careless()], repeat=3, only=["changed"])
    assert trees.differences(before, tree) == []
    assert not row(rows, "changed", "archiver").problems
    assert len(row(rows, "changed", "careless").problems) == 2  # of its restore alone
    ours, theirs = (tree.parent / "run" / f"{name}.changed" / "repository" for name in ("archiver", "careless"))
    assert trees.differences(tree, ours / "first") == []
    states = ["first", "changed-1", "changed-2", "changed-3"]
    for earlier, later in pairwise(states):
        assert trees.differences(ours / later, theirs / later) == []
        assert trees.differences(ours / earlier, ours / later)


def test_a_backup_of_an_older_state_is_found_out(tree: Path) -> None:
    (found,) = run_suite(tree, [Forgetful()], repeat=2, only=["changed"])
    assert len(found.runs) == 2 and found.problems


def test_a_series_without_a_first_backup_is_not_measured(tree: Path) -> None:
    rows = run_suite(tree, [Crashing(), Copier()], repeat=2, only=["changed"])
    assert row(rows, "changed", "crashing").problems == ["exit code 9: disk on fire"]
    assert len(row(rows, "changed", "archiver").runs) == 2


def test_ours_tells_what_it_read_and_how_its_database_grew(tree: Path) -> None:
    rows = run_suite(tree, [peers.Archiver()], repeat=2, only=["first", "unchanged", "changed"])
    first, unchanged, changed = (row(rows, name, "archiver") for name in ("first", "unchanged", "changed"))
    assert not first.problems + unchanged.problems + changed.problems
    contents = {(entry.status.st_ino, entry.status.st_size) for entry in trees.walk(tree) if entry.is_file}
    assert first.bytes_read == [sum(size for _, size in contents)] * 2
    assert len(unchanged.bytes_read) == len(changed.bytes_read) == len(unchanged.growth) == 2
    assert all(0 < growth.used <= growth.length for growth in first.growth)


def test_ours_with_a_key_is_compared_with_ours_without(tree: Path) -> None:
    rows = run_suite(tree, [peers.Archiver(), peers.ArchiverWithKey()], only=["first", "changed", "restore", "verify"])
    assert [problem for one in rows for problem in one.problems] == []
    for one in rows:
        assert ("plain" in report.ratios(one, rows)) == (one.program == "archiver+key")
    chunks = [path for path in tree.parent.glob("run/archiver+key/repository/.chunks/*/*") if path.is_file()]
    assert chunks and all(inspect(path.read_bytes()).encrypted for path in chunks)


def test_a_failed_preparation_is_told_in_the_row_that_needs_it(tree: Path) -> None:
    rows = run_suite(tree, [Crashing()], only=["verify"])
    assert row(rows, "verify", "crashing").problems == ["exit code 9: disk on fire"]


@pytest.mark.parametrize("program", [peers.Restic(), peers.Borg()], ids=lambda program: program.name)
def test_peers_do_their_work(tree: Path, program: Program) -> None:
    if program.version() is None:
        pytest.skip(f"{program.name} is not installed")
    rows = run_suite(tree, [program], only=["first", "restore", "verify", "list"])
    assert [problem for one in rows for problem in one.problems] == []
    assert sum(len(one.runs) for one in rows) == 4 + len(program.restore_options)


def test_programs_get_no_directory_of_the_user(tmp_path: Path) -> None:
    for program in peers.programs():
        environment = program.environment(tmp_path)
        home = Path(environment["HOME"])
        assert home.is_relative_to(tmp_path) and Path(environment["TMPDIR"]).is_relative_to(tmp_path)
        assert all(Path(value).is_relative_to(home) for name, value in environment.items() if name.startswith("XDG_"))


# One command


def launch(tmp_path: Path, *arguments: str) -> tuple[measure.Finished, str]:
    output = tmp_path / "output"
    finished = measure.run(arguments, environment={"PATH": os.defpath, "WHO": "me"}, cwd=tmp_path, output=output)
    return finished, output.read_text()


def test_a_run_reports_exit_code_and_output(tmp_path: Path) -> None:
    finished, text = launch(tmp_path, "sh", "-c", 'echo "$WHO" "$PWD"; echo oops >&2; exit 7')
    assert finished.code == 7
    assert text == f"me {tmp_path}\noops\n"


def test_a_run_ended_by_a_signal_has_a_negative_code(tmp_path: Path) -> None:
    assert launch(tmp_path, "sh", "-c", "kill -9 $$")[0].code == -signal.SIGKILL


def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-program"):
        launch(tmp_path, "no-such-program")


def test_memory_is_that_of_the_child_alone(tmp_path: Path) -> None:
    mine = b"x" * (128 << 20)
    small = launch(tmp_path, "true")[0].usage
    script = "import time; held = b'x' * (64 << 20); time.sleep(0.3)"
    large = launch(tmp_path, sys.executable, "-c", script)[0].usage
    assert len(mine) > 64 << 20 > small.rss
    assert large.rss >= large.anon >= 64 << 20


# Data


def test_large_is_random_bytes_and_programs(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in "abc":
        (programs / name).write_bytes(datasets.ELF + name.encode() * 100_000)
    os.link(programs / "a", programs / "again")
    (programs / "notes.txt").write_bytes(b"no program" * 100_000)
    data = datasets.large(tmp_path / "data", half=150_000, program_directories=[programs])
    assert (data.root / "random").stat().st_size == 150_000
    with tarfile.open(data.root / "programs.tar") as archive:
        assert [Path(name).name for name in archive.getnames()] == ["a", "b"]
    assert data.entries == 3
    newest, others = (data.root / "newest").stat(), [data.root / "random", data.root / "programs.tar"]
    assert all(other.stat().st_ctime_ns < newest.st_ctime_ns for other in others)
    assert len(zstandard.compress((data.root / "random").read_bytes())) > 149_000


def test_built_data_is_kept_and_a_build_cut_short_is_not(tmp_path: Path) -> None:
    (tmp_path / "tiny-3.partial" / "rubbish").mkdir(parents=True)
    first = datasets.tiny(tmp_path, 3)
    assert first.entries == 5 and not (tmp_path / "tiny-3.partial").exists()
    inode = first.root.stat().st_ino
    assert datasets.tiny(tmp_path, 3).root.stat().st_ino == inode


def test_tiny_is_the_same_every_time(tmp_path: Path) -> None:
    data = datasets.tiny(tmp_path / "one", 250)
    again = datasets.tiny(tmp_path / "two", 250)
    files = [Path(entry.path) for entry in trees.walk(data.root) if entry.is_file]
    assert len(files) == len({file.read_bytes() for file in files}) == 250
    assert max(len(list(file.parent.iterdir())) for file in files) == 100
    for file in files:
        twin = again.root / file.relative_to(data.root)
        assert twin.read_bytes() == file.read_bytes() and twin.stat().st_mtime_ns == file.stat().st_mtime_ns


def test_a_directory_is_taken_as_it_is(tree: Path) -> None:
    data = datasets.choose(str(tree), tree.parent / "data")
    assert (data.root, data.entries, data.size) == (tree, 7, 10_005)
    with pytest.raises(NotADirectoryError):
        datasets.choose(str(tree / "a"), tree.parent / "data")


# The limit


@pytest.mark.parametrize("piece", [700, 1 << 20])
def test_the_limit_stores_every_piece_once(tree: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(limit, "PIECE", piece)
    (tree / "zeros").write_bytes(bytes(10_000))
    target = tree.parent / "target"
    target.mkdir()
    limit.work(tree, target)
    files = [Path(entry.path).read_bytes() for entry in trees.walk(tree) if entry.is_file]
    stream = b"".join(files)
    cuts = [stream[start : start + piece] for start in range(0, len(stream), piece)]
    assert {file.name for file in target.iterdir()} == {hashlib.sha256(cut).hexdigest() for cut in cuts}
    for file in target.iterdir():
        stored = file.read_bytes()
        data = zstandard.decompress(stored) if stored.startswith(zstandard.FRAME_HEADER) else stored
        assert hashlib.sha256(data).hexdigest() == file.name


def test_a_failure_in_a_thread_of_the_limit_is_raised(tree: Path) -> None:
    with pytest.raises(FileNotFoundError):
        limit.work(tree, tree.parent / "absent")


# Changes


def changed_tree(tmp_path: Path, number: int, count: int = 1000) -> tuple[Path, Path]:
    """A generated tree, and a copy of it with one change."""
    before = datasets.tiny(tmp_path, count).root
    after = tmp_path / f"after-{number}"
    changes.copy(before, after)
    assert changes.apply(after, number) == max(count // 100, 1)
    return before, after


def test_one_file_in_a_hundred_changes_in_every_way(tmp_path: Path) -> None:
    before, after = changed_tree(tmp_path, 1)
    old, new = ({Path(e.path).relative_to(root): e for e in trees.walk(root) if e.is_file} for root in (before, after))
    assert sorted(path.name for path in new.keys() - old.keys()) == ["new-1-7", "renamed-1-9"]
    assert len(old.keys() - new.keys()) == 2
    written = [path for path in old.keys() & new.keys() if old[path].status.st_mtime != new[path].status.st_mtime]
    growth = [new[path].status.st_size - old[path].status.st_size for path in written]
    assert len([size for size in growth if not size]) == 5 and len([size for size in growth if size > 0]) == 2
    assert all((before / path).read_bytes() != (after / path).read_bytes() for path in written)


def test_a_change_is_the_same_every_time_and_each_is_another(tmp_path: Path) -> None:
    _, first = changed_tree(tmp_path / "a", 1)
    _, again = changed_tree(tmp_path / "b", 1)
    _, second = changed_tree(tmp_path / "c", 2)
    contents = [
        {Path(e.path).relative_to(root): Path(e.path).read_bytes() for e in trees.walk(root) if e.is_file}
        for root in (first, again, second)
    ]
    assert contents[0] == contents[1] != contents[2]


def test_few_files_still_change_and_none_at_all_is_no_error(tmp_path: Path) -> None:
    before, after = changed_tree(tmp_path, 1, count=3)
    assert trees.differences(before, after)
    trees.empty(after)
    assert changes.apply(after, 2) == 0


def test_a_copy_keeps_everything(tree: Path) -> None:
    changes.copy(tree, tree.parent / "twin")
    assert trees.differences(tree, tree.parent / "twin") == []
    assert (tree.parent / "twin" / "hard").samefile(tree.parent / "twin" / "sub" / "b")
    with pytest.raises(OSError, match="cannot copy"):
        changes.copy(tree / "absent", tree.parent / "nothing")


@pytest.mark.parametrize(("age", "waited"), [(0, 3), (1, 2), (10, 0), (-100, 3)])
def test_waits_until_the_newest_change_is_old(
    tree: Path, monkeypatch: pytest.MonkeyPatch, age: float, waited: float
) -> None:
    slept: list[float] = []
    newest = max(entry.status.st_ctime for entry in trees.walk(tree))
    monkeypatch.setattr(trees, "SETTLED_SECONDS", 3)
    monkeypatch.setattr("time.time", lambda: newest + age)
    monkeypatch.setattr("time.sleep", slept.append)
    trees.settle(tree)
    assert slept == [pytest.approx(waited, abs=0.1)]


def test_size_of_a_database_counts_pages_in_use(tmp_path: Path) -> None:
    assert database.size(tmp_path) == DatabaseSize(0, 0)
    sizes = []
    for value in (bytes(1 << 20), b""):
        with lmdb.open(str(tmp_path), max_dbs=2) as environment:
            table = environment.open_db(b"table")
            with environment.begin(write=True) as transaction:
                transaction.put(b"key", value, db=table)
        sizes.append(database.size(tmp_path))
    full, emptied = sizes
    assert full.used > 1 << 20 > 100 << 10 > emptied.used > 0
    assert emptied.length >= full.length > 1 << 20
    assert (emptied - full).used < 0


# Trees


def restored_copy(tree: Path) -> Path:
    shutil.copytree(tree, tree.parent / "copy", symlinks=True)
    return tree.parent / "copy"


def _replace_link(root: Path) -> None:
    status = (root / "link").lstat()
    (root / "link").unlink()
    (root / "link").symlink_to("b")
    os.utime(root / "link", ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _keep_times(path: Path, change: Callable[[], object]) -> None:
    status = path.stat()
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_equal_trees_have_no_differences(tree: Path) -> None:
    assert trees.differences(tree, restored_copy(tree)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: _keep_times(root / "a", lambda: (root / "a").write_bytes(b"alphA")), "content"),
        (lambda root: _keep_times(root / "a", lambda: (root / "a").write_bytes(b"alpha!")), "content"),
        (lambda root: _keep_times(root / "sub/deep", (root / "sub/deep/empty").unlink), "missing"),
        (lambda root: _keep_times(root / "sub/deep", (root / "sub/deep/new").touch), "not in the source"),
        (lambda root: (root / "sub").chmod(0o701), "mode"),
        (lambda root: root.chmod(0o701), "mode"),
        (lambda root: os.utime(root / "a", ns=(1, 1_234_567_891_234_567_890)), "mtime"),
        (lambda root: _keep_times(root, lambda: _replace_link(root)), "link target"),
        (lambda root: _keep_times(root, lambda: ((root / "a").unlink(), (root / "a").mkdir())), "kind"),
        pytest.param(
            lambda root: os.lchown(root / "link", 1, 1),
            "owner",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
        ),
    ],
)
def test_one_difference_is_found_and_named(tree: Path, change: Callable[[Path], object], said: str) -> None:
    copy = restored_copy(tree)
    change(copy)
    (found,) = trees.differences(tree, copy)
    assert found.startswith(said)


def test_emptied_and_removed_trees(tree: Path) -> None:
    (tree / "a").chmod(0o400)
    (tree / "sub").chmod(0o500)
    before = trees.allocated(tree)
    trees.empty(tree)
    assert trees.allocated(tree) < before
    assert [entry.status.st_size for entry in trees.walk(tree) if entry.is_file] == [0, 0, 0, 0]
    trees.remove(tree)
    assert not tree.exists()
    trees.remove(tree)


def test_hard_links_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(100_000))
    alone = trees.allocated(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    assert trees.allocated(tmp_path) == alone


# The report


def rows_of(workload: str, **walls: list[float]) -> list[Row]:
    rows = []
    for label, seconds in walls.items():
        program, _, option = label.partition("_")
        shown = f"{program} --{option}" if option else program
        runs = [Usage(wall, wall, 50 << 20, 40 << 20) for wall in seconds]
        rows.append(Row("small", workload, program, shown, runs))
    return rows


def test_ratios_compare_medians_with_the_default_runs_of_the_peers() -> None:
    rows = rows_of("restore", archiver=[2.0, 9.0, 2.0], restic=[8.0], restic_verify=[99.0], borg=[5.0, 6.0, 7.0])
    assert report.ratios(rows[0], rows) == {"restic": 4.0, "borg": 3.0, "faster": 3.0}
    assert report.ratios(rows[1], rows) == {}
    other = rows_of("verify", archiver=[1.0])
    assert report.ratios(other[0], rows + other) == {}


def test_the_limit_is_compared_with_everybody() -> None:
    rows = rows_of("first", archiver=[3.0], borg=[6.0], limit=[2.0])
    assert report.ratios(rows[0], rows) == {"borg": 2.0, "faster": 2.0, "limit": 1.5}
    assert report.ratios(rows[1], rows) == {"limit": 3.0}
    assert report.ratios(rows[2], rows) == {}


def test_a_run_that_never_ended_well_has_no_ratio() -> None:
    rows = rows_of("first", archiver=[], borg=[6.0])
    rows[0].problems.append("exit code 1: no")
    assert report.ratios(rows[0], rows) == {}
    text = report.table([], {}, rows, Path("/"))
    assert "FAILED" in text and "archiver: exit code 1: no" in text


def test_many_problems_are_cut_short() -> None:
    rows = rows_of("first", archiver=[1.0])
    rows[0].problems = [f"problem {number}" for number in range(9)]
    text = report.table([], {}, rows, Path("/"))
    assert "problem 4" in text and "problem 5" not in text and "and 4 more" in text


def test_reading_and_growth_are_shown_as_medians() -> None:
    rows = rows_of("changed", archiver=[1.0, 2.0, 4.0])
    rows[0].entries = 5000
    rows[0].bytes_read = [1 << 20, 3 << 20, 2 << 20]
    rows[0].growth = [DatabaseSize(1024, 0), DatabaseSize(-4096, 0), DatabaseSize(9216, 8192)]
    text = report.table([], {}, rows, Path("/"))
    (line,) = (line.split() for line in text.splitlines() if line.startswith("small"))
    assert line[-10:-6] == ["2500", "2.0", "+1", "+0"]


# The command


def test_the_command_prints_a_table_and_writes_json(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "programs", lambda: [Copier(), Absent()])
    work, document = tmp_path / "work", tmp_path / "result.json"
    arguments = ["--data", str(tree), "--generate", "5", "--repeat", "1", "--work", str(work), "--json", str(document)]
    assert command.main(arguments) == 0
    text = capsys.readouterr().out
    assert "absent not installed" in text and "archiver 1.0" in text and "tiny-5" in text
    found = json.loads(document.read_text())
    assert found["schema"] == 1 and found["programs"] == {"archiver": "1.0", "absent": None}
    assert {item["workload"] for item in found["items"]} == set(WORKLOADS)
    assert set(found["items"][0]["runs"][0]) == {"wall", "cpu", "rss", "anon"}
    assert sorted(path.name for path in (work / "archiver-bench").iterdir()) == ["data", "logs"]


def test_the_command_fails_when_a_restore_is_wrong(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "programs", lambda: [Careless()])
    options = ["--only", "restore", "--repeat", "1", "--work", str(tmp_path / "work")]
    assert command.main(["--data", str(tree), *options]) == 1


@pytest.mark.parametrize(
    "arguments",
    [["--data", "absent"], ["--repeat", "0"], ["--only", "nothing"], ["--data", ".", "--work", "inside"]],
)
def test_bad_arguments_are_usage_errors(tree: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
