"""Requests to a webhook and a heartbeat's URL, which may hold a secret and is never shown: its host is."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from archiver import __version__
from archiver.errors import ArchiverError, UsageError

if TYPE_CHECKING:
    from urllib.request import OpenerDirector, Request

_SECONDS_SILENT = 20.0
_SECONDS_IN_ALL = 40.0
_SEE_OTHER = 303


def check_url(text: str) -> str:
    """Raises UsageError for what cannot be asked: anything but http and https, and names and passwords in it."""
    try:
        parts = urlsplit(text)
        bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        bad = True
    if bad or not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError("the URL is none that can be asked", hint="write for example https://example.org/hook")
    if "@" in parts.netloc:
        raise UsageError("the URL has a user name in it", hint="use a command with curl, which can send it")
    return text


def host_of(url: str) -> str:
    return urlsplit(url).hostname or "?"


def post_json(url: str, document: dict[str, Any]) -> None:
    """Raises ArchiverError."""
    _ask(url, json.dumps(document).encode())


def ping(url: str) -> None:
    """A plain GET. Raises ArchiverError."""
    _ask(url, None)


def _ask(url: str, data: bytes | None) -> None:
    """A server that drips its answer for hours must not hold a nightly run: it is left alone after a while."""
    failed: list[str] = []
    done = threading.Event()

    def ask() -> None:
        try:
            _request(url, data)
        except Exception as error:  # whatever a server has urllib raise
            failed.append(_reason(error))
        finally:
            done.set()

    threading.Thread(target=ask, daemon=True).start()
    if not done.wait(_SECONDS_IN_ALL):
        raise ArchiverError(f"{host_of(url)} does not answer")
    if failed:
        raise ArchiverError(f"{host_of(url)}: {failed[0]}")


def _request(url: str, data: bytes | None) -> None:
    from urllib.request import Request

    headers = {"User-Agent": f"archiver/{__version__}"}
    if data is not None:
        headers["Content-Type"] = "application/json"
    with _opener().open(Request(url, data, headers), timeout=_SECONDS_SILENT) as answer:
        answer.read(1 << 16)


def _opener() -> OpenerDirector:
    """urllib's own would also follow to local files and FTP. And where a POST is answered with another address it
    would ask there without the message, which counted as told then: only See Other says that it was taken."""
    from urllib import request

    class Redirect(request.HTTPRedirectHandler):
        def redirect_request(
            self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
        ) -> Request | None:
            if req.get_method() == "POST" and code != _SEE_OTHER:
                return None
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.UnknownHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        Redirect,
        request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _reason(error: Exception) -> str:
    from urllib.error import HTTPError, URLError

    if isinstance(error, HTTPError):
        return f"answered {error.code}"
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(cause, TimeoutError):
        return "does not answer"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return f"no usable answer ({type(cause).__name__})"
