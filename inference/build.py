"""Settings and trained networks -> predictors, members and ensembles."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from config import Config, ConfigProblem
from engine.devices import half_kinds
from engine.names import check_variant, resolve
from inference.ensemble import Ensemble, Member
from inference.forward import Forward
from inference.post_process import Step, low_threshold, parse_steps
from inference.predictor import Mixed, Predictor, Scaled, Sliding, Whole
from inference.tta import PLAIN, views_of


def build_predictor(cfg: Config, network: nn.Module) -> Predictor:
    """The predictor that `inference_file` names.

    Raises:
        ConfigProblem: an unknown name, or views that training has not shown to the network.
    """
    name = resolve("inference", cfg.inference.inference_file)
    module = name.load()
    check_variant(name, module.VARIANTS)
    predictor: Predictor = module.build(cfg, network)
    return predictor


def single(cfg: Config, network: nn.Module) -> Ensemble:
    """One network with the style and the thresholds of its settings."""
    steps_of(cfg)  # what is wrong with them shows before an epoch is trained
    return Ensemble([Member(build_predictor(cfg, network), network, cfg)], thresholds_of(cfg))


def thresholds_of(cfg: Config) -> list[float]:
    """The threshold of each class."""
    return [cfg.inference.optimal_thresholds.get(name, cfg.inference.threshold) for name in cfg.data.classes]


def steps_of(cfg: Config) -> tuple[Step, ...]:
    """The steps of `post_process`.

    Raises:
        ConfigProblem: an unknown step, a bad value, or a hysteresis that could add nothing.
    """
    steps = parse_steps(cfg.inference.post_process, cfg.data.classes)
    low, most = low_threshold(steps), max(thresholds_of(cfg))
    if low is not None and low >= most:
        raise ConfigProblem(
            f"post_process: hysteresis={low:g} adds pixels down to that probability, but no threshold is above it (the "
            f"highest is {most:g}): lower it."
        )
    return steps


def whole(cfg: Config, network: nn.Module, mode: str = "") -> Predictor:
    """The whole image, fitted to a square of `image_size`, or at its own size, through the network at once.

    Args:
        mode: of test-time augmentation; empty takes the settings'.
    """
    window = 1 if cfg.inference.full_size else cfg.inference.resize_to or cfg.window.image_size
    return _with_views(cfg, network, mode, lambda forward: Whole(forward, window))


def sliding(cfg: Config, network: nn.Module, mode: str = "") -> Predictor:
    """Windows of `window_size` at every `stride`, blended by a Gaussian or evenly."""
    return _with_views(cfg, network, mode, lambda forward: _windows(cfg, forward))


def mixed(cfg: Config, network: nn.Module, mode: str = "") -> Predictor:
    """Windows blended with the reduced whole image."""
    size = cfg.inference.mixed_size or cfg.window.window_size
    return _with_views(
        cfg, network, mode, lambda forward: Mixed(_windows(cfg, forward), size, cfg.inference.mixed_share)
    )


def _windows(cfg: Config, forward: Forward) -> Sliding:
    window = cfg.window
    sigma = window.gaussian_sigma if window.use_gaussian_sliding else None
    return Sliding(forward, window.window_size, window.stride, sigma)


def _with_views(cfg: Config, network: nn.Module, mode: str, make: Callable[[Forward], Predictor]) -> Predictor:
    """The predictor that `make` builds on the network, in all views of test-time augmentation."""
    views = views_of(cfg, mode or cfg.inference.tta_mode)
    scales = tuple(view.scale for view in views if view.scale != 1)
    here = tuple(view for view in views if view.scale == 1)
    blend, half, batch = cfg.inference.blend, half_kinds(cfg.train), cfg.window.window_batch
    base = make(Forward(network, views=here, blend=blend, half=half, batch=batch))
    if not scales:
        return base
    other = make(Forward(network, views=(PLAIN,), blend=blend, half=half, batch=batch))
    return Scaled(base, len(here), other, scales)
