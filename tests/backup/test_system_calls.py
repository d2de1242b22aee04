"""What a run asks of the kernel when nothing, or one file, has changed (strace)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.random_trees import build_plain, noise
from tests.stores import ROOT, make_store, save

FILES = 3000
MOST_CALLS = 5  # an entry
PATH_OF_DESCRIPTOR = re.compile(r"\d<(/[^>]*)>")

_SAVE = """
import sys
from pathlib import Path
from tests.stores import save
print(save(Path(sys.argv[1]), Path(sys.argv[2]), mode="metadata").result.files.bytes_read)
"""


@pytest.fixture(scope="module", autouse=True)
def tracing() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-qq", "-f", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not trace others")


def traced_run(store: Path, source: Path, log: Path) -> list[str]:
    """The calls of a metadata run in a process of its own, descriptors with their paths."""
    tracer = ["strace", "-f", "-qq", "-y", "-o", str(log)]
    arguments = [sys.executable, "-c", _SAVE, str(store), str(source)]
    done = subprocess.run([*tracer, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line for line in log.read_text().splitlines() if "resumed>" not in line and "(" in line]


def opened_files(calls: list[str], source: Path) -> set[Path]:
    """Regular files of the source that had a descriptor at any time, opened or read."""
    paths = {Path(path) for line in calls for path in PATH_OF_DESCRIPTOR.findall(line)}
    return {path for path in paths if path.is_relative_to(source) and path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 1, files=FILES, max_size=3000)
    return tmp_path / "source"


def test_nothing_changed(source: Path, tmp_path: Path) -> None:
    """No file is opened, and a run costs few calls an entry beyond those of a run with one entry."""
    small = tmp_path / "small"
    small.mkdir()
    (small / "file").write_bytes(b"x")
    calls = {}
    for name, tree in (("small", small), ("source", source)):
        store = make_store(tmp_path / f"store-{name}")
        save(store, tree, mode="metadata")
        calls[name] = traced_run(store, tree, tmp_path / f"log-{name}")
        assert opened_files(calls[name], tree) == set()
    entries = sum(1 for _ in source.rglob("*"))
    assert entries >= FILES
    assert 0 < len(calls["source"]) - len(calls["small"]) <= MOST_CALLS * entries


def test_one_file_changed(source: Path, tmp_path: Path) -> None:
    """That one is opened, and those beside it whose chunks are not worth keeping for them."""
    store = make_store(tmp_path / "store")
    save(store, source, mode="metadata")
    changed = max(source.rglob("file-*"), key=lambda path: path.stat().st_size)
    changed.write_bytes(noise(2, changed.stat().st_size))
    opened = opened_files(traced_run(store, source, tmp_path / "log"), source)
    assert changed in opened and len(opened) < FILES / 20
