"""Which files of a tree a damaged range of its streams belongs to."""

from __future__ import annotations

from archiver.browse.snapshot import Tree
from archiver.errors import ArchiverError
from formats.errors import FormatError
from formats.pxar.decoder import LEAVE

_FILES_AT_MOST = 1000
Range = tuple[int, int]


def damaged_files(tree: Tree, content: list[Range]) -> list[str]:
    """Paths of files with contents in one of the ``content`` ranges [start, end) (sorted, of the content stream).

    Damage to names and attributes hides the rest: the list then ends with words that say from where on.
    """
    found: list[str] = []
    path: list[bytes] = []
    last = b"/"
    position = 0
    try:
        for event in tree.decoder():
            if event is LEAVE:
                path.pop()
                continue
            last = b"/".join([*path, event.name])
            if event.kind == "dir":
                path.append(event.name)
            elif event.kind == "file":
                start, end = event.content_offset, event.content_offset + event.size
                if tree.split:
                    start -= 16  # its header is needed too
                while position < len(content) and content[position][1] <= start:
                    position += 1
                if position < len(content) and content[position][0] < end:
                    found.append(last.decode("utf-8", "surrogateescape"))
                    if len(found) >= _FILES_AT_MOST:
                        return [*found, "(and more)"]
    except (FormatError, ArchiverError):
        found.append(f"(everything after {last.decode('utf-8', 'surrogateescape') or '/'})")
    return found
