"""`python -m benchmarks` lists the benchmarks, `python -m benchmarks NAME … [--json PATH] [--quick]` runs them."""

from __future__ import annotations

import argparse
import importlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.machine import machine
from benchmarks.rows import record, table
from config import ConfigProblem, suggest
from engine.files import write_json
from engine.flags import run_command

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Benchmarks that there are: bench_NAME.py."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def load(name: str) -> ModuleType:
    """The benchmark's module.

    Raises:
        ConfigProblem: there is none of this name; names the near ones.
    """
    known = names()
    if name not in known:
        raise ConfigProblem(f"{name!r} is no benchmark{suggest(name, known)}: there are {', '.join(known)}.")
    return importlib.import_module(f"benchmarks.bench_{name}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Compare with other ways to do the same.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; without one they are listed")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute: says whether it works")
    args = parser.parse_args(argv)
    if not args.names:
        for name in names():
            print(f"{name}  {load(name).DESCRIPTION}")
        return 0
    benchmarks = {name: load(name) for name in args.names}
    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "quick": args.quick, "machine": machine()}
    found: dict[str, list[Any]] = {"rows": [], "spread": [], "notes": []}
    for name, benchmark in benchmarks.items():
        rows = benchmark.run(args.quick)
        print(table(rows), flush=True)
        for part, entries in record(name, rows).items():
            found[part] += entries
        if args.json is not None:
            write_json(args.json, {**about, **found})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
