from bench.tape_rig.guest.library import Library


def run(rig: Library) -> None: ...
