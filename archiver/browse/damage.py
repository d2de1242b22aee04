"""Which files of a tree a damaged range of its streams belongs to."""

from __future__ import annotations

from archiver.browse.snapshot import Tree
from archiver.errors import ArchiverError
from formats.errors import FormatError
from formats.pxar.constants import HEADER_SIZE
from formats.pxar.decoder import LEAVE

_FILES_AT_MOST = 1000
Range = tuple[int, int]


def damaged_files(tree: Tree, content: list[Range]) -> list[str]:
    """Paths of files with contents in one of the ``content`` ranges [start, end) (sorted, of the content stream).

    Damage to names and attributes hides the rest: the list then ends with words that say from where on.
    """
    found: list[str] = []
    names: list[bytes] = []  # the path of the entry that was read last
    position = 0
    try:
        for event in tree.decoder():
            if event is LEAVE:
                continue
            del names[max(event.depth - 1, 0) :]
            names.append(event.name)
            if event.kind != "file":
                continue
            start, end = event.content_offset, event.content_offset + event.size
            if tree.split:
                start -= HEADER_SIZE  # its header is needed too
            while position < len(content) and content[position][1] <= start:
                position += 1
            if position < len(content) and content[position][0] < end:
                found.append(_path(names))
                if len(found) >= _FILES_AT_MOST:
                    return [*found, "(and more)"]
    except (FormatError, ArchiverError):
        found.append(f"(everything after {_path(names)})")
    return found


def _path(names: list[bytes]) -> str:
    return "/" + b"/".join(names).decode("utf-8", "surrogateescape")
