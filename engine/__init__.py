"""What a run stands on: files, progress, names, random numbers, optimizer, schedule, run state, processes.

The lowest layer beside config: nothing here imports dataset, model or inference.
"""
