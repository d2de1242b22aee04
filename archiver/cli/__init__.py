"""The command line: one small file per group of commands; the only room that knows click and prints."""

import gc
import os

# Set here, before any other module is imported. Collections of garbage take 15 % of a quiet backup of 50,000 files, and
# find nothing while a hundred modules are loaded; what numpy has for linear algebra starts threads that wait busily.
gc.set_threshold(100_000)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
