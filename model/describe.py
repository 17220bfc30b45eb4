"""What one can know of a network before training it: for --describe_model and the table in docs/models.md."""

from __future__ import annotations

from dataclasses import dataclass

from config import Config
from engine import settings
from engine.names import Name
from model.cost import Cost, cost, parameters
from model.network import OPTIONAL, Published, build, model_name


@dataclass(frozen=True)
class Description:
    name: Name
    paper: str
    options: tuple[str, ...]
    """Settings of OPTIONAL that it follows."""
    stride: int
    least: int
    """Smallest height and width that it sees, px; smaller images are padded to it."""
    side: int
    """Height and width that `cost` is counted at."""
    cost: Cost
    published: Published | None
    weights: tuple[str, ...]
    """Names of pretrained weights."""


def describe(cfg: Config) -> Description:
    """Build the network of these settings and count what it costs at `window_size`, or at `image_size` where it takes
    the whole image.

    Raises:
        ConfigProblem: the settings name no network that can be built.
    """
    name = model_name(cfg)
    module = name.load()
    cfg = settings.replace(cfg, {"pretrained": False})
    network = build(cfg)
    whole = "first_model" in module.OPTIONS
    side = cfg.window.image_size if whole else cfg.window.window_size
    return Description(
        name,
        module.PAPER,
        tuple(option for option in OPTIONAL if option in module.OPTIONS),
        network.stride,
        min(network.padded(1, 1)),
        side,
        cost(network, side),
        getattr(module, "PUBLISHED", {}).get(name.variant),
        tuple(module.weights(name.variant)) if hasattr(module, "weights") else (),
    )


def count_published(name: Name, published: Published) -> int:
    """Parameters of the network as they were counted where the number is published."""
    classes = tuple(f"class {k}" for k in range(published.classes))
    values = {"model_file": str(name), "in_channels": published.in_channels, "classes": classes, **published.options}
    return parameters(build(settings.replace(Config(), values)))


def agrees(count: int, published: Published) -> bool:
    """Whether a count is the published number, rounded to the digits that it is published with."""
    if published.digits is None:
        return count == published.parameters
    return float(f"{count:.{published.digits}g}") == published.parameters


def text(about: Description, cfg: Config) -> str:
    """The description for the screen."""
    used, gib = about.cost, 2**30
    lines = {
        "paper": about.paper,
        "parameters": f"{used.parameters:,} ({cfg.model.in_channels} channel(s) in, {len(cfg.data.classes)} classes)",
        "published": _published(about.published),
        "at": f"{about.side} x {about.side} px, one image",
        "FLOPs": f"{used.flops / 1e9:,.1f} G (forward; a multiply-add is two)",
        "memory": (
            f"{used.training_bytes / gib:.2f} GiB to train, {used.inference_bytes / gib:.2f} GiB to infer (activations "
            f"and gradients in float32, most at once; weights {4 * used.parameters / gib:.2f} GiB)"
        ),
        "sizes": f"any; padded to multiples of {about.stride} px, {about.least} px at least",
        "options": ", ".join(about.options) or "none",
        "pretrained": ", ".join(about.weights) or "none",
    }
    return "\n".join([str(about.name), *(f"  {key:<11}{value}" for key, value in lines.items())])


def _published(published: Published | None) -> str:
    if published is None:
        return "no count that we know of"
    return (
        f"{published.parameters:,} with {published.in_channels} channels and {published.classes} classes "
        f"({published.source})"
    )
