"""inference/predictor.py with networks whose right answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from config import Config, ConfigProblem
from engine import settings
from inference.pipeline import build_predictor
from inference.predictor import Predictor, Sliding, Whole, run_network

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
        out = joined(Sliding(network, 32, stride, sigma, 4), grey)
        assert out.dtype == torch.float32 and out.shape[1:] == size
        torch.testing.assert_close(out, network(grey)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_whole(size: tuple[int, int]) -> None:
    grey = picture(*size)
    bands = list(Whole(local(), 32).bands(grey))
    assert len(bands) == 1
    torch.testing.assert_close(bands[0], local()(grey)[0])


@pytest.mark.parametrize("sigma", [None, 0.3])
def test_windows_equal_the_whole_away_from_their_borders(sigma: float | None) -> None:
    """A 3 x 3 convolution only errs at a window's border; with stride 16 those lie on known rows and columns."""
    grey = picture(80, 112)
    out, whole = joined(Sliding(local(), 32, 16, sigma, 4), grey), local()(grey)[0]
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
    one = joined(Sliding(local(), 32, 12, 0.3, 1), grey)
    for batch in (2, 3, 7, 1000):
        torch.testing.assert_close(joined(Sliding(local(), 32, 12, 0.3, batch), grey), one, atol=1e-6, rtol=0)


def test_batches_are_no_larger_than_asked() -> None:
    seen = []

    class Spy(Identity):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return super().forward(x)

    joined(Sliding(Spy(), 32, 16, None, 2), picture(48, 112))
    assert sum(shape[0] for shape in seen) == 2 * 6 and max(shape[0] for shape in seen) == 2
    assert {shape[1:] for shape in seen} == {(1, 32, 32)}


@pytest.mark.parametrize("stride", [5, 16, 32])
def test_bands_cover_each_row_once(stride: int) -> None:
    """In order, and no band is larger than a window: that is the peak of memory."""
    grey = torch.arange(77.0).view(1, 1, 77, 1).expand(1, 1, 77, 40) / 100
    bands = list(Sliding(Identity(), 32, stride, 0.3, 4).bands(grey))
    assert all(0 < band.shape[1] <= 32 for band in bands)
    rows = torch.cat([band[0, :, 0] for band in bands])
    torch.testing.assert_close(rows, grey[0, 0, :, 0], atol=1e-5, rtol=0)


def test_a_band_stays_as_it_was_given() -> None:
    """The next band is computed in other memory."""
    bands = [(band, band.clone()) for band in Sliding(linear(), 32, 8, 0.3, 4).bands(picture(90, 40))]
    assert all(torch.equal(kept, copy) for kept, copy in bands)


def test_networks_run_without_gradients() -> None:
    network = nn.Conv2d(1, 2, 1)
    assert not run_network(network, picture(8, 8), half=True).requires_grad
    assert not any(band.requires_grad for band in Sliding(network, 32, 16, 0.3, 4).bands(picture(40, 40)))


@pytest.mark.parametrize(
    ("values", "kind", "window"),
    [
        ({"inference_file": "inference.inference"}, Whole, 96),
        ({"inference_file": "inference.inference", "resize_to": 64}, Whole, 64),
        ({"inference_file": "inference.inference_sliding"}, Sliding, 32),
        ({"inference_file": "SLIDING", "resize_to": 64}, Sliding, 32),
    ],
)
def test_styles(values: dict[str, Any], kind: type, window: int) -> None:
    cfg = settings.replace(Config(), {"image_size": 96, "window_size": 32, "stride": 16, **values})
    predictor = build_predictor(cfg, Identity())
    assert isinstance(predictor, kind) and predictor.window == window
    if isinstance(predictor, Sliding):
        assert (predictor.stride, predictor.sigma, predictor.batch) == (16, 0.3, 4)
        flat = build_predictor(settings.replace(cfg, {"use_gaussian_sliding": False}), Identity())
        assert isinstance(flat, Sliding) and flat.sigma is None


def test_unknown_style() -> None:
    for name in ("inference.infrence_slidin", "inference.inference_sliding_x"):
        with pytest.raises(ConfigProblem, match=r"is unknown.*inference\.inference"):
            build_predictor(settings.replace(Config(), {"inference_file": name}), Identity())
