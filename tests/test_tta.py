"""inference/tta.py: views are undone exactly, legal only where training saw them, and averaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine import settings
from inference.build import build_predictor
from inference.forward import Forward
from inference.predictor import Sliding, Whole
from inference.tta import FLIPS, PLAIN, ROTATIONS, View, views_of, was_seen

SIZES = [(8, 8), (7, 7), (6, 9), (9, 6), (1, 5), (5, 1), (1, 1), (33, 64)]

SEEN = {"hflip": (1.0, 1.0, 0.5), "vflip": (1.0, 1.0, 0.5), "rotate": (-180.0, 180.0, 1.0)}
"""Augmentation that shows everything of flip_rotate."""


def cfg_of(**values: Any) -> Config:
    return settings.replace(Config(), values)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("view", ROTATIONS, ids=str)
def test_every_view_is_undone_exactly(view: View, size: tuple[int, int]) -> None:
    image = torch.arange(float(size[0] * size[1])).view(1, 1, *size) / (size[0] * size[1])
    seen = view.apply(image)
    assert seen.shape[-2:] == (size if view.turns % 2 == 0 else size[::-1])
    assert torch.equal(view.undo(seen), image)
    maps = torch.randn((3, *seen.shape[-2:]), generator=torch.Generator().manual_seed(0))
    assert view.undo(maps).shape == (3, *size)
    assert torch.equal(view.apply(view.undo(maps)), maps)


def test_the_rotations_are_the_eight_symmetries() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3) / 10
    assert len({tuple(view.apply(image).flatten().tolist()) for view in ROTATIONS}) == 8
    assert torch.equal(View(mirrored=True, turns=2).apply(image), image.flip(-2)), "the vertical flip"


def test_intensity_scales_grey_values_within_their_range() -> None:
    image = torch.tensor([0.0, 0.5, 0.95]).view(1, 1, 1, 3)
    assert View(intensity=1.1).apply(image).flatten().tolist() == pytest.approx([0, 0.55, 1])
    assert View(intensity=0.9).apply(image).flatten().tolist() == pytest.approx([0, 0.45, 0.855])


class Directed(nn.Module):
    """Two maps whose values depend on the direction: differences to the right and down."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x - x.roll(1, -1), x - x.roll(1, -2)], 1)


@pytest.mark.parametrize("size", [(48, 48), (40, 72)])
@pytest.mark.parametrize("views", [FLIPS, ROTATIONS, (PLAIN, View(intensity=0.5)), ROTATIONS[:3]])
@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_the_mean_over_views_of_the_whole_image(size: tuple[int, int], views: tuple[View, ...], batch: int) -> None:
    grey = torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(1))
    network = Directed()
    expected = torch.stack([view.undo(network(view.apply(grey))[0]) for view in views]).mean(0)
    (out,) = Whole(Forward(network, views=views, batch=batch), 1).bands(grey)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("views", [FLIPS, ROTATIONS])
def test_windows_in_views_are_the_windows_of_the_whole_image_in_views(views: tuple[View, ...]) -> None:
    """On a grid of windows that is symmetric, flipping windows and flipping the image are the same."""
    grey = torch.rand((1, 1, 64, 96), generator=torch.Generator().manual_seed(2))
    one = Sliding(Forward(Directed(), batch=4), 32, 16, 0.3)
    expected = torch.stack(
        [view.undo(torch.cat([b.clone() for b in one.bands(view.apply(grey))], 1)) for view in views]
    ).mean(0)
    many = Sliding(Forward(Directed(), views=views, batch=4), 32, 16, 0.3)
    torch.testing.assert_close(torch.cat([b.clone() for b in many.bands(grey)], 1), expected, atol=1e-6, rtol=0)


def test_views_go_through_the_network_together() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x

    windows = [torch.rand((1, 1, 16, 16)) for _ in range(3)]
    assert len(list(Forward(Spy(), views=FLIPS, batch=4)(windows))) == 3
    assert seen == [4, 2], "two windows with both their views, then one"


