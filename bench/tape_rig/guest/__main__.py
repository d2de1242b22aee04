"""All checks, one after the other, over one library."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.tape_rig.guest import commands, disks, drive, library
from bench.tape_rig.guest.report import check, fact

_MEGABYTES = 20
_TAPES = ("T00001L8", "T00002L8", "T00003L8", "T00004L8", "CLN001L1")


def main() -> None:
    with open("/proc/version") as file:
        fact("kernel", file.read().split("(")[0].strip())
    fact("python", sys.version.split()[0])
    with check("disks with other file systems are there"):
        place = Path("/tmp/disks")
        place.mkdir()
        disks.run(place)
    with check("a tape library is there"):
        rig = library.start(dict.fromkeys(_TAPES, _MEGABYTES))
        drive.run(rig)
        commands.run(rig)


if __name__ == "__main__":
    main()
