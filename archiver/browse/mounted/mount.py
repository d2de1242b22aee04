"""Mounting a view until it is unmounted, from here or from outside."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from archiver.browse.mounted.view import View
from archiver.core import linux
from archiver.core.events import Notice
from archiver.core.fuse.connection import Connection
from archiver.core.fuse.server import Server
from archiver.errors import UsageError

_THREADS = 4
_LOOK_EVERY = 15.0  # seconds, for snapshots that nobody uses any more
_PATIENCE = 1.0  # seconds for answers that are being given when the end comes


class Mounted:
    """A view that is being served."""

    def __init__(self, view: View, ended: threading.Event) -> None:
        self._view = view
        self._ended = ended

    def wait(self) -> None:
        """Until somebody unmounts it; a signal's exception comes through."""
        while not self._ended.wait(_LOOK_EVERY):
            self._view.snapshots.expire()


@contextmanager
def mounted(view: View, mountpoint: str, *, name: str, allow_other: bool) -> Iterator[Mounted]:
    """Serve ``view`` at the directory ``mountpoint`` while inside; it is unmounted at the end in any case.

    With ``allow_other`` everybody may look, as far as the permissions and ACLs in the archives let him; otherwise only
    this user, who may read everything. Raises UsageError, ArchiverError.
    """
    _check_place(mountpoint, view.store.layout.base)
    linux.return_freed_memory()
    options = ["ro", "nosuid", "nodev", f"fsname={_escaped(name)}", "subtype=archiver"]
    if allow_other:
        options += ["allow_other", "default_permissions"]
    connection = Connection.open(mountpoint, options)
    ended = threading.Event()
    server = Server(connection.fd, view, _bug_listener(view), check_acls=allow_other)

    def serve() -> None:
        try:
            server.serve()
        finally:
            ended.set()

    threads: list[threading.Thread] = []
    try:
        for number in range(_THREADS):
            thread = threading.Thread(target=serve, name=f"mount-{number}", daemon=True)
            thread.start()
            threads.append(thread)
        yield Mounted(view, ended)
    finally:
        if not ended.is_set():
            connection.unmount()
        steady = view.store.clock.steady
        deadline = steady() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, deadline - steady()))
        if not any(thread.is_alive() for thread in threads):
            connection.close()
        # Otherwise somebody still has a file open: it can be read until this process ends, which closes the connection.
        view.close()


def _check_place(mountpoint: str, base: str) -> None:
    """A store that lies below its own mount could not be read any more: whoever tried would wait for ever."""
    place, store = os.path.realpath(mountpoint), os.path.realpath(base)
    if os.path.commonpath([place, store]) in (place, store):
        raise UsageError(f"{mountpoint} and the store lie in one another", hint="mount at another place")


def _bug_listener(view: View) -> Callable[[Exception], None]:
    def tell(error: Exception) -> None:
        text = f"a request could not be answered: {type(error).__name__}: {error}"
        view.store.listener(Notice(f"{text} (this is a bug of archiver's, please report it)", "warning"))

    return tell


def _escaped(name: str) -> str:
    """For a list of mount options."""
    return name.replace("\\", "\\\\").replace(",", "\\,")
