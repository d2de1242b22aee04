"""The command line: one small file per group of commands; the only room that knows click and prints."""

import gc

# Set here, before any other module is imported: collections of garbage take 15 % of a quiet backup of 50,000 files, and
# find nothing while a hundred modules are loaded.
gc.set_threshold(100_000)