@pytest.mark.parametrize(
    ("mode", "count"), [("none", 1), ("flip", 2), ("flip_rotate", 8), ("full", 8 + 2 + 2)]
)
def test_views_of_a_mode(mode: str, count: int) -> None:
    cfg = cfg_of(**SEEN)
    views = views_of(cfg, mode)
    assert views[0] == PLAIN and len(set(views)) == len(views) == count
    assert views_of(settings.replace(cfg, {"n_tta": 3}), mode) == views[:3]


@pytest.mark.parametrize(
    ("view", "without", "what_shows_it"),
    [
        (View(mirrored=True), {}, {"hflip": (1.0, 1.0, 0.5)}),
        (View(mirrored=True, turns=2), {"hflip": (1.0, 1.0, 0.5)}, {"vflip": (1.0, 1.0, 0.1)}),
        (View(turns=2), {"vflip": (1.0, 1.0, 0.5)}, {"vflip": (1.0, 1.0, 0.5), "hflip": (1.0, 1.0, 0.5)}),
        (View(turns=2), {"rotate": (-90.0, 90.0, 1.0)}, {"rotate": (-180.0, 0.0, 1.0)}),
        (View(turns=1), {"rotate": (-89.0, 180.0, 1.0)}, {"rotate": (-90.0, 0.0, 1.0)}),
        (View(turns=3), {"rotate": (-180.0, 180.0, 0.0)}, {"rotate": (0.0, 90.0, 1.0)}),
        (View(True, 1), {"rotate": (-90.0, 90.0, 1.0)}, {"rotate": (-90.0, 90.0, 1.0), "hflip": (1.0, 1.0, 0.5)}),
        (View(scale=1.2), {}, {"scale": (0.0, 0.2, 1.0)}),
        (View(scale=0.9), {"scale": (0.0, 0.2, 1.0)}, {}),
        (View(scale=1.4), {}, {"resized_crop": (0.5, 1.0, 0.3)}),
        (View(intensity=1.1), {"contrast": (0.0, 0.0, 0.0)}, {}),
        (View(intensity=1.1), {"brightness": (0.0, 0.0, 0.0)}, {}),
        (View(intensity=0.7), {}, {"contrast": (-0.3, 0.3, 1.0), "brightness": (-0.15, 0.0, 1.0)}),
    ],
)  # fmt: skip
def test_a_view_is_legal_only_where_training_saw_it(
    view: View, without: dict[str, Any], what_shows_it: dict[str, Any]
) -> None:
    """In the set "light" nothing is flipped; shifts of scale, contrast and brightness go to a tenth."""
    assert not was_seen(view, cfg_of(**without))
    assert was_seen(view, cfg_of(**what_shows_it))


def test_a_loader_that_turns_all_hands_to_one_side_has_seen_no_mirror_image() -> None:
    cfg = cfg_of(dataset_file="dataset.dataset_flip", **SEEN)
    assert not was_seen(View(mirrored=True), settings.replace(cfg, {"vflip": (0.0, 0.0, 0.0)}))


def test_what_training_has_not_seen_is_an_error_left_out_or_used() -> None:
    with pytest.raises(ConfigProblem, match=r"tta_mode flip: .*light.*: mirrored\..*--tta_unseen skip.*hflip"):
        views_of(cfg_of(), "flip")
    assert views_of(cfg_of(tta_unseen="skip"), "full") == (
        PLAIN, View(scale=0.9), View(scale=1.1), View(intensity=0.9), View(intensity=1.1),
    )  # fmt: skip
    assert views_of(cfg_of(tta_unseen="allow"), "flip") == FLIPS
    assert views_of(cfg_of(augment="heavy"), "flip") == FLIPS


def test_the_style_tta_has_views_without_being_asked() -> None:
    cfg = cfg_of(inference_file="tta", **SEEN)
    predictor = build_predictor(cfg, Directed())
    assert isinstance(predictor, Sliding) and predictor.forward.views == FLIPS
    more = build_predictor(settings.replace(cfg, {"tta_mode": "flip_rotate"}), Directed())
    assert isinstance(more, Sliding) and more.forward.views == ROTATIONS
    plain = build_predictor(cfg_of(), Directed())
    assert isinstance(plain, Sliding) and plain.forward.views == (PLAIN,)
