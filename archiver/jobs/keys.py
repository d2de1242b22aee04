"""The key of a job, unlocked once in a run and without anybody who could be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from archiver.errors import KeyProblem
from archiver.jobs.profile import Key
from archiver.keys.places import default_keyfile
from archiver.keys.ring import PASSWORD, UnlockedKey, read_key_file, unlock, wrapped_for_backup

_WAYS = ("", "_FD", "_FILE", "_COMMAND")


class JobKey:
    """Opens the key file when it is first asked for; what went wrong then goes wrong each time."""

    def __init__(self, key: Key, environment: Mapping[str, str], prompt: Callable[[str], bytes | None]) -> None:
        self._key, self._environment, self._prompt = key, environment, prompt
        self._unlocked: UnlockedKey | None = None
        self._problem: KeyProblem | None = None
        self._tried = False

    @property
    def path(self) -> str | None:
        """The key file, None where nothing is encrypted or signed."""
        if self._key.crypt == "none":
            return None
        return self._key.file or self._environment.get("ARCHIVER_KEYFILE") or default_keyfile(self._environment)

    @property
    def wanted_by(self) -> str | None:
        """What in the profile says that there has to be a key: without one nothing is saved, least of all readable."""
        key = self._key
        if key.crypt == "none":
            return None
        if key.crypt is not None:
            return f'the profile says crypt = "{key.crypt}"'
        if key.passphrase_file is not None or key.passphrase_command is not None:
            return "the profile names a passphrase"
        return "the profile names a master key" if key.master_public is not None else None

    def unlocked(self) -> UnlockedKey | None:
        """Raises KeyProblem, also where the profile wants a key and there is none."""
        if not self._tried:
            self._tried = True
            try:
                self._unlocked = self._unlock()
            except KeyProblem as error:
                self._problem = error
        if self._problem is not None:
            raise self._problem
        return self._unlocked

    def _unlock(self) -> UnlockedKey | None:
        path = self.path
        if path is None:
            if self.wanted_by is not None:
                raise KeyProblem(
                    f"{self.wanted_by}, and there is no key", hint="name its file, or: archiver key create"
                )
            return None
        return unlock(read_key_file(path), path, self._passphrases(), self._prompt)

    def _passphrases(self) -> Mapping[str, str]:
        """The environment; what the profile names takes the place of all that it has."""
        chosen = {"_FILE": self._key.passphrase_file, "_COMMAND": self._key.passphrase_command}
        if not any(chosen.values()):
            return self._environment
        kept = {name: text for name, text in self._environment.items() if name not in {PASSWORD + way for way in _WAYS}}
        return kept | {PASSWORD + way: text for way, text in chosen.items() if text is not None}

    def wrapped(self) -> bytes | None:
        """The key for the owner of the master key."""
        return wrapped_for_backup(self.unlocked(), self._key.master_public, self._environment)
