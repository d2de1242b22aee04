"""Where a user's keys are."""

from __future__ import annotations

import os
from collections.abc import Mapping

KEY_NAME = "encryption-key.json"
PUBLIC_NAME = "master-public.pem"


def configuration(environment: Mapping[str, str], name: str) -> str:
    """The path of ``name`` in the user's configuration directory."""
    base = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "archiver", name)


def default_keyfile(environment: Mapping[str, str]) -> str | None:
    """The key in the user's configuration directory, when there is one; also one that cannot be read, so that nothing
    is saved without encryption because of that."""
    path = configuration(environment, KEY_NAME)
    return path if os.path.lexists(path) else None


def default_public(environment: Mapping[str, str]) -> str:
    """Where the public master key is that backups use, if there is one."""
    return configuration(environment, PUBLIC_NAME)
