"""A database that was not closed cleanly is looked at before it is used; lack of resources is not taken for damage."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from archiver.store.database import inspection
from archiver.store.store import Store
from tests.random_trees import build_plain
from tests.stores import ROOT, Heard, save


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store whose database was not closed cleanly."""
    Store.create(tmp_path / "store")
    build_plain(tmp_path / "source", 1, files=10, max_size=10_000)
    save(tmp_path / "store", tmp_path / "source")
    (tmp_path / "store/.archiver/db" / inspection.STAMP).unlink()
    return tmp_path / "store"


def test_little_address_space(path: Path) -> None:
    script = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from archiver.store.store import Store
with Store.open({str(path)!r}, listener=lambda event: sys.exit(str(event))) as store:
    assert len(store.database.stamps()) == 1
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_process_to_be_had(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object, **options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    data = path / ".archiver/db" / inspection.DATA
    before = data.read_bytes()
    heard = Heard()
    with monkeypatch.context() as patch, Store.open(path, listener=heard) as store:
        patch.setattr(subprocess, "run", none)
        assert store.database is None
    assert len(heard.notices) == 1 and "temporarily unavailable" in heard.notices[0]
    assert data.read_bytes() == before
