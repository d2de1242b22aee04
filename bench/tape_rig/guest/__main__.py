import json, subprocess, sys, traceback, os
from bench.tape_rig.guest import library
def tell(**k):
    print(json.dumps(k), flush=True)
try:
    lib = library.start({"T00001L8": 20, "T00002L8": 20, "T00003L8": 20, "CLN001L1": 20})
    tell(drive=lib.drive, changer=lib.changer, nodes=[n for n in os.listdir("/dev") if n[:2] in("st","sg","ns","sc")])
    tell(mtx=subprocess.run(["mtx","-f",lib.changer,"status"],capture_output=True,text=True).stdout)
    exec(open("/explore.py").read())
except BaseException:
    tell(error=traceback.format_exc())
