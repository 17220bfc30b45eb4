"""Every setting of a run: typed sections, presets, rules and the saved record.

Edit the defaults below, or override them on the command line: every field is one flag (`--stride 256`). Precedence is
defaults < `--config saved.json` < `--preset name` < flags. The defaults are the hand-bone competition's. This module
imports nothing slow: `--help` and `--print_config` must answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

HAND_BONES: tuple[str, ...] = (
    *(f"finger-{i}" for i in range(1, 20)),
    *("Trapezium", "Trapezoid", "Capitate", "Hamate", "Scaphoid", "Lunate", "Triquetrum", "Pisiform", "Radius", "Ulna"),
)
"""The competition's 29 classes in the order of its CSV: the thumb is finger-1 to 3, then each finger tip first."""


class ConfigProblem(ValueError):
    """Settings that cannot work. The message names each field, its value, the rule and the remedy."""


def also(*names: str) -> Any:
    """Other spellings of a flag, listed in --help."""
    return tyro.conf.arg(aliases=tuple(f"--{name}" for name in names))


@dataclass(frozen=True)
class Run:
    exp_name: str = "baseline"
    """Name of the experiment; everything it writes lies in <output_dir>/<exp_name>."""
    output_dir: Annotated[str, also("saved_dir")] = "checkpoints"
    """Folder of all experiments."""
    seed: int = 42
    """Every random choice of the run follows from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    resume: bool = False
    """Continue the experiment of this name from its last checkpoint."""
    overwrite: bool = False
    """Replace an experiment of this name."""


@dataclass(frozen=True)
class Data:
    data_root: Annotated[str, also("data_dir")] = "../data"
    """Folder of the competition tree: train/DCM, train/outputs_json, test/DCM."""
    dataset_file: Annotated[str, also("dataset")] = "dataset.dataset_sliding"
    """Loader: dataset.dataset reads whole images, dataset.dataset_sliding windows; `--list_datasets` has all."""
    classes: tuple[str, ...] = HAND_BONES
    """Class names in the order of the output channels and of the CSV."""
    exclude: tuple[str, ...] = ()
    """Training images to leave out, as subject/stem (ID058/image1661392103627). The variant _exclude adds the
    competition's known bad labels."""
    n_folds: int = 5
    """Folds that the training subjects are cut into; both hands of a subject are always in one fold."""
    fold: int = 0
    """The fold that validates, 0 to n_folds - 1."""
    split_seed: int = 42
    """Seed of the folds, apart from `seed` so that runs with other seeds validate on the same subjects."""


@dataclass(frozen=True)
class Phantom:
    phantom: bool = False
    """Draw a phantom data set at data_root first, unless the same set lies there already."""
    phantom_train: int = 60
    """Subjects (two hands each) of the phantom's train split."""
    phantom_test: int = 10
    """Subjects of the phantom's test split; 55 % of them have bent wrists, against 12 % in train."""
    phantom_size: int = 512
    """Height and width of the phantom's images, px (128 to 2048)."""
    phantom_seed: int = 1
    """Seed of the phantom set."""


@dataclass(frozen=True)
class Window:
    image_size: Annotated[int, also("resize_size")] = 2048
    """Long side, px, that an image is resized to before the network or the windows (aspect kept)."""
    window_size: Annotated[int, also("patch_size")] = 1024
    """Side of a training or inference window, px of the resized image."""
    stride: int = 512
    """Step between inference windows, px."""
    use_gaussian_sliding: bool = True
    """Blend windows by a Gaussian; without it all pixels of a window weigh the same."""
    gaussian_sigma: float = 0.3
    """Standard deviation of that Gaussian as a share of window_size."""
    window_batch: int = 4
    """Windows that go through the network together at inference."""
    windows_per_image: int = 4
    """Random training windows per image and epoch (sliding loaders)."""


@dataclass(frozen=True)
class Augment:
    rotate: float = 10.0
    """Largest rotation either way, degrees."""
    scale: float = 0.1
    """Largest relative change of size either way."""
    shift: float = 0.05
    """Largest shift either way, as a share of the resized image's long side (whole-image loaders)."""
    flip: float = 0.0
    """Probability of a horizontal flip; a flipped left hand looks like a right one."""
    brightness: float = 0.1
    """Largest addition either way; grey values run from 0 to 1."""
    contrast: float = 0.1
    """Largest relative change of contrast either way."""
    gamma: float = 0.2
    """Largest change of the logarithm (base 2) of gamma either way."""
    noise: float = 0.02
    """Largest standard deviation of added Gaussian noise; grey values run from 0 to 1."""


