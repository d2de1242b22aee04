"""A machine with a tape library, emulated in software from Debian's packages: the program's tape code for real, through
/dev/nst0 and mtx (spec tape.md 16)."""
