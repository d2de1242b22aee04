"""Builds the emulated machine, runs all checks in it, and prints what they found."""
import sys
from pathlib import Path
from bench.tape_rig import image, machine, packages
work = Path("/tmp/tape-st-rig")
debs = packages.fetch(work)
root, kernel = packages.unpack(debs, work)
image.add_project(root)
(root/"explore.py").write_bytes(open(sys.argv[1],"rb").read())
image.write(root, work / "image")
for report in machine.run(kernel, work / "image", work, arguments="", seconds=600):
    for k, v in report.items():
        print(f"{k}: {v}")
