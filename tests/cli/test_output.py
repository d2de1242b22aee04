"""How results reach stdout: in few pieces, in order with what is told, long documents as they come."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from archiver.browse import catalog, files
from archiver.browse.snapshot import Snapshot
from archiver.cli.main import _terminate as terminate
from archiver.cli.main import run
from archiver.cli.output import Output
from archiver.errors import ArchiverError, Interrupted, TargetAbsent
from archiver.store.store import Store
from tests.cli.command import ask, call

pytestmark = pytest.mark.in_memory

COUNT = 2000


class Counted(io.RawIOBase):
    """Where all the bytes go, with a count of the system calls that it would have taken."""

    def __init__(self) -> None:
        self.calls = 0
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.calls += 1
        self.data += bytes(data)  # type: ignore[call-overload]
        return len(data)  # type: ignore[arg-type]


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A store with a tree whose names fill several chunks."""
    (tmp_path / "wide").mkdir()
    for number in range(COUNT):
        (tmp_path / "wide" / f"{number:04d}-{'x' * 120}").write_bytes(b"")
    ask("init", tmp_path / "wide-store")
    ask("--store", tmp_path / "wide-store", "backup", f"{tmp_path}/wide", "--id", "tester", "--chunk-size", "64")
    return tmp_path / "wide-store"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_few_system_calls(wide: Path, options: tuple[str, ...]) -> None:
    raw = Counted()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8")
    with redirect_stdout(stream):
        code = run(["--store", str(wide), "ls", "latest", *options], bool(options))
    assert code == 0 and raw.data.count(b"-xx") == COUNT and raw.data.endswith(b"\n")  # nothing is left to be flushed
    assert raw.calls < COUNT // 10


def test_order_with_messages() -> None:
    """As in a file that gets both streams."""
    raw = Counted()
    streams = [io.TextIOWrapper(io.BufferedWriter(raw), "utf-8") for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        output = Output(as_json=False, quiet=False, verbose=False)
        output.line("first")
        output.message("second")
        output.line("third")
        output.message("fourth")
    assert raw.data == b"first\nsecond\nthird\nfourth\n"


def test_a_message_does_not_fail_for_what_nobody_reads() -> None:
    """What was printed before it is put out first; who does not take that ends no work. A long listing it does end."""

    class Closed(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            raise BrokenPipeError

    stream, heard = io.TextIOWrapper(io.BufferedWriter(Closed())), io.StringIO()
    output = Output(as_json=False, quiet=False, verbose=False)
    with redirect_stdout(stream), redirect_stderr(heard):
        output.line("a line")
        output.message("a message")
        output.summary("x" * 100_000)
        output.table(("column",), [("y" * 100_000,)])
        with pytest.raises(BrokenPipeError):
            output.line("z" * 100_000)
    assert heard.getvalue() == "a message\n"
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_long_documents_come_in_pieces(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the listing."""
    written: list[int] = []
    listing = files.listing

    def watched(view: Any, path: bytes, *, recursive: bool) -> Iterator[files.Found[Any]]:
        for found in listing(view, path, recursive=recursive):
            written.append(sys.stdout.buffer.tell())
            yield found

    monkeypatch.setattr(files, "listing", watched)
    assert len(ask("--store", wide, "ls", "latest", "--sizes")["items"]) == COUNT
    assert written[COUNT // 2] > COUNT // 2 * 100


def test_damage_in_the_middle_of_a_document(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "open_catalog", lambda *_: None)  # which knows it all
    with Store.open(wide) as store:
        snapshot = Snapshot(store, store.find("latest"))
        index = snapshot.index(snapshot.archives()[0].files[0])
        assert len(index) > 2
        Path(store.layout.chunk(index.digest(len(index) // 2).hex())).unlink()
    done = call("--store", wide, "ls", "-R", "latest", "--json")
    assert done.code == 20 and done.err == ""
    assert done.document.keys() == {"schema", "snapshot", "items", "error"}
    assert done.document["error"].keys() == {"code", "message", "hint"}
    assert 0 < len(done.document["items"]) < COUNT
    assert "is missing" in done.document["error"]["message"]


@pytest.mark.parametrize("error", [TargetAbsent("gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_errors_of_long_documents(
    store: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, count: int
) -> None:
    """Before the first item the document is about the error only."""
    listing = files.listing

    def failing(view: Any, path: bytes, *, recursive: bool) -> Iterator[files.Found[Any]]:
        found: Iterator[files.Found[Any]] = listing(view, path, recursive=recursive)
        for _ in range(count):
            yield next(found)
        raise error

    monkeypatch.setattr(files, "listing", failing)
    done = call("--store", store, "ls", "latest", "--sizes", "--json")
    told = error if isinstance(error, ArchiverError) else Interrupted("interrupted")
    assert done.code == told.exit_code
    assert done.document["error"] == told.as_json()
    assert len(done.document.get("items", [])) == count


def test_empty_long_document(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True, quiet=False, verbose=False).long_document({"schema": 1}, [])
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "items": []}


def test_no_handler_of_errors_takes_sigterm_for_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        try:
            terminate(signal.SIGTERM, None)
        except Exception:
            raise AssertionError("it would have gone on") from None
