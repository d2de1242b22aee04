"""The command line as the tests call it: inside the test process, or as a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.cli.main import run

ROOT = Path(__file__).parent.parent.parent
BUG = 70

Argument = str | Path


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        found = json.loads(self.raw)
        assert isinstance(found, dict)
        assert found["schema"] == 1
        return found

    @property
    def error(self) -> dict[str, Any]:
        """The error that the document is about; it has exactly the documented keys."""
        document = self.document
        assert document.keys() == {"schema", "error"}
        error: dict[str, Any] = document["error"]
        assert error.keys() == {"code", "message", "hint"}
        assert error["message"] and isinstance(error["code"], str)
        return error


def call(*arguments: Argument) -> Done:
    """Run the program in this process. It is never a bug that ends it."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    texts = [os.fspath(argument) for argument in arguments]
    with redirect_stdout(out), redirect_stderr(err):
        code = run(texts, "--json" in texts)
        out.flush()
        err.flush()
    done = Done(code, out.buffer.getvalue(), err.buffer.getvalue().decode())
    assert code != BUG, done.err
    assert "Traceback" not in done.err
    return done


def ask(*arguments: Argument) -> dict[str, Any]:
    """The document of a command that ends well."""
    done = call(*arguments, "--json")
    assert done.code == 0, done.out + done.err
    return done.document


def start(
    *arguments: Argument | bytes, program: Sequence[str] = ("-m", "archiver"), **options: Any
) -> subprocess.Popen[bytes]:
    """Run the program as a process of its own; ``options`` are those of Popen."""
    usual: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": ROOT}
    usual |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running: subprocess.Popen[bytes] = subprocess.Popen([sys.executable, *program, *arguments], **(usual | options))
    return running


def process(*arguments: Argument | bytes, **options: Any) -> Done:
    """Run the program as a process of its own to its end."""
    with start(*arguments, **options) as running:
        out, err = running.communicate()
    done = Done(running.returncode, out or b"", (err or b"").decode("utf-8", "surrogateescape"))
    assert done.code != BUG, done.err
    assert "Traceback" not in done.err
    return done
