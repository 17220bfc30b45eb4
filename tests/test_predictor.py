"""inference/predictor.py with networks whose right answer is known."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine import settings
from inference.build import build_predictor
from inference.forward import Forward, run_network
from inference.predictor import Mixed, Predictor, Scaled, Sliding, Whole

SIZES = [(32, 32), (64, 96), (65, 33), (47, 101), (33, 32), (32, 40)]


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.5, -2.0, 0.25]).view(1, 3, 1, 1).expand(len(x), 3, *x.shape[-2:])


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -3 * x], 1)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(1, 5, 1).requires_grad_(False)


def local() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(1, 3, 3, padding=1).requires_grad_(False)


def picture(height: int, width: int) -> Tensor:
    return torch.rand((1, 1, height, width), generator=torch.Generator().manual_seed(height * 1000 + width))


def joined(predictor: Predictor, grey: Tensor) -> Tensor:
    return torch.cat([band.clone() for band in predictor.bands(grey)], 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [32, 16, 11, 3])
@pytest.mark.parametrize("sigma", [None, 0.01, 0.125, 0.3])
def test_constant_identity_and_linear_come_back(size: tuple[int, int], stride: int, sigma: float | None) -> None:
    grey = picture(*size)
    for network in (Constant(), Identity(), linear()):
        out = joined(Sliding(Forward(network, batch=4), 32, stride, sigma), grey)
        assert out.dtype == torch.float32 and out.shape[1:] == size
        torch.testing.assert_close(out, network(grey)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_whole(size: tuple[int, int]) -> None:
    grey = picture(*size)
    bands = list(Whole(Forward(local()), 32).bands(grey))
    assert len(bands) == 1
    torch.testing.assert_close(bands[0], local()(grey)[0])


@pytest.mark.parametrize("sigma", [None, 0.3])
def test_windows_equal_the_whole_away_from_their_borders(sigma: float | None) -> None:
    """A 3 x 3 convolution only errs at a window's border; with stride 16 those lie on known rows and columns."""
    grey = picture(80, 112)
    out, whole = joined(Sliding(Forward(local(), batch=4), 32, 16, sigma), grey), local()(grey)[0]
    on_border = torch.zeros(80, 112, dtype=torch.bool)
    for start in range(0, 112 - 31, 16):
        for edge in {start, start + 31} - {0, 111}:
            on_border[:, edge] = True
    for start in range(0, 80 - 31, 16):
        for edge in {start, start + 31} - {0, 79}:
            on_border[edge] = True
    off = (out - whole).abs().amax(0)
    assert off[~on_border].max() < 1e-5
    assert off[on_border].max() > 1e-2, "the test would not see a border otherwise"


@pytest.mark.parametrize("size", [(64, 96), (47, 101)])
def test_window_batch_changes_nothing(size: tuple[int, int]) -> None:
    grey = picture(*size)
    one = joined(Sliding(Forward(local(), batch=1), 32, 12, 0.3), grey)
    for batch in (2, 3, 7, 1000):
        other = joined(Sliding(Forward(local(), batch=batch), 32, 12, 0.3), grey)
        torch.testing.assert_close(other, one, atol=1e-6, rtol=0)


def test_batches_are_no_larger_than_asked() -> None:
    seen = []

    class Spy(Identity):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return super().forward(x)

    joined(Sliding(Forward(Spy(), batch=2), 32, 16, None), picture(48, 112))
    assert sum(shape[0] for shape in seen) == 2 * 6 and max(shape[0] for shape in seen) == 2
    assert {shape[1:] for shape in seen} == {(1, 32, 32)}


@pytest.mark.parametrize("stride", [5, 16, 32])
def test_bands_cover_each_row_once(stride: int) -> None:
    """In order, and no band is larger than a window: that is the peak of memory."""
    grey = torch.arange(77.0).view(1, 1, 77, 1).expand(1, 1, 77, 40) / 100
    bands = [band.clone() for band in Sliding(Forward(Identity(), batch=4), 32, stride, 0.3).bands(grey)]
    assert all(0 < band.shape[1] <= 32 for band in bands)
    rows = torch.cat([band[0, :, 0] for band in bands])
    torch.testing.assert_close(rows, grey[0, 0, :, 0], atol=1e-5, rtol=0)


def test_memory_of_one_frame_serves_the_next() -> None:
    """Whatever the last one left in it; frames of another size and frames that are predicted side by side have own."""
    shared = Sliding(Forward(local(), batch=4), 32, 12, 0.3)
    for size in ((80, 70), (80, 70), (50, 33), (80, 70)):
        grey = picture(*size)
        assert torch.equal(joined(shared, grey), joined(Sliding(Forward(local(), batch=4), 32, 12, 0.3), grey))
    greys = picture(80, 70), 1 - picture(80, 70)
    side_by_side: list[list[Tensor]] = [[], []]
    for pair in zip(*map(shared.bands, greys), strict=True):
        for bands, band in zip(side_by_side, pair, strict=True):
            bands.append(band.clone())
    assert all(
        torch.equal(torch.cat(bands, 1), joined(shared, grey))
        for bands, grey in zip(side_by_side, greys, strict=True)
    )


def test_networks_run_without_gradients() -> None:
    network = nn.Conv2d(1, 2, 1)
    assert not run_network(network, picture(8, 8), half=("cuda",)).requires_grad
    sliding = Sliding(Forward(network, batch=4), 32, 16, 0.3)
    assert not any(band.requires_grad for band in sliding.bands(picture(40, 40)))


