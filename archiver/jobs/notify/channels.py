"""The ways to tell a person. Each has a ``name``, stable and without secrets: what was said is remembered by it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from archiver.errors import ArchiverError, UsageError
from archiver.jobs.notify.desktop import notify_desktop
from archiver.jobs.notify.message import Message
from archiver.jobs.notify.program import run_program
from archiver.jobs.notify.web import host_of, post_json

_SENDMAIL = ("/usr/sbin/sendmail", "/usr/lib/sendmail", "/usr/local/sbin/sendmail")
# A local user's name, or an address of the plain kind.
_ADDRESS = re.compile(r"[A-Za-z0-9_.+=#~/-]{1,64}(@[A-Za-z0-9.-]{1,255})?")


class Channel(Protocol):
    @property
    def name(self) -> str: ...

    def send(self, message: Message) -> None:
        """Raises ArchiverError."""


@dataclass(frozen=True, slots=True)
class Desktop:
    @property
    def name(self) -> str:
        return "desktop"

    def send(self, message: Message) -> None:
        notify_desktop(message)


@dataclass(frozen=True, slots=True)
class Mail:
    """Through the machine's sendmail, which knows from whom and how (msmtp and nullmailer have one too)."""

    to: tuple[str, ...]

    @property
    def name(self) -> str:
        return "mail " + ",".join(self.to)

    def send(self, message: Message) -> None:
        from email.message import EmailMessage
        from email.utils import formatdate

        program = _sendmail()
        mail = EmailMessage()
        mail["To"] = ", ".join(self.to)
        mail["Subject"] = message.subject
        mail["Date"] = formatdate(message.time, localtime=True)
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
        mail.set_content(message.body + "\n")
        run_program([program, "-oi", "-t"], "sendmail", mail.as_bytes())


@dataclass(frozen=True, slots=True)
class Webhook:
    """A POST of the message as JSON."""

    url: str

    @property
    def name(self) -> str:
        return f"webhook {host_of(self.url)} {_mark(self.url)}"

    def send(self, message: Message) -> None:
        post_json(self.url, message.as_json())


@dataclass(frozen=True, slots=True)
class Command:
    """A line of shell with the message as JSON on its standard input and as text in its environment."""

    line: str

    @property
    def name(self) -> str:
        return f"command {_mark(self.line)}"

    def send(self, message: Message) -> None:
        import json

        told = {
            "ARCHIVER_JOB": message.job,
            "ARCHIVER_EVENT": message.event,
            "ARCHIVER_SUBJECT": message.subject,
            "ARCHIVER_TEXT": message.body,
        }
        run_program(self.line, "the command", json.dumps(message.as_json()).encode(), told)


def check_address(text: str) -> str:
    """Raises UsageError for what is no mail address, and could be a header or an option of sendmail."""
    if _ADDRESS.fullmatch(text) is None or text.startswith("-"):
        raise UsageError(f"{text!r} is no mail address", hint="write for example me@example.org, or a local user")
    return text


def _mark(secret: str) -> str:
    """Tells two apart without showing either."""
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _sendmail() -> str:
    for path in _SENDMAIL:
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("sendmail")
    if found is None:
        raise ArchiverError("there is no sendmail", hint="apt install msmtp-mta, or another mail transport")
    return found
