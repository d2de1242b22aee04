"""Pools: named sets of media with rules for starting new sets and for using media again (spec tape.md 7.1).

``pools.json``: ``{"schema": 1, "pools": [{"name", "allocation", "retention", "template", "encrypt", "comment",
"require_encryption"}]}``. ``require_encryption`` is ours: only encrypted snapshots are written into such a pool.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from archiver.core.calendar_events import CalendarEvent, TimeSpan
from archiver.errors import NotFound, UsageError
from archiver.tape.state.place import SCHEMA, TapePlace
from formats.crypt import format_fingerprint, parse_fingerprint
from formats.errors import FormatError
from formats.naming import check_media_name
from formats.tape.content import encode_uuid

_FILE = "pools.json"
_HINT = "mend it by hand, or remove it and make the pools again: archiver tape pool create"
_TEMPLATE = (2, 64)  # characters
_LARGEST_COMMENT = 128
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and what UTF-8 has not

Allocation = str | CalendarEvent  # "continue", "always", or when a new set begins
Retention = str | TimeSpan  # "overwrite", "keep", or how long a set is kept


@dataclass(frozen=True, slots=True)
class Pool:
    """``encrypt``: fingerprint of the key that the drive's hardware encrypts with."""

    name: str
    allocation: Allocation = "continue"
    retention: Retention = "keep"
    template: str = "%c"
    encrypt: bytes | None = None
    comment: str | None = None
    require_encryption: bool = False

    @staticmethod
    def make(
        name: str,
        *,
        allocation: str | None = None,
        retention: str | None = None,
        template: str | None = None,
        encrypt: str | None = None,
        comment: str | None = None,
        require_encryption: bool = False,
    ) -> Pool:
        """From texts as a user writes them. Raises UsageError."""
        try:
            check_media_name("name of a pool", name)
        except FormatError as error:
            raise UsageError(str(error)) from error
        return Pool(
            name,
            parse_allocation(allocation or "continue"),
            parse_retention(retention or "keep"),
            _checked_template(template or "%c"),
            None if not encrypt else _fingerprint(encrypt),
            _checked_comment(comment),
            require_encryption,
        )

    def set_name(self, uuid: bytes, start: int | None) -> str:
        """What a media set of this pool is called: the template in local time (spec tape.md 7.6)."""
        if start is None:
            return encode_uuid(uuid)
        text = self.template.replace("%id%", encode_uuid(uuid))
        try:
            return time.strftime(text, time.localtime(start))
        except (ValueError, OverflowError, OSError):
            return encode_uuid(uuid)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "allocation": allocation_text(self.allocation),
            "retention": retention_text(self.retention),
            "template": self.template,
            "encrypt": None if self.encrypt is None else format_fingerprint(self.encrypt),
            "comment": self.comment,
            "require_encryption": self.require_encryption,
        }


def parse_allocation(text: str) -> Allocation:
    """Raises UsageError."""
    if text in ("continue", "always"):
        return text
    try:
        return CalendarEvent.parse(text)
    except UsageError as error:
        raise UsageError(
            f"allocation: {error}", hint="write continue, always, or when a new set begins (daily, sat 18:15)"
        ) from error


def parse_retention(text: str) -> Retention:
    """Raises UsageError."""
    if text in ("overwrite", "keep"):
        return text
    try:
        return TimeSpan.parse(text)
    except UsageError as error:
        raise UsageError(
            f"retention: {error}", hint="write overwrite, keep, or how long a set is kept (30d, 6M)"
        ) from error


def allocation_text(allocation: Allocation) -> str:
    return allocation if isinstance(allocation, str) else allocation.text


def retention_text(retention: Retention) -> str:
    return retention if isinstance(retention, str) else retention.text


def _checked_template(text: str) -> str:
    low, high = _TEMPLATE
    if not low <= len(text) <= high or _UNFIT.search(text):
        raise UsageError(f"the template of a pool has {low} to {high} printable characters, not {text[:80]!a}")
    return text


def _checked_comment(text: str | None) -> str | None:
    if not text:
        return None
    if len(text) > _LARGEST_COMMENT or _UNFIT.search(text):
        raise UsageError(f"a comment is one line of at most {_LARGEST_COMMENT} printable characters")
    return text


def _fingerprint(text: str) -> bytes:
    try:
        return parse_fingerprint(text)
    except FormatError as error:
        raise UsageError(f"--encrypt: {error}", hint="see the fingerprints: archiver tape key list") from error


def _check_types(members: Any) -> None:
    for name, value in members.items():
        kind = bool if name == "require_encryption" else str
        if value is not None and type(value) is not kind:
            raise TypeError(f"{name} has another type")


class Pools:
    """The pools of a place."""

    def __init__(self, place: TapePlace) -> None:
        self._place = place

    def all(self) -> dict[str, Pool]:
        """By name, sorted. Raises Damaged."""
        found: dict[str, Pool] = {}
        entries = self._place.read_document(_FILE, _HINT).get("pools", [])
        if not isinstance(entries, list):
            raise self._place.damaged(_FILE, "pools is no list", _HINT)
        for members in entries:
            try:
                _check_types(members)
                known = {name: members[name] for name in Pool.__slots__ if name in members}
                pool = Pool.make(**known)
            except (UsageError, FormatError, TypeError, KeyError, AttributeError) as error:
                raise self._place.damaged(_FILE, f"a pool in it is wrong: {str(error)[:200]}", _HINT) from error
            found[pool.name] = pool
        return dict(sorted(found.items()))

    def get(self, name: str) -> Pool:
        """Raises NotFound."""
        found = self.all().get(name)
        if found is None:
            raise NotFound(f"there is no pool {name}", hint="see: archiver tape pool list")
        return found

    def create(self, pool: Pool) -> None:
        def add(pools: dict[str, Pool]) -> None:
            if pool.name in pools:
                raise UsageError(f"there is a pool {pool.name} already", hint="see: archiver tape pool update")
            pools[pool.name] = pool

        self._change(add)

    def update(self, name: str, change: Callable[[Pool], Pool]) -> Pool:
        """Raises NotFound."""

        def put(pools: dict[str, Pool]) -> None:
            if name not in pools:
                raise NotFound(f"there is no pool {name}", hint="see: archiver tape pool list")
            pools[name] = change(pools[name])

        return self._change(put)[name]

    def remove(self, name: str) -> None:
        """Its media stay what they are. Raises NotFound."""

        def drop(pools: dict[str, Pool]) -> None:
            if pools.pop(name, None) is None:
                raise NotFound(f"there is no pool {name}", hint="see: archiver tape pool list")

        self._change(drop)

    def _change(self, work: Callable[[dict[str, Pool]], None]) -> dict[str, Pool]:
        with self._place.lock("config", "the tape configuration"):
            pools = self.all()
            work(pools)
            documents = [pools[name].as_json() for name in sorted(pools)]
            self._place.write_json(_FILE, {"schema": SCHEMA, "pools": documents})
        return pools
