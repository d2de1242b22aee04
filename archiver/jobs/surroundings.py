"""What a run of a job meets outside of its profile; tests hand in their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from archiver.core.clock import Clock
from archiver.core.events import Listener, ignore
from archiver.jobs.power import SUPPLIES, is_metered


def nobody(question: str) -> bytes | None:
    """Nobody is there to type a passphrase."""
    return None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """``supplies``: the kernel's directory of power supplies."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    clock: Clock = field(default_factory=Clock)
    listener: Listener = ignore
    prompt: Callable[[str], bytes | None] = nobody
    supplies: str = SUPPLIES
    metered: Callable[[], bool] = is_metered
    keep_awake: bool = True