@dataclass(frozen=True)
class Model:
    model_file: Annotated[str, also("model")] = "model.model_nnunet"
    """Network: module and variant, such as model.model_unet_resnet34; `--list_models` has all."""
    base_channels: int = 32
    """Channels of the first stage (model_simple_unet and model_nnunet); deeper stages double them."""
    dropout: float = 0.0
    """Share of decoder features dropped while training (model_simple_unet, model_nnunet); 0 is none."""
    pretrained: bool = False
    """Start the encoder from ImageNet weights (model_unet, model_deeplabv3plus); needs the network once."""


@dataclass(frozen=True)
class Loss:
    loss: str = "Combined_Focal_Dice"
    """One term (BCE, Focal, Dice) or a weighted sum of terms, Combined_A_B; `--list_losses` has all terms."""
    loss_weights: tuple[float, ...] = ()
    """One weight for each term of `loss`, in its order; empty weighs all by 1."""
    focal_alpha: float = 0.25
    """Weight of foreground pixels in Focal, background has 1 - alpha (Lin et al. 2017, arXiv:1708.02002, eq. 5)."""
    focal_gamma: float = 2.0
    """Exponent that turns Focal away from easy pixels (same source)."""


@dataclass(frozen=True)
class Train:
    epoch: Annotated[int, also("epochs")] = 50
    """Passes over the training images."""
    batch_size: int = 2
    """Samples of one step."""
    accumulate: int = 1
    """Steps whose gradients are added up before the weights change."""
    lr: Annotated[float, also("learning_rate")] = 1e-4
    """Learning rate at its peak."""
    optimizer: Literal["AdamW", "Adam", "SGD"] = "AdamW"
    """Optimizer (torch's; SGD has Nesterov momentum 0.99 as in nnU-Net)."""
    weight_decay: float = 1e-2
    """Decoupled weight decay of AdamW, L2 penalty of the others."""
    scheduler: Literal["CosineAnnealingLR", "None"] = "CosineAnnealingLR"
    """Course of the learning rate after warm-up, step by step; also spelt cosine."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up; 0 is none."""
    warmup_min_lr: float = 1e-6
    """Learning rate at the first step of the warm-up."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    amp: bool = True
    """Half precision on GPUs (bfloat16 where the GPU has it, else float16 with a scaler); CPUs run float32."""
    workers: Annotated[int, also("num_workers")] = 2
    """Loader processes; 0 loads in the training process."""
    val_interval: Annotated[int, also("val_every")] = 1
    """Epochs between validations; the last epoch always validates."""


@dataclass(frozen=True)
class Inference:
    inference_file: str = "inference.inference_sliding"
    """Style: inference.inference takes the whole image, inference.inference_sliding blends windows."""
    checkpoint: str = ""
    """Weights for the inference commands; empty takes best.safetensors of the experiment."""
    threshold: float = 0.5
    """Probability above which a pixel belongs to a class."""
    resize_to: int = 0
    """Long side, px, for inference instead of image_size; 0 keeps image_size. Masks come back at each image's size."""
    input: str = ""
    """Image file or folder to predict; empty takes the test split of data_root."""
    output: str = ""
    """Folder for the results; empty takes a new one inside the experiment's."""
    save_masks: Literal["none", "class", "packed"] = "none"
    """Also write masks: one PNG per class, or one .npz of packed words per image. The bare flag means class."""
    save_overlay: bool = False
    """Also write a picture with the outlines of all bones for each image."""


@dataclass(frozen=True)
class Config:
    """Settings of one run; field names are unique over all sections."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    phantom: Phantom = field(default_factory=Phantom)
    window: Window = field(default_factory=Window)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    inference: Inference = field(default_factory=Inference)

    @property
    def folder(self) -> Path:
        """Everything that the experiment writes lies here."""
        return Path(self.run.output_dir) / self.run.exp_name

    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of all settings."""
        return hashlib.sha256(json.dumps(to_record(self), sort_keys=True).encode()).hexdigest()[:12]


SECTIONS: dict[str, type] = get_type_hints(Config)
SECTION_OF: dict[str, str] = {f.name: section for section, kind in SECTIONS.items() for f in fields(kind)}
"""Field name -> the section that holds it."""
TYPE_OF: dict[str, Any] = {
    name: hint for kind in SECTIONS.values() for name, hint in get_type_hints(kind, include_extras=False).items()
}
"""Field name -> its type, without the flag's other spellings."""

