"""What the machine reports: a JSON document a line, which the one outside prints."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Failed(AssertionError):
    """Something is not as it has to be; one sentence."""


@contextmanager
def check(name: str) -> Iterator[None]:
    """One of the things to be proven. The others are tried, too, when it fails."""
    began = time.monotonic()
    problem = None
    try:
        yield
    except Failed as error:
        problem = str(error)
    except Exception:
        problem = traceback.format_exc()
    tell(check=name, problem=problem, seconds=round(time.monotonic() - began, 1))


def fact(name: str, value: object) -> None:
    """Something that was seen, right or wrong as it may be."""
    tell(fact=name, value=value)


def tell(**members: Any) -> None:
    print(json.dumps({"schema": 1, **members}), flush=True)


def expect(condition: object, sentence: str) -> None:
    if not condition:
        raise Failed(sentence)


def same(found: object, wanted: object, what: str) -> None:
    expect(found == wanted, f"{what}: {_short(found)} instead of {_short(wanted)}")


def _short(value: object) -> str:
    return repr(value)[:300]


@contextmanager
def refused(kind: type[Exception], what: str) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise Failed(f"{what} is not refused with {kind.__name__}")
