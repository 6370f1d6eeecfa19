"""One thread for each test process: two cores are shared by xdist workers and gloo ranks."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
