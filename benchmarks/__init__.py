"""Measured comparisons with other ways to do the same work: `python -m benchmarks` lists them.

Adding a benchmark is adding `benchmarks/bench_NAME.py` with `DESCRIPTION`, one line, and `run(quick) -> list[Row]`.
"""
