"""What every command is told: the store, the key, how to print. Global options work before and after the command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from archiver.cli.output import Output
from archiver.errors import KeyProblem, UsageError

if TYPE_CHECKING:
    from archiver.browse.snapshot import Snapshot
    from archiver.keys.ring import UnlockedKey
    from archiver.store.layout import SnapshotRef
    from archiver.store.store import Store
    from formats.crypt import CryptConfig

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--store", metavar="DIR", help="The store. Default: ARCHIVER_STORE, else one in your data directory."),
    click.option("--ns", metavar="NAMESPACE", help="Namespace in the store, for example a/b."),
    click.option("--keyfile", metavar="FILE", help="Encryption key. Default: ARCHIVER_KEYFILE, else your own key."),
    click.option("--read-only", is_flag=True, help="Write nothing into the store."),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="Only errors."),
    click.option("-v", "--verbose", is_flag=True, help="More about what is done."),
)
_NAMES = ("store", "ns", "keyfile", "read_only", "as_json", "quiet", "verbose")


@dataclass(slots=True)
class Context:
    """The global options of a run, from both places."""

    store: str | None = None
    ns: str | None = None
    keyfile: str | None = None
    read_only: bool = False
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    _key: CryptConfig | None = None
    no_key: KeyProblem | None = None  # why it cannot be had

    @property
    def output(self) -> Output:
        return Output(as_json=self.as_json, quiet=self.quiet, verbose=self.verbose)

    @property
    def namespace(self) -> str:
        """``--ns``; the empty string for the root."""
        from formats.errors import FormatError
        from formats.naming import check_namespace

        namespace = (self.ns or "").strip("/")
        try:
            check_namespace(namespace)
        except FormatError as error:
            raise UsageError(f"--ns {namespace!r} is no namespace: {error}", hint="write for example a/b") from error
        return namespace

    def store_path(self) -> str:
        """``--store``, ``ARCHIVER_STORE``, or the default place."""
        chosen = self.store or os.environ.get("ARCHIVER_STORE")
        return chosen or default_store()

    def uses_default_store(self) -> bool:
        return not (self.store or os.environ.get("ARCHIVER_STORE"))

    def open_store(self, output: Output) -> Store:
        from archiver.store.store import Store

        return Store.open(self.store_path(), read_only=self.read_only, listener=output.hear)

    def open_snapshot(
        self, store: Store, text: str, *, allow_unsigned: bool = False, with_key: bool = True
    ) -> Snapshot:
        """The snapshot a user names; nobody removes it before the store is closed.

        A key that was not asked for is not needed where nothing is protected: it is not loaded then, but it counts as
        one in use. ``with_key`` False: no key is.
        """
        ref = store.find(text, self.namespace)
        store.hold(ref)
        return self.opened(store, ref, allow_unsigned=allow_unsigned, with_key=with_key)

    def opened(
        self, store: Store, ref: SnapshotRef, *, allow_unsigned: bool = False, with_key: bool = True
    ) -> Snapshot:
        """The same for one that is there; it may be removed meanwhile. The key is loaded once."""
        from archiver.browse.snapshot import Snapshot

        snapshot = Snapshot(store, ref, allow_unsigned=allow_unsigned)
        snapshot.key_in_use = self.key_path() is not None
        if with_key and (self.keyfile is not None or snapshot.made_with_key):
            crypt = self._loaded()
            try:
                if crypt is not None:
                    snapshot.unlock(crypt)
            except KeyProblem:
                if self.keyfile is not None or not allow_unsigned:
                    raise
        return snapshot

    def _loaded(self) -> CryptConfig | None:
        """The key. Nobody is asked for its passphrase twice."""
        if self.no_key is not None:
            raise self.no_key
        if self._key is None:
            try:
                self._key = self.key()
            except KeyProblem as error:
                self.no_key = error
                raise
        return self._key

    def chosen_keyfile(self) -> str | None:
        """``--keyfile`` or ``ARCHIVER_KEYFILE``."""
        return self.keyfile or os.environ.get("ARCHIVER_KEYFILE") or None

    def key_path(self) -> str | None:
        """The key file that was chosen, or the user's own one; None when there is none."""
        from archiver.keys.places import default_keyfile

        return self.chosen_keyfile() or default_keyfile(os.environ)

    def key(self) -> CryptConfig | None:
        """The key in that file; None when there is none."""
        unlocked = self.unlocked()
        return unlocked.crypt if unlocked is not None else None

    def unlocked(self) -> UnlockedKey | None:
        """The same with its key file."""
        path = self.key_path()
        if path is None:
            return None
        from archiver.keys.ring import read_key_file, unlock

        return unlock(read_key_file(path), path, os.environ, prompt)


def default_store() -> str:
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "archiver", "store")


def prompt(question: str) -> bytes | None:
    """Ask for a passphrase; None when there is nobody to ask."""
    if not sys.stdin.isatty():
        return None
    import getpass

    try:
        return os.fsencode(getpass.getpass(question))
    except EOFError:  # Ctrl-D
        return None


def allow_unsigned_option(function: F) -> F:
    """For commands that hand out contents."""
    return click.option(
        "--allow-unsigned",
        is_flag=True,
        help="Take what no signature proves: a signed snapshot without its key, or an unsigned one in a group that has"
        " signed ones.",
    )(function)


def global_options(function: F) -> F:
    """Add the global options to a command; a command that takes ``context`` gets them merged."""

    @wraps(function)
    @click.pass_context
    def with_context(ctx: click.Context, /, **arguments: Any) -> Any:
        context = ctx.find_object(Context)
        if context is None:
            context = Context()
        ctx.obj = context
        for name in _NAMES:
            value = arguments.pop(name)
            if value == "" and name in ("store", "keyfile"):  # most likely a variable of a script that is not set
                raise UsageError(f"--{name} is empty")
            if value is not None and value is not False:
                setattr(context, name, value)
        if "context" in function.__annotations__:
            arguments["context"] = context
        return function(**arguments)

    result: Any = with_context
    for option in reversed(_OPTIONS):
        result = option(result)
    return result  # type: ignore[no-any-return]