LIGHT: dict[str, Any] = {
    "model_file": "model.model_simple_unet_quarter",
    "loss": "Combined_BCE_Dice",
    "batch_size": 8,
    "windows_per_image": 1,
    "warmup_epochs": 0.5,
    "workers": 0,
    "rotate": 15.0,
    "scale": 0.15,
    "brightness": 0.15,
    "contrast": 0.3,
    "gamma": 0.8,
    "noise": 0.05,
}
"""What trains in minutes on two CPU cores. Loading in the training process: a worker would take a core from it. Strong
changes of grey values, for radiographs of other machines."""

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "exp_name": "demo",
        "phantom": True,
        "data_root": "data/phantom_demo",
        "phantom_train": 200,
        "phantom_test": 20,
        "n_folds": 10,
        **LIGHT,
        "image_size": 320,
        "window_size": 256,
        "stride": 64,
        "base_channels": 32,
        "lr": 4e-3,
        "epoch": 12,
        "val_interval": 3,
    },
    "smoke": {
        "exp_name": "smoke",
        "phantom": True,
        "data_root": "data/phantom_smoke",
        "phantom_train": 40,
        "phantom_test": 4,
        "phantom_size": 256,
        "n_folds": 10,
        **LIGHT,
        "image_size": 160,
        "window_size": 128,
        "stride": 32,
        "base_channels": 16,
        "lr": 4e-3,
        "epoch": 32,
        "val_interval": 16,
    },
}
"""Preset name -> the fields that differ from the defaults."""

VALUE_ALIASES: dict[str, dict[str, str]] = {"scheduler": {"cosine": "CosineAnnealingLR"}}
"""Field -> short spelling -> value."""
BARE_VALUES: dict[str, str] = {"save_masks": "class"}
"""Field -> what its flag means without a value."""

LIMITS: dict[str, tuple[float, float]] = {
    "n_folds": (2, 100),
    "phantom_train": (2, 10000),
    "phantom_test": (1, 10000),
    "phantom_size": (128, 2048),
    "image_size": (32, 16384),
    "window_size": (32, 8192),
    "stride": (1, 8192),
    "gaussian_sigma": (0.01, 10),
    "window_batch": (1, 4096),
    "windows_per_image": (1, 4096),
    "rotate": (0, 180),
    "scale": (0, 0.9),
    "shift": (0, 1),
    "flip": (0, 1),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "gamma": (0, 3),
    "noise": (0, 1),
    "base_channels": (1, 1024),
    "dropout": (0, 0.95),
    "focal_alpha": (0, 1),
    "focal_gamma": (0, 10),
    "epoch": (1, 100000),
    "batch_size": (1, 4096),
    "accumulate": (1, 4096),
    "lr": (1e-9, 10),
    "weight_decay": (0, 10),
    "min_lr": (0, 10),
    "warmup_epochs": (0, 100000),
    "warmup_min_lr": (0, 10),
    "grad_clip": (0, 1e9),
    "workers": (0, 256),
    "val_interval": (1, 100000),
    "threshold": (0.001, 0.999),
    "resize_to": (0, 16384),
    "seed": (0, 2**63 - 1),
    "split_seed": (0, 2**32 - 1),
    "phantom_seed": (0, 2**32 - 1),
}
"""Field -> smallest and largest value."""


def get(cfg: Config, name: str) -> Any:
    """The value of a field by its flat name."""
    return getattr(getattr(cfg, SECTION_OF[name]), name)


def replace(cfg: Config, values: Mapping[str, Any]) -> Config:
    """A copy with `values` (flat field name -> value); each is checked against the field's type.

    Raises:
        ConfigProblem: unknown names (with the nearest ones) and values of another type, all at once.
    """
    problems: list[str] = []
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in SECTION_OF:
            problems.append(f"unknown field {name!r}{suggest(name, SECTION_OF)}")
            continue
        try:
            changes.setdefault(SECTION_OF[name], {})[name] = coerce(name, value)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigProblem("; ".join(problems) + ".")
    sections = {section: dataclasses.replace(getattr(cfg, section), **c) for section, c in changes.items()}
    return dataclasses.replace(cfg, **sections)


def coerce(name: str, value: Any) -> Any:
    """`value` as the type of field `name`: JSON lists become tuples, whole numbers floats, values lose their case."""
    kind = TYPE_OF[name]
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if isinstance(value, (list, tuple)) and all(_is(v, item) for v in value):
            return tuple(item(v) for v in value)
        raise ValueError(f"{name}: {value!r} is not a list of {item.__name__}")
    if get_origin(kind) is Literal:
        match = canonical(name, value) if isinstance(value, str) else value
        if match in get_args(kind):
            return match
        choices = ", ".join(map(str, get_args(kind)))
        raise ValueError(f"{name}: {value!r} is none of {choices}{suggest(str(value), get_args(kind))}")
    if not _is(value, kind):
        raise ValueError(f"{name}: {value!r} is not of type {kind.__name__}")
    return kind(value)


def canonical(name: str, text: str) -> str:
    """The value of a closed set that `text` means, whatever its case; `text` itself where there is none."""
    known = {str(choice).casefold(): str(choice) for choice in get_args(TYPE_OF[name])}
    known |= VALUE_ALIASES.get(name, {})
    return known.get(text.casefold(), text)


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def suggest(name: str, known: Any) -> str:
    """` (did you mean …?)` where something known is near, else nothing."""
    folded = {str(k).casefold(): str(k) for k in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(folded[n] for n in near)}?)" if near else ""


