"""The command line: one small file per group of commands; the only room that knows click and prints."""
