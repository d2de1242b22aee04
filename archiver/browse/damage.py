"""Which files of a tree a damaged range of its streams belongs to."""

from __future__ import annotations

from archiver.browse.snapshot import Tree
from archiver.errors import ArchiverError
from formats.errors import FormatError
from formats.pxar.constants import HEADER_SIZE
from formats.pxar.decoder import LEAVE

_MORE = "(and more)"
_FILES_AT_MOST = 1000  # of one range
Range = tuple[int, int]


def damaged_files(tree: Tree, content: list[Range], room: int) -> list[list[str]]:
    """For each of the ``content`` ranges [start, end) (sorted, disjoint, of the content stream) the paths of the files
    with contents in it. The tree is read once, however many ranges there are; the paths have
    ``room`` characters together.

    Damage to names and attributes hides the rest: every list then ends with words that say from where on.
    """
    found: list[list[str]] = [[] for _ in content]
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
            for number in range(position, len(content)):
                if content[number][0] >= end:
                    break
                if len(found[number]) < _FILES_AT_MOST and room > 0:
                    found[number].append(_path(names))
                    room -= len(found[number][-1])
                elif found[number][-1:] != [_MORE]:
                    found[number].append(_MORE)
    except (FormatError, ArchiverError):
        for files in found:
            files.append(f"(everything after {_path(names)})")
    return found


def _path(names: list[bytes]) -> str:
    return "/" + b"/".join(names).decode("utf-8", "surrogateescape")
