"""What a run stands on: flags, files, progress, names, packed words, optimizer and schedule, metrics.csv, stopping.

The lowest layer beside config: nothing here imports dataset, model or inference.
"""

import os

# Before torch loads OpenMP: its threads spin for milliseconds when they wait for each other, which is fatal where other
# processes want the same cores. A step of the demo on two cores took 0.60 s by default and 0.56 s so; beside a running
# test suite 1.5-1.7 s and 1.2 s, and 9 s by default beside two busy processes. OMP_WAIT_POLICY=PASSIVE: 0.67 s alone.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
