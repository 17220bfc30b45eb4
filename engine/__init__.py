"""What a run stands on: files, progress, names, random numbers, optimizer, schedule, run state, processes.

The lowest layer beside config: nothing here imports dataset, model or inference.
"""

import os

# Before torch loads OpenMP, whose threads otherwise spin while they wait for each other. With one other busy process on
# two cores, a training step took 9.2 s spinning and 1.0 s sleeping; 0.6 s both ways with the cores to itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
