"""inference/ensemble.py: votes of members whose answers are known, on one grid whatever they look at."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import Tensor, nn

from config import Config
from engine import settings
from engine.bits import unpack
from engine.files import FileProblem
from inference.build import single
from inference.ensemble import Ensemble, Member, Vote
from inference.forward import Forward
from inference.masks import Packed
from inference.predictor import Predictor, Sliding, Whole

CLASSES = ("a", "b", "c")


class Filter(nn.Module):
    """A random linear filter of the pixel's grey value alone: logits of either sign."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.gain = nn.Parameter(6 * torch.randn((1, 3, 1, 1), generator=generator))
        self.offset = nn.Parameter(torch.randn((1, 3, 1, 1), generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) * self.gain + self.offset


def cfg_of(**values: Any) -> Config:
    small = {"classes": CLASSES, "image_size": 64, "window_size": 32, "stride": 16}
    return settings.replace(Config(), {**small, **values})


def member(seed: int, blend: Literal["logits", "probs"] = "logits", **values: Any) -> Member:
    cfg, network = cfg_of(blend=blend, **values), Filter(seed)
    forward = Forward(network, blend=blend)
    predictor: Predictor = Sliding(forward, 32, 16, 0.3) if seed % 2 else Whole(forward, 64)
    return Member(predictor, network, cfg)


def picture(height: int = 64, width: int = 64, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def maps(ensemble: Ensemble, image: Any) -> Tensor:
    return torch.cat([band.clone() for band in ensemble.bands(ensemble.prepare(image), "cpu")], 1)


def masks(ensemble: Ensemble, image: Any) -> Tensor:
    target = Packed(*image.shape, ensemble.limits("cpu"))
    for band in ensemble.bands(ensemble.prepare(image), "cpu"):
        target.add(band)
    return unpack(torch.from_numpy(target.result())[None], 3)[0]


def alone(each: Member, image: Any) -> Tensor:
    return maps(Ensemble([each], [0.5] * 3), image).double()


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("blends", [("logits", "logits", "logits"), ("probs", "logits", "probs")])
@pytest.mark.parametrize("vote", ["soft", "logit", "hard"])
def test_streaming_equals_the_stack_in_float64(vote: Vote, blends: Any, in_turn: bool) -> None:
    """Members of three sizes; per-class weights; an image that none of the frames fits."""
    image = picture(50, 90)
    looks = zip(blends, (64, 80, 150), strict=True)
    members = [member(k, blend, image_size=size) for k, (blend, size) in enumerate(looks)]
    weights = np.array([[1, 0, 2], [1, 3, 0.5], [2, 1, 1.0]])
    thresholds = [0.5, 0.3, 0.8]
    ensemble = Ensemble(members, thresholds, weights=weights, vote=vote, in_turn=in_turn)
    stack = torch.stack([alone(each, image) for each in members])
    logits = torch.stack(
        [part if blend == "logits" else torch.logit(part, eps=1e-6) for part, blend in zip(stack, blends, strict=True)]
    )
    share = torch.from_numpy(weights / weights.sum(0))[:, :, None, None]
    limit = torch.tensor(thresholds)[:, None, None]
    if vote == "soft":
        expected, cut = (share * logits.sigmoid()).sum(0), limit
    elif vote == "logit":
        expected, cut = (share * logits).sum(0), torch.logit(limit)
    else:
        expected, cut = (share * (logits.sigmoid() > limit)).sum(0), torch.full_like(limit, 0.5)
    tolerance = (2e-2 if vote == "logit" else 2e-3) if in_turn else 1e-4  # float32 knows 1 - p to 1e-7
    near = (expected - cut).abs() < tolerance
    assert maps(ensemble, image).shape == (3, 50, 90)
    assert (maps(ensemble, image).double() - expected).abs().max() < tolerance
    differ = masks(ensemble, image) != (expected > cut)
    assert not (differ & ~near).any()
    assert near.float().mean() < (0.5 if vote == "hard" else 0.05), "the test would not see a difference otherwise"


@pytest.mark.parametrize("vote", ["soft", "logit", "hard"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_equal_members_equal_one(vote: Vote, count: int) -> None:
    image = picture()
    one = masks(Ensemble([member(1)], [0.5, 0.4, 0.7]), image)
    same = [member(1) for _ in range(count)]
    assert torch.equal(masks(Ensemble(same, [0.5, 0.4, 0.7], vote=vote), image), one)


@pytest.mark.parametrize("vote", ["soft", "logit", "hard"])
def test_the_order_of_members_changes_nothing(vote: Vote) -> None:
    image, weights = picture(50, 90), np.array([[1, 0, 2], [1, 3, 0.5], [2, 1, 1.0]])
    members = [member(k, image_size=size) for k, size in enumerate((64, 80, 150))]
    expected = maps(Ensemble(members, [0.5] * 3, weights=weights, vote=vote), image)
    for order in ([2, 0, 1], [1, 2, 0], [2, 1, 0]):
        found = Ensemble([members[k] for k in order], [0.5] * 3, weights=weights[order], vote=vote)
        torch.testing.assert_close(maps(found, image), expected, atol=1e-5, rtol=0)


def test_a_member_without_weight_has_no_voice() -> None:
    image = picture()
    both = Ensemble([member(1), member(2)], [0.5] * 3, weights=np.array([[0, 1, 0], [1, 0, 1.0]]))
    first, second = (masks(Ensemble([member(k)], [0.5] * 3), image) for k in (1, 2))
    assert torch.equal(masks(both, image), torch.stack([second[0], first[1], second[2]]))
    assert not torch.equal(first, second)


@limits(derandomize=True, max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 99))
def test_hard_votes_need_their_share(count: int, needed: int, seed: int) -> None:
    """k of n exactly; without a share more than half."""
    image = picture(8, 8, seed)
    members = [member(k) for k in range(count)]
    votes = torch.stack([masks(Ensemble([each], [0.5] * 3), image) for each in members]).sum(0)
    found = masks(Ensemble(members, [0.5] * 3, vote="hard", vote_threshold=min(needed, count) / count), image)
    assert torch.equal(found, votes >= min(needed, count) if needed else 2 * votes > count)


def test_a_tie_is_no_majority() -> None:
    image = picture()
    first, second = (masks(Ensemble([member(k)], [0.5] * 3), image) for k in (1, 3))
    assert torch.equal(masks(Ensemble([member(1), member(3)], [0.5] * 3, vote="hard"), image), first & second)
    assert (first ^ second).any()


def test_what_members_see_alike_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    prepare = Member.prepare
    monkeypatch.setattr(Member, "prepare", lambda self, image: (calls.append(self), prepare(self, image))[1])
    clahe = {"dataset_file": "dataset.dataset_sliding_clahe"}
    members = [member(1), member(3), member(1, image_size=80), member(5, **clahe), member(7, **clahe)]
    prepared = Ensemble(members, [0.5] * 3).prepare(picture())
    assert calls == [members[0], members[2], members[3]]
    assert prepared[0] is prepared[1] and prepared[3] is prepared[4]
    assert not np.array_equal(prepared[0].grey, prepared[3].grey)


def test_full_size_looks_at_images_as_they_are() -> None:
    cfg = cfg_of(full_size=True, inference_file="inference.inference")
    ensemble = single(cfg, Filter(0))
    for shape in ((40, 90), (200, 100)):
        image = picture(*shape)
        (prepared,) = ensemble.prepare(image)
        assert prepared.frame.frame_height, prepared.frame.frame_width == shape
        np.testing.assert_array_equal(prepared.grey, image)
        grey = torch.from_numpy(image)[None, None].float() / 255
        with torch.no_grad():
            torch.testing.assert_close(maps(ensemble, image), Filter(0)(grey)[0])


def test_thresholds_of_single_classes() -> None:
    cfg = cfg_of(threshold=0.4, optimal_thresholds={"b": 0.9})
    assert single(cfg, Filter(0)).thresholds == (0.4, 0.9, 0.4)


def test_without_memory_for_all_members_they_come_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    ensemble = Ensemble([member(1), member(3)], [0.5] * 3)
    image = picture()
    together = masks(ensemble, image)
    ensemble.step_down(torch.OutOfMemoryError("x"))
    assert ensemble.in_turn and "one after the other" in capsys.readouterr().out
    differ = masks(ensemble, image) != together
    assert differ.float().mean() < 0.01, "half precision moves probabilities by a two-thousandth"
    with pytest.raises(FileProblem, match=r"Memory ran out with a single window .*--window_size"):
        ensemble.step_down(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(FileProblem, match="Memory ran out"):
        Ensemble([member(1)], [0.5] * 3).step_down(torch.OutOfMemoryError("x"))