def to_record(cfg: Config) -> dict[str, dict[str, Any]]:
    """Plain JSON values by section, as config.json and every checkpoint hold them."""
    record: dict[str, dict[str, Any]] = json.loads(json.dumps(dataclasses.asdict(cfg)))
    return record


def from_record(record: Any, where: str, base: Config | None = None) -> tuple[Config, set[str]]:
    """Settings from a saved record (by section, or flat) on top of `base`, and the names of the fields it sets.

    Raises:
        ConfigProblem: not a JSON object, unknown keys, values of another type; the message begins with `where`.
    """
    if not isinstance(record, dict):
        raise ConfigProblem(f"{where}: expected a JSON object of settings, found {type(record).__name__}.")
    flat: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in record.items():
        if key in SECTIONS and isinstance(value, dict):
            flat |= value
        elif key in SECTION_OF:
            flat[key] = value
        elif key in SECTIONS:
            problems.append(f"{key}: {value!r} is no JSON object of settings")
        else:
            problems.append(f"unknown key {key!r}{suggest(key, [*SECTIONS, *SECTION_OF])}")
    try:
        cfg = replace(base or Config(), flat)
    except ConfigProblem as error:
        problems.append(str(error).removesuffix("."))
    if problems:
        raise ConfigProblem(f"{where}: {'; '.join(problems)}.")
    return cfg, set(flat)


def loss_terms(name: str) -> list[str]:
    """The terms of a loss name: `Combined_Focal_Dice`, `focal_dice` -> Focal, Dice as written; `BCE` -> BCE."""
    parts = name.split("_")
    return parts[1:] if parts[0].casefold() == "combined" else parts


def check(cfg: Config) -> None:
    """Check the limits of every field and the rules between them.

    Raises:
        ConfigProblem: one line for each broken rule, all at once.
    """
    broken = [
        f"{name} is {get(cfg, name)}, but must lie between {low:g} and {high:g}."
        for name, (low, high) in LIMITS.items()
        if not low <= get(cfg, name) <= high
    ]
    run, data, window, loss, train = cfg.run, cfg.data, cfg.window, cfg.loss, cfg.train
    terms = loss_terms(loss.loss)
    rules = [
        (
            not run.exp_name or run.exp_name.startswith(".") or any(c in run.exp_name for c in '/\\:*?"<>|\0'),
            f"exp_name is {run.exp_name!r}, but names a folder: use letters, digits, '_', '-' and '.', not first '.'.",
        ),
        (run.resume and run.overwrite, "resume and overwrite contradict each other: give one of them."),
        (
            not 0 <= data.fold < data.n_folds,
            f"fold is {data.fold}, but n_folds {data.n_folds} has folds 0 to {data.n_folds - 1}.",
        ),
        (not data.classes, "classes is empty: name at least one class."),
        (len(set(data.classes)) < len(data.classes), f"classes has a name twice: {', '.join(data.classes)}."),
        (
            window.stride > window.window_size,
            f"stride {window.stride} is larger than window_size {window.window_size}, so pixels between windows would "
            f"have no prediction: lower --stride or raise --window_size.",
        ),
        (
            window.window_size > window.image_size,
            f"window_size {window.window_size} is larger than image_size {window.image_size}: lower --window_size or "
            f"raise --image_size.",
        ),
        (not all(terms) or not terms, f"loss {loss.loss!r} names no term: combine terms as in Combined_Focal_Dice."),
        (
            bool(loss.loss_weights) and len(loss.loss_weights) != len(terms),
            f"loss_weights has {len(loss.loss_weights)} values, but {loss.loss} has {len(terms)} terms "
            f"({', '.join(terms)}): give one weight for each.",
        ),
        (
            bool(loss.loss_weights) and not (min(loss.loss_weights) >= 0 and 0 < sum(loss.loss_weights) < math.inf),
            f"loss_weights {loss.loss_weights} must be finite numbers, not negative and not all 0.",
        ),
        (
            train.warmup_epochs > train.epoch,
            f"warmup_epochs {train.warmup_epochs:g} is more than epoch {train.epoch}: lower --warmup_epochs.",
        ),
        (
            train.min_lr > train.lr or train.warmup_min_lr > train.lr,
            f"min_lr {train.min_lr:g} and warmup_min_lr {train.warmup_min_lr:g} must not exceed lr {train.lr:g}.",
        ),
    ]
    broken += [sentence for wrong, sentence in rules if wrong]
    if broken:
        raise ConfigProblem("\n".join(broken))