@pytest.mark.parametrize(
    ("values", "kind", "window"),
    [
        ({"inference_file": "inference.inference"}, Whole, 96),
        ({"inference_file": "inference.inference", "resize_to": 64}, Whole, 64),
        ({"inference_file": "inference.inference_sliding"}, Sliding, 32),
        ({"inference_file": "SLIDING", "resize_to": 64}, Sliding, 32),
        ({"inference_file": "inference.inference", "full_size": True}, Whole, 1),
        ({"inference_file": "inference.inference_mixed"}, Mixed, 32),
        ({"inference_file": "tta"}, Sliding, 32),
        ({"inference_file": "tta_whole"}, Whole, 96),
        ({"inference_file": "tta_mixed"}, Mixed, 32),
        ({"inference_file": "tta", "tta_mode": "full"}, Scaled, 32),
    ],
)
def test_styles(values: dict[str, Any], kind: type, window: int) -> None:
    sizes = {"image_size": 96, "window_size": 32, "stride": 16, "tta_unseen": "allow"}
    cfg = settings.replace(Config(), {**sizes, **values})
    predictor = build_predictor(cfg, Identity())
    assert isinstance(predictor, kind) and predictor.window == window
    if isinstance(predictor, Sliding):
        assert (predictor.stride, predictor.sigma, predictor.forward.batch) == (16, 0.3, 4)
        flat = build_predictor(settings.replace(cfg, {"use_gaussian_sliding": False}), Identity())
        assert isinstance(flat, Sliding) and flat.sigma is None


def test_unknown_style() -> None:
    for name in ("inference.infrence_slidin", "inference.inference_sliding_x"):
        with pytest.raises(ConfigProblem, match=r"is unknown.*inference\.inference"):
            build_predictor(settings.replace(Config(), {"inference_file": name}), Identity())


class Sizes(nn.Module):
    """Notes what it sees; its answer is the grey value, whatever the size."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return 4 * x - 2


def ramp(height: int, width: int) -> Tensor:
    """A plane, which bilinear interpolation keeps away from the borders."""
    return (torch.arange(height)[:, None] / height + torch.arange(width)[None, :] / width)[None, None] / 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_is_the_weighted_sum_of_windows_and_the_reduced_image(size: tuple[int, int], share: float) -> None:
    grey, network = picture(*size), Sizes()
    windows = Sliding(Forward(network), 32, 16, 0.3)
    out = joined(Mixed(windows, 24, share), grey)
    factor = 24 / max(size)
    small = (round(size[0] * factor), round(size[1] * factor))
    assert (1, 1, *small) in network.seen
    reduced = F.interpolate(grey, small, mode="bilinear", antialias=True)
    coarse = F.interpolate(4 * reduced - 2, size, mode="bilinear", align_corners=False)[0]
    expected = (1 - share) * joined(windows, grey) + share * coarse
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [*SIZES, (33, 47)])
@pytest.mark.parametrize("scale", [0.5, 0.9, 1.1, 1.37, 2.0])
def test_other_sizes_come_back_to_exactly_this_one(size: tuple[int, int], scale: float) -> None:
    """0.9 of 33 is 30, and 30 / 0.9 is not 33."""
    network = Sizes()
    base, other = (Sliding(Forward(network), 32, 16, 0.3) for _ in range(2))
    grey = ramp(*size)
    out = joined(Scaled(base, 1, other, (scale,)), grey)
    assert out.shape == (1, *size)
    inside = (slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(out[inside], (4 * grey - 2)[0][inside], atol=0.02, rtol=0)


def test_sizes_count_as_one_view_each() -> None:
    class Level(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x, float(x.shape[-1]))

    base, other = (Whole(Forward(Level()), 1) for _ in range(2))
    out = joined(Scaled(base, 3, other, (0.5, 2.0)), picture(40, 40))
    torch.testing.assert_close(out, torch.full((1, 40, 40), (3 * 40 + 20 + 80) / 5))


@pytest.mark.parametrize("blend", ["logits", "probs"])
def test_windows_blend_in_what_is_asked(blend: Literal["logits", "probs"]) -> None:
    class Side(nn.Module):
        """Sure of yes in the first window it sees, of no in the next."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return torch.full_like(x, 4.0 if self.calls == 1 else -1.0)

    out = joined(Sliding(Forward(Side(), blend=blend, batch=1), 32, 16, None), picture(32, 48))
    middle = out[0, :, 16:32]
    expected = 1.5 if blend == "logits" else float(torch.tensor([4.0, -1.0]).sigmoid().mean())
    torch.testing.assert_close(middle, torch.full_like(middle, expected))


class Hungry(nn.Module):
    """Runs out of memory with more than `most` images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
        return 3 * x


def test_where_memory_runs_out_the_batch_steps_down_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    grey, network = picture(32, 32 + 16 * 8), Hungry(2)
    forward = Forward(network, batch=9)
    out = joined(Sliding(forward, 32, 16, 0.3), grey)
    torch.testing.assert_close(out, 3 * grey[0], atol=1e-5, rtol=0)
    assert network.seen == [9, 4, 2, 2, 2, 2, 1] and forward.batch == 2, "windows that are done are not done again"
    assert "going on with window_batch 2" in capsys.readouterr().out
    with pytest.raises(torch.OutOfMemoryError):
        joined(Sliding(Forward(Hungry(0), batch=2), 32, 16, 0.3), grey)
