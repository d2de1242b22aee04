"""What both ways of restoring share: stores that get something, snapshots that wait for their chunks, publishing.

A snapshot whose chunks did not all come is not published, and named; the others are. What stops the run leaves chunks
that the next run finds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from archiver.core.disk import explained
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError, Damaged, NoSpace, TargetAbsent
from archiver.store.chunks import check_present
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from archiver.tape.drive.interface import Drive
from archiver.tape.members import Loader, Member, SetCatalog
from archiver.tape.problem import Problem
from archiver.tape.reading import MediumFile
from archiver.tape.restore.arrival import Arrival, publish, receive
from archiver.tape.restore.chunks import Brought, Chunks
from archiver.tape.restore.routes import Routes
from formats.crypt import CryptConfig
from formats.tape.catalog import Digests

_ENDS_ALL = (NoSpace,)
_NAMED = 3  # damaged chunks in a message

Place = tuple[int, int]  # of a file: place of its medium in the set, number


@dataclass(slots=True)
class RestoreResult:
    """``restored``: names of the snapshots that came, as the media call them; ``present``: of those that were here by
    then. ``stopped``: why the run ended before its end. ``files``: of media, that were read; ``bytes_read`` from them.
    """

    restored: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    brought: Brought = field(default_factory=Brought)
    media: list[str] = field(default_factory=list)
    files: int = 0
    bytes_read: int = 0
    stopped: ArchiverError | None = None
    seconds: float = 0.0

    @property
    def errors(self) -> list[ArchiverError]:
        found = [problem.error for problem in self.problems]
        return found if self.stopped is None else [self.stopped, *found]

    def as_json(self) -> dict[str, Any]:
        return {
            "restored": self.restored,
            "present": self.present,
            "problems": [problem.as_json() for problem in self.problems],
            "new_chunks": self.brought.chunks,
            "new_bytes": self.brought.bytes,
            "present_chunks": self.brought.present,
            "media_read": self.media,
            "files_read": self.files,
            "bytes_read": self.bytes_read,
            "duration_s": round(self.seconds, 3),
        }


class Landing:
    """A store that gets something; nothing at all in a dry run."""

    def __init__(
        self, store: Store, crypt: CryptConfig | None, listener: Listener, opened: ExitStack, is_dry: bool
    ) -> None:
        self.store = store
        session = None
        if is_dry:
            self._place = opened.enter_context(tempfile.TemporaryDirectory(prefix="archiver-"))
        else:
            session = opened.enter_context(store.session())
            self._place = session.path
            with explained("write into", store.layout.base):  # a killed run may have published what is found there
                store.disk.sync_file_system(store.layout.base)
        self.chunks = Chunks(store, session, self._place, crypt, listener)
        opened.callback(self.chunks.close)
        self._count = 0

    def directory(self) -> str:
        """For one more snapshot that waits."""
        self._count += 1
        return os.path.join(self._place, f"tape-{self._count}")


@dataclass(slots=True)
class Waiting:
    landing: Landing
    arrival: Arrival
    waits_for: set[Place] = field(default_factory=set)
    nowhere: int = 0  # chunks that no catalog knows


class Receiving:
    """The stores are open for writing as long as this."""

    def __init__(
        self,
        catalog: SetCatalog,
        routes: Routes,
        media: Loader,
        crypt: CryptConfig | None,
        listener: Listener,
        result: RestoreResult,
        *,
        is_dry: bool = False,
    ) -> None:
        self._is_dry = is_dry
        self._catalog, self._routes, self._media = catalog, routes, media
        self._crypt, self._listener, self._result = crypt, listener, result
        self._members = {member.seq_nr: member for member in catalog.members}
        self._waiting: list[Waiting] = []
        self._wanted: dict[Place, list[tuple[Landing, Digests]]] = {}
        self._damaged: dict[bytes, str] = {}
        self._lost: dict[Place, ArchiverError] = {}  # files that could not be read
        self._cut: dict[Place, ArchiverError] = {}  # that were not written to their end
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._landings = {
                id(store): Landing(store, self._crypt, self._listener, opened, self._is_dry)
                for store in self._routes.all_stores()
            }
            self._began = next(iter(self._landings.values())).store.clock.steady()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for landing in self.landings:
            brought = landing.chunks.brought
            self._result.brought.chunks += brought.chunks
            self._result.brought.bytes += brought.bytes
            self._result.brought.present += brought.present
            self._result.seconds = landing.store.clock.steady() - self._began
        self._opened.close()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """What goes wrong inside ends the run, and is in the result; what was stored is kept."""
        try:
            yield
        except ArchiverError as error:
            for landing in self.landings:
                if isinstance(error, NoSpace):
                    landing.store.give_up_reserve()
                with suppress(ArchiverError):
                    landing.chunks.flush()
            self._result.stopped = error

    @property
    def landings(self) -> list[Landing]:
        return list(self._landings.values())

    def _landing(self, source: str) -> Landing | None:
        store = self._routes.store(source)
        return None if store is None else self._landings[id(store)]

    def _problem(self, name: str, error: ArchiverError) -> None:
        """Only this is not done."""
        if isinstance(error, _ENDS_ALL):
            raise error
        for landing in self.landings:
            check_present(landing.store.layout)
        self._result.problems.append(Problem(name, error))
        self._listener(Notice(f"{name} is not restored: {error}", "warning"))

    def _load(self, member: Member) -> Drive:
        drive = self._media.load(member)
        if member.label not in self._result.media:
            self._result.media.append(member.label)
        return drive

    def _missing(self, waiting: Waiting) -> Iterator[Digests]:
        """Per index, the chunks that the store does not have. Raises Damaged."""
        arrival = waiting.arrival
        for info, index in arrival.indexes():
            encrypted = info.crypt_mode == "encrypt"
            yield waiting.landing.chunks.missing(index, encrypted=encrypted, with_key=encrypted and arrival.with_key)

    def _receive(self, landing: Landing, file: MediumFile, name: str, targets: tuple[SnapshotRef, ...]) -> Arrival:
        directory = landing.directory()
        try:
            return receive(landing.store.disk, file, name, targets, directory, self._crypt)
        except BaseException:
            landing.store.disk.remove_tree(directory)
            raise

    def _count(self, file: MediumFile) -> None:
        self._result.files += 1
        self._result.bytes_read += file.bytes_read

    # -- publishing --------------------------------------------------------------------------------------------------

    def _publish_ready(self) -> None:
        for waiting in [each for each in self._waiting if not each.waits_for]:
            self._waiting.remove(waiting)
            self._publish(waiting)

    def _publish_rest(self) -> None:
        while self._waiting:
            self._publish(self._waiting.pop(0))

    def _publish(self, waiting: Waiting) -> None:
        arrival, landing = waiting.arrival, waiting.landing
        try:
            self._check_complete(waiting)
            landing.chunks.flush()
            published = [ref for ref in arrival.targets if publish(landing.store, arrival, ref, self._routes.owner)]
        except ArchiverError as error:
            self._problem(arrival.name, error)
        else:
            done = self._result.restored if published else self._result.present
            done.append(arrival.name)
            self._listener(Notice(f"{arrival.name} is restored"))
        finally:
            landing.store.disk.remove_tree(arrival.directory)

    def _check_complete(self, waiting: Waiting) -> None:
        """Raises what kept a chunk away: an absent medium, a damaged file, its own damage."""
        chunks, count, name = waiting.landing.chunks, 0, waiting.arrival.name
        reasons: list[str] = []
        for digests in self._missing(waiting):
            count += len(digests)
            reasons += [
                f"chunk {digest.tobytes().hex()}: {self._damaged[digest.tobytes()]}"
                for digest in digests
                if len(reasons) < _NAMED and digest.tobytes() in self._damaged
            ]
        if count:
            why = "; ".join(reasons[:_NAMED])
            absent = next((error for error in self._lost.values() if isinstance(error, TargetAbsent)), None)
            if absent is not None and not reasons:
                raise type(absent)(f"{count} chunks of {name} are missing: {absent}", hint=absent.hint)
            why = why or "; ".join(list(dict.fromkeys(map(str, [*self._lost.values(), *self._cut.values()])))[:_NAMED])
            why = why or "no catalog says where they are" + (
                "" if all(self._catalog.log(member) for member in self._catalog.members) else "; see: tape catalog"
            )
            raise Damaged(f"{count} chunks of {name} are missing: {why}")
        if waiting.arrival.with_key and chunks.unproven:
            for info, index in waiting.arrival.indexes():
                if info.crypt_mode == "encrypt":
                    for digest in map(bytes, index.digests):
                        if digest in chunks.unproven:
                            raise Damaged(f"chunk {digest.hex()} of {name} is damaged: its key does not open it")
