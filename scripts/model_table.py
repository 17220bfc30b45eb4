"""Write the table of all networks in docs/models.md anew:

python scripts/model_table.py [--output docs/models.md]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts scripts/ first instead of the folder that holds config.py.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from config import Config, ConfigProblem
from engine import settings
from engine.files import write_text
from engine.flags import run_command
from engine.names import all_names
from engine.progress import progress

BEGIN, END = "<!-- table: python scripts/model_table.py -->", "<!-- end of table -->"

COLUMNS = ("name", "parameters", "published", "GFLOP", "train GiB", "infer GiB", "stride", "least px", "options")

WHOLE = {"dataset_file": "dataset.dataset", "inference_file": "inference.inference", "image_size": 1024}
"""For networks that take whole images, so that all rows are of one size."""


@dataclass(frozen=True)
class Flags:
    """The command line."""

    output: str = "docs/models.md"
    """File whose table is replaced."""


def row(name: str) -> tuple[str, ...]:
    """The cells of one network at the default settings, 1024 px."""
    from model.describe import count_published, describe
    from model.network import TWO_STAGE

    values = {"model_file": name, **(WHOLE if "two_stage" in name else {})}
    about = describe(settings.replace(Config(), values))
    published = ""
    if about.published is not None:
        count = count_published(about.name, about.published)
        said = about.published
        published = f"{said.parameters:,} ({count:,}; {said.source})"
    return (
        str(about.name).removeprefix("model."),
        f"{about.cost.parameters:,}",
        published,
        f"{about.cost.flops / 1e9:,.0f}",
        f"{about.cost.training_bytes / 2**30:.1f}",
        f"{about.cost.inference_bytes / 2**30:.2f}",
        str(about.stride),
        str(about.least),
        ", ".join(option for option in about.options if option not in TWO_STAGE),
    )


def table(names: list[str]) -> str:
    """Markdown table of these networks."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    lines += [row(name) for name in progress(names, "networks", len(names), "networks")]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write(path: Path) -> int:
    """Replace the table in `path`.

    Raises:
        ConfigProblem: the file has no place for it.
    """
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ConfigProblem(f"{path} must hold the lines {BEGIN!r} and {END!r} once: the table goes between them.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(path, f"{before}{BEGIN}\n\n{table(all_names('model'))}\n\n{END}{after}")
    print(path)
    return 0


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    flags = tyro.cli(Flags, args=argv, description=__doc__, use_underscores=True)
    return run_command(lambda: write(Path(flags.output)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
