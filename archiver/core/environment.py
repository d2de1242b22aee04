"""What other programs that we start are told of our environment."""

from __future__ import annotations

from collections.abc import Mapping

_SECRET = ("ARCHIVER_PASSWORD", "ARCHIVER_NEW_PASSWORD", "ARCHIVER_MASTER_PASSWORD")


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """All but passphrases, and the ways to them."""
    return {name: text for name, text in environment.items() if not name.startswith(_SECRET)}
