"""Every setting of a run: typed sections, presets, rules and the saved record.

Edit the defaults below, or override them on the command line: every field is one flag (`--stride 256`). Precedence is
defaults < `--config saved.json` < `--preset name` < flags. The defaults are the hand-bone competition's. This module
imports nothing slow: `--help` and `--print_config` must answer at once. engine/settings.py reads, replaces and checks.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

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


def _read_json(words: list[str]) -> Any:
    text = words[0]
    try:
        return json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except OSError as error:
        raise ValueError(f"{text[1:]} cannot be read ({error.strerror}): give JSON, or @ and a JSON file.") from None


def _as_json(value: Any) -> list[str]:
    return [value if isinstance(value, str) else json.dumps(value, default=dataclasses.asdict)]


AS_JSON = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON|@FILE",
    instance_from_str=_read_json,
    is_instance=lambda value: isinstance(value, (dict, list, tuple)),
    str_from_instance=_as_json,
)
"""A flag whose value is JSON, or @ and the name of a JSON file; engine/settings.py turns it into the field's type."""


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
    gpus: int = 1
    """GPUs of this machine, one process each; more than 1 starts the run through torchrun. On a CPU: processes."""
    resume: bool = False
    """Continue the experiment of this name from its newest whole state."""
    force_resume: bool = False
    """Resume although settings differ that change the network or the optimizer."""
    overwrite: bool = False
    """Replace an experiment of this name."""
    max_hours: float = 0.0
    """Stop after this time, saved and resumable (exit code 75); 0 is no limit."""
    eval_only: bool = False
    """Only validate the best checkpoint of this experiment, and predict the test split again."""
    debug: bool = False
    """Two steps of everything, through to the CSV."""
    deterministic: bool = False
    """Only GPU operations that give the same result every time; slower. On a CPU runs always repeat."""
    profile: int = 0
    """Time this many training steps (waiting for data, images a second, peak memory, chrome trace), and stop."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases: auto is online where a key is set and the network answers within 3 s, else off; 1 and 0 are
    online and off."""
    wandb_project: str = "bone-segmentation"
    """Project that its runs belong to there."""
    notify: str = ""
    """URL that gets a message (Slack's format) when the run starts, ends or fails."""


@dataclass(frozen=True)
class Data:
    data_root: Annotated[str, also("data_dir")] = "../data"
    """Folder of the data, such as the competition's train/DCM, train/outputs_json and test/DCM; see `layout`."""
    layout: Literal["auto", "competition", "pairs", "mask_per_class", "labelme"] = "auto"
    """How files lie in it: the competition's tree; an image and its mask (1.png and 1.png or 1_mask.png); a mask for
    each class (1-0.png, 1-1.png, …); a.jpg beside a.json. auto looks which one fits."""
    image_dir: str = "images"
    """Folder of the images in data_root or in its train, val and test; where there is none, they lie there directly."""
    mask_dir: str = "masks"
    """Folder of the masks, beside image_dir; where there is none, they lie with the images."""
    split_dir: str = "splits"
    """Folder in data_root with train.txt, val.txt and test.txt that list image names, instead of folders so called."""
    subject_pattern: str = ""
    """Regular expression that finds the subject in an image's path below its folder, as its first group: ^(p\\d+)_.
    Empty takes the first folder, else the name without _L or _R. The competition's subjects are its folders."""
    dataset_file: Annotated[str, also("dataset")] = "dataset.dataset_sliding"
    """Loader: dataset.dataset (OpenCV), dataset.dataset_dali or dataset.dataset_resident, with any of the switches
    _sliding _clahe _exclude _flip _crop _preprocessed behind it; `--list_datasets` has all."""
    classes: tuple[str, ...] = HAND_BONES
    """Class names in the order of the output channels and of the CSV; auto takes them from the labels or file names."""
    exclude: tuple[str, ...] = ()
    """Training images to leave out, as subject/stem (ID058/image1661392103627). The variant _exclude adds the
    competition's known bad labels."""
    n_folds: int = 5
    """Folds that the training subjects are cut into; both hands of a subject are always in one fold."""
    stratify: tuple[str, ...] = ()
    """Columns of meta_data.xlsx that every fold gets its share of: sex, age, height, weight, bent."""
    fold_file: str = ""
    """CSV of subject,fold: written where it does not exist yet, else read, so that it can be edited."""
    holdout: str = ""
    """Validates instead of a fold: a text file of subjects, subject/stem or image names, or a split of data_root beside
    train (val)."""
    fold: str = "0"
    """The fold that validates, 0 to n_folds - 1; all trains each fold and then scores and ensembles them; none trains
    on everything and validates nothing."""
    split_seed: int = 42
    """Seed of the folds, apart from `seed` so that runs with other seeds validate on the same subjects."""
    limit_train: int = 0
    """Train on the first so many images only; 0 takes all."""
    limit_val: int = 0
    """Validate on the first so many images only; 0 takes all."""
    overfit_batches: int = 0
    """Train on the images of so many batches only, without augmentation, and validate on the same; 0 is off."""
    pseudo: str = ""
    """Predicted labels that train too: a leaderboard CSV, a folder of masks as `save_masks` writes them, or the
    pseudo_stats CSV of scripts/predict_unet_small.py, whose plausible masks train."""
    pseudo_images: str = ""
    """Folder of their images; empty takes raw_unlabelled beside a pseudo_stats CSV, else the test split of
    data_root."""
    pseudo_weight: float = 0.5
    """Weight of a pseudo-labelled sample in the loss; a labelled one has 1."""
    pseudo_confidence: float = 0.0
    """Leave out pseudo-labelled images whose mean confidence is lower (sources that state one)."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keep decoded images as uint8: in memory, or in one file that workers, ranks and later runs share."""
    cache_dir: str = ""
    """Folder of the disk cache; empty takes <data_root>/cache."""
    preprocessed_dir: str = ""
    """Folder of the JPEG tree that scripts/preprocess_to_jpeg.py wrote; empty takes <data_root>/jpeg."""
    clahe_clip: float = 2.0
    """Clip limit of CLAHE (loaders with _clahe), in OpenCV's unit: multiples of a flat histogram's bin."""
    clahe_tiles: int = 8
    """Tiles of CLAHE along each side (loaders with _clahe)."""
    bad_image: Literal["error", "skip"] = "error"
    """What a file that can't be read does in training: stop the run, or be replaced by the next image, named once."""


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
    phantom_styles: tuple[str, ...] = ("competition",)
    """Looks that its subjects have, one each: competition, dr, cr, film, portable, child, old, oblique
    (docs/phantom.md). A style left out is held out."""
    phantom_sides: Literal["both", "right"] = "both"
    """right mirrors the left hands: for networks that are only shown right ones."""


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
    """Training windows per image and epoch (sliding loaders with random or balanced windows)."""
    window_mode: Literal["random", "grid", "balanced"] = "random"
    """Where training windows lie: anywhere, on the grid that inference uses, or around a random bone of each image."""


Range = tuple[float, float, float]
"""Lowest value, highest value, probability: with that probability a value is drawn evenly between the two."""

OFF: Range = (0.0, 0.0, 0.0)

AUGMENT_SETS: dict[str, dict[str, Range]] = {
    "none": {},
    "light": {
        "shift": (-0.05, 0.05, 1.0),
        "scale": (-0.1, 0.1, 1.0),
        "rotate": (-10.0, 10.0, 1.0),
        "brightness": (-0.1, 0.1, 1.0),
        "contrast": (-0.1, 0.1, 1.0),
        "gamma": (-0.2, 0.2, 1.0),
        "noise": (0.0, 0.02, 1.0),
    },
    "medium": {
        "shift": (-0.05, 0.05, 1.0),
        "scale": (-0.15, 0.15, 1.0),
        "rotate": (-20.0, 20.0, 1.0),
        "shear": (-5.0, 5.0, 0.3),
        "elastic": (0.002, 0.01, 0.2),
        "brightness": (-0.15, 0.15, 1.0),
        "contrast": (-0.2, 0.2, 1.0),
        "gamma": (-0.4, 0.4, 1.0),
        "clahe": (1.0, 3.0, 0.2),
        "low_resolution": (0.5, 0.9, 0.1),
        "blur": (0.5, 1.5, 0.1),
        "noise": (0.0, 0.04, 0.5),
        "coarse_dropout": (0.02, 0.1, 0.1),
    },
    "heavy": {
        "shift": (-0.1, 0.1, 1.0),
        "scale": (-0.3, 0.3, 1.0),
        "rotate": (-45.0, 45.0, 1.0),
        "shear": (-10.0, 10.0, 0.5),
        "resized_crop": (0.5, 1.0, 0.3),
        "hflip": (1.0, 1.0, 0.5),
        "vflip": (1.0, 1.0, 0.1),
        "elastic": (0.005, 0.02, 0.3),
        "grid_distortion": (0.1, 0.3, 0.2),
        "brightness": (-0.25, 0.25, 1.0),
        "contrast": (-0.4, 0.4, 1.0),
        "gamma": (-0.8, 0.8, 1.0),
        "clahe": (1.0, 4.0, 0.3),
        "retinex": (0.2, 0.6, 0.1),
        "edges": (0.1, 0.3, 0.1),
        "sharpen": (0.1, 0.5, 0.2),
        "low_resolution": (0.3, 0.9, 0.2),
        "blur": (0.5, 2.5, 0.2),
        "motion_blur": (3.0, 11.0, 0.1),
        "noise": (0.0, 0.08, 0.7),
        "coarse_dropout": (0.02, 0.15, 0.3),
    },
    "hand": {
        "shift": (-0.05, 0.05, 1.0),
        "scale": (-0.15, 0.15, 1.0),
        "rotate": (-30.0, 30.0, 0.7),
        "elastic": (0.002, 0.01, 0.2),
        "brightness": (-0.15, 0.15, 1.0),
        "contrast": (-0.3, 0.3, 1.0),
        "gamma": (-0.8, 0.8, 1.0),
        "clahe": (1.0, 3.0, 0.3),
        "noise": (0.0, 0.05, 1.0),
    },
}
"""Set name -> the augmentations that it turns on. hand is for radiographs of hands: wrists bend, the tones of machines
differ, and a hand is never mirrored, which would turn a left one into a right one."""


@dataclass(frozen=True)
class Augment:
    augment: Literal["none", "light", "medium", "heavy", "hand"] = "light"
    """Set of augmentations: gives all of the following their values, single ones may then be changed. Each has three
    numbers: lowest value, highest value, probability (0 turns it off)."""
    shift: Range = AUGMENT_SETS["light"]["shift"]
    """Shift along each axis, as a share of the image's long side (no effect where windows are cut out of an image)."""
    scale: Range = AUGMENT_SETS["light"]["scale"]
    """Relative change of size: 0.1 enlarges by a tenth."""
    rotate: Range = AUGMENT_SETS["light"]["rotate"]
    """Rotation, degrees clockwise."""
    shear: Range = OFF
    """Slant of the vertical edges, degrees."""
    resized_crop: Range = OFF
    """Crop of this share of the window's area, 3:4 to 4:3 in shape, resized to the window (Szegedy 2015,
    arXiv:1409.4842)."""
    hflip: Range = OFF
    """Horizontal flip; a flipped left hand looks like a right one. Its values have no effect, its probability has."""
    vflip: Range = OFF
    """Vertical flip; its values have no effect, its probability has."""
    elastic: Range = OFF
    """Elastic distortion: its root-mean-square displacement as a share of the window's side (Simard 2003)."""
    grid_distortion: Range = OFF
    """Distortion by a 5 x 5 grid: largest move of a grid line, as a share of its cell."""
    brightness: Range = AUGMENT_SETS["light"]["brightness"]
    """Addition to grey values, which run from 0 to 1."""
    contrast: Range = AUGMENT_SETS["light"]["contrast"]
    """Relative change of the distance from mid grey."""
    gamma: Range = AUGMENT_SETS["light"]["gamma"]
    """Logarithm (base 2) of the exponent: 1 squares grey values, -1 takes their root."""
    clahe: Range = OFF
    """Contrast-limited adaptive histogram equalisation of the window (Zuiderveld 1994): clip limit."""
    retinex: Range = OFF
    """Single-scale retinex (Jobson 1997): share that it has in the sum with the window."""
    edges: Range = OFF
    """Edge filter: share that the Sobel gradient's magnitude has in the sum with the window."""
    sharpen: Range = OFF
    """Share that the sharpened window has in the sum with the window."""
    low_resolution: Range = OFF
    """Shrink to this share of the resolution and enlarge again."""
    blur: Range = OFF
    """Gaussian blur: standard deviation, px of the window."""
    motion_blur: Range = OFF
    """Blur along a line of this length, px of the window, in a random direction."""
    noise: Range = AUGMENT_SETS["light"]["noise"]
    """Gaussian noise: standard deviation; grey values run from 0 to 1."""
    coarse_dropout: Range = OFF
    """Coarse dropout: side of up to 8 black boxes, as a share of the window's side; labels stay."""
    copy_paste: Range = OFF
    """Number of small bones of another image's window that are pasted over this one, with all labels under them
    (Ghiasi 2021, arXiv:2012.07177)."""
    mixup: Range = OFF
    """Sum with another image's window that has this share (Zhang 2018, arXiv:1710.09412); labels of both are kept,
    as bones overlap anyhow."""
    cutmix: Range = OFF
    """A box of this share of the area comes from another image's window, labels too (Yun 2019, arXiv:1905.04899)."""


@dataclass(frozen=True)
class Model:
    model_file: Annotated[str, also("model")] = "model.model_nnunet"
    """Network: module and variant, such as model.model_unet_resnet34; `--list_models` has all, `--describe_model` says
    what one costs and which of the options below it follows."""
    in_channels: int = 1
    """Channels that the network takes, 1 or 3; for 3 the grey image is repeated. Pretrained filters for 3 are summed
    for 1."""
    base_channels: int = 32
    """Channels of the first stage of networks that are written out; deeper stages double them."""
    dropout: float = 0.0
    """Share of features dropped while training; 0 is none."""
    norm: Literal["own", "batch", "group", "instance"] = "own"
    """Normalisation layers in place of the architecture's own; group and instance do not depend on the batch's size."""
    normalize: Literal["unit", "dataset", "imagenet", "image"] = "dataset"
    """Grey values that the network sees: 0 to 1; or minus mean over standard deviation of the competition's images, of
    ImageNet's, or of each image or window itself."""
    deep_supervision: bool = False
    """Train the coarser outputs of the decoder too, with weights 1, 1/2, 1/4, … over their sum."""
    grad_checkpoint: bool = False
    """Compute features again in the backward pass instead of keeping them: less memory, about a third more time."""
    pretrained: bool = False
    """Start the encoder from ImageNet weights; needs the network once."""
    init_from: str = ""
    """Start from the weights of a file: a checkpoint of ours, or a state dict of timm, SMP or nnU-Net. phantom takes
    those that come with the code, which know the bones of drawn hands (checkpoints/phantom)."""
    first_model: str = "model.model_simple_unet_quarter"
    """model_two_stage: network for the whole image."""
    first_size: int = 512
    """model_two_stage: long side, px, that the image is reduced to for the first network."""
    second_model: str = "model.model_simple_unet"
    """model_two_stage: network for the region of `second_classes`."""
    second_classes: tuple[str, ...] = HAND_BONES[19:27]
    """model_two_stage: classes that the second network draws, in the region where the first finds them."""
    second_share: float = 0.3
    """model_two_stage: side of that square region as a share of the image's long side."""
    second_size: int = 512
    """model_two_stage: side, px, at which the second network sees the region."""


@dataclass(frozen=True)
class Loss:
    loss: str = "Combined_Focal_Dice"
    """One term or a weighted sum of terms, Combined_A_B; `--list_losses` has all terms."""
    loss_weights: tuple[float, ...] = ()
    """One weight for each term of `loss`, in its order; empty weighs all by 1."""
    loss_schedule: tuple[str, ...] = ()
    """Other losses from an epoch on: EPOCH:LOSS or EPOCH:LOSS:WEIGHT,WEIGHT, such as 20:Combined_BCE_Dice:0.1,0.9; the
    first epoch is 0 and has `loss` unless an entry begins there."""
    class_weights: tuple[str, ...] = ()
    """Weights of classes in every term, such as Pisiform=2 Trapezoid=1.5; all others have 1."""
    focal_alpha: float = 0.25
    """Weight of foreground pixels in Focal, background has 1 - alpha (Lin et al. 2017, arXiv:1708.02002, eq. 5)."""
    focal_gamma: float = 2.0
    """Exponent that turns Focal away from easy pixels (same source)."""
    pos_weight: float = 1.0
    """Weight of foreground pixels in BCE."""
    label_smoothing: float = 0.0
    """BCE's targets are this far from 0 and 1: t (1 - s) + s / 2."""
    pixel_weight: Literal["none", "distance", "overlap"] = "none"
    """Pixels that weigh more in BCE: near any bone's outline (Ronneberger et al. 2015, arXiv:1505.04597, eq. 2, without
    its balance of classes), or where bones overlap."""
    pixel_weight_gain: float = 5.0
    """What they weigh above 1."""
    pixel_weight_sigma: float = 5.0
    """Standard deviation, px, of the weight across an outline."""
    dice_over: Literal["class", "sample", "batch"] = "class"
    """What Dice, Jaccard, Tversky and FocalTversky add up before they divide: each class over the batch; each class of
    each sample; or everything."""
    tversky_alpha: float = 0.3
    """Weight of false positives in Tversky (Salehi et al. 2017, arXiv:1706.05721, eq. 3)."""
    tversky_beta: float = 0.7
    """Weight of false negatives in Tversky (same source)."""
    focal_tversky_gamma: float = 4 / 3
    """FocalTversky is (1 - Tversky index)^(1 / gamma) (Abraham and Khan 2019, arXiv:1810.07842, eq. 3)."""


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
    encoder_lr: float = 1.0
    """Learning rate of the encoder as a multiple of `lr` (networks with an encoder of their own)."""
    freeze_encoder: int = 0
    """First epochs in which the encoder's weights stay as they are."""
    optimizer: str = "adamw"
    """Optimizer by timm's name: adamw, adam, sgd (Nesterov), adamp, lion, …; `--list_optimizers` has all."""
    momentum: float = 0.99
    """Momentum of those that have one (sgd; 0.99 is nnU-Net's)."""
    weight_decay: float = 1e-2
    """Weight decay as the optimizer understands it; biases and norms are spared."""
    scheduler: Literal[
        "CosineAnnealingLR",
        "CosineAnnealingWarmRestarts",
        "ReduceLROnPlateau",
        "StepLR",
        "MultiStepLR",
        "PolynomialLR",
        "OneCycleLR",
        "None",
    ] = "CosineAnnealingLR"
    """Course of the learning rate after warm-up, by torch's names; also spelt cosine, restarts, plateau, step,
    multistep, poly, onecycle, none."""
    scheduler_t_max: float = 0.0
    """Epochs of the cosine, or of its first period with restarts; 0 takes all that are left after the warm-up. A
    shorter cosine rises again, as torch's does."""
    scheduler_t_mult: int = 1
    """Each period of the restarts is this many times as long as the one before."""
    step_size: float = 10.0
    """Epochs between two drops of StepLR."""
    milestones: tuple[float, ...] = ()
    """Epochs at which MultiStepLR drops."""
    lr_gamma: float = 0.1
    """Factor of a drop (StepLR, MultiStepLR, ReduceLROnPlateau)."""
    plateau_patience: int = 3
    """Validations without a better Dice that ReduceLROnPlateau lets pass; it drops at the next."""
    poly_power: float = 0.9
    """Exponent of PolynomialLR."""
    onecycle_share: float = 0.3
    """Share of the steps in which OneCycleLR rises."""
    min_lr: float = 1e-6
    """Lowest learning rate (not of StepLR, MultiStepLR and OneCycleLR)."""
    use_warmup: bool = True
    """Begin with a linear warm-up (not OneCycleLR, which has its own)."""
    warmup_epochs: float = 1.0
    """Epochs of the warm-up."""
    warmup_min_lr: float = 1e-6
    """Learning rate at the first step of the warm-up."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights (0.999 a step, say), which is then validated and saved; 0
    keeps none."""
    swa_epochs: int = 0
    """Last epochs whose final weights are averaged (stochastic weight averaging), at the constant rate `swa_lr`."""
    swa_lr: float = 1e-5
    """Learning rate of these epochs (Izmailov et al. 2018, arXiv:1803.05407)."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    amp: bool = True
    """Half precision on GPUs: bfloat16 where the GPU has it, else float16 with a scaler."""
    amp_cpu: bool = False
    """bfloat16 on CPUs that have instructions for it (AVX-512 BF16, AMX); others run float32."""
    workers: Annotated[int, also("num_workers")] = 2
    """Loader processes; 0 loads in the training process."""
    compile: bool = False
    """Compile the network (torch.compile): minutes at the start, then faster on most GPUs."""
    auto_batch: bool = False
    """Where memory runs out, halve batch_size, double accumulate and go on."""
    bad_steps: int = 10
    """Steps in a row with a loss that is not finite before the run stops; single ones are left out."""
    val_interval: Annotated[int, also("val_every")] = 1
    """Epochs between validations; the last epoch always validates."""
    patience: int = 0
    """Stop after so many validations without a better Dice; 0 never does."""
    save_interval: int = 0
    """Keep the weights of every so many epochs (epoch_010.safetensors); 0 keeps none."""
    save_minutes: float = 10.0
    """Minutes between states saved within an epoch, for --resume."""
    keep_top: int = 0
    """Keep the weights of so many best validations (top_*.safetensors) beside the best one."""
    best_per_class: bool = False
    """Also keep the best weights for each class (best_<class>.safetensors)."""


@dataclass(frozen=True)
class Inference:
    inference_file: str = "inference.inference_sliding"
    """Style: inference.inference takes the whole image, _sliding blends windows, _mixed both, _tta adds views to
    windows (_tta_whole to the whole image), _ensemble takes `ensemble_models`, _kfold the folds of an experiment."""
    checkpoint: str = ""
    """Weights for the inference commands; empty takes best.safetensors of the experiment."""
    threshold: float = 0.5
    """Probability above which a pixel belongs to a class."""
    optimal_thresholds: Annotated[dict[str, float], AS_JSON] = field(default_factory=dict)
    """Thresholds of single classes, {"Pisiform": 0.4}; all others have `threshold`."""
    use_optimal_threshold: bool = False
    """Take the thresholds and the post-processing that inference/optimize.py has fitted for these weights."""
    blend: Literal["logits", "probs"] = "logits"
    """What overlapping windows and the views of test-time augmentation are averaged in."""
    metrics: tuple[str, ...] = ()
    """Further scores beside Dice: iou, precision, recall, accuracy, hausdorff, hausdorff95, surface_dice, confusion; or
    all."""
    surface_tolerance: float = 3.0
    """Distance, px of the image, within which surface_dice takes two outlines for the same."""
    resize_to: int = 0
    """Long side, px, for inference instead of image_size; 0 keeps image_size. Masks come back at each image's size."""
    full_size: bool = False
    """Take every image at its own size at inference, without resizing."""
    mixed_size: int = 0
    """Long side, px, of the reduced whole image that inference.inference_mixed blends with windows; 0 takes
    window_size."""
    mixed_share: float = 0.3
    """Weight of that whole image in the blend."""
    tta_mode: Literal["none", "flip", "flip_rotate", "full"] = "none"
    """Views whose predictions are averaged: flip is the image and its mirror image; flip_rotate all flips and rotations
    by 90 degrees; full these, tta_scales and tta_intensities. --use_tta is short for flip."""
    tta_scales: tuple[float, ...] = (0.9, 1.1)
    """Sizes of the further views of tta_mode full, relative to the image's."""
    tta_intensities: tuple[float, ...] = (0.9, 1.1)
    """Factors on the grey values of the further views of tta_mode full."""
    n_tta: int = 0
    """Take only so many views, the plain one first; 0 takes all."""
    tta_unseen: Literal["error", "skip", "allow"] = "error"
    """What happens with views that training never showed to the network: an error, left out, or used all the same."""
    find_hands: bool = False
    """Look for hands first, of any place, size, turn, side and polarity, and predict each upright, as a right one and
    bright on dark: for networks that were trained on such hands, on images of one's own. Says which hand it is, how it
    lies and how sure the network is of each bone (hands.csv), and where there is no hand."""
    split: Literal["test", "val"] = "test"
    """Images of data_root that the inference commands predict: the test split, or those that the weights were validated
    on (of several folds, each by the fold that has not seen them)."""
    input: str = ""
    """Image file or folder to predict; empty takes the split of data_root."""
    output: str = ""
    """Folder for the results; empty takes a new one inside the experiment's."""
    shard: str = ""
    """Predict one of several parts of the images, such as 2/4, into the same --output; whoever ends last merges all."""
    save_masks: Literal["none", "class", "packed"] = "none"
    """Also write masks: one PNG per class, or one .npz of packed words per image. The bare flag means class."""
    save_overlay: bool = False
    """Also write a picture with the outlines of all bones for each image."""
    save_probs: bool = False
    """Also write the probabilities, as bytes inside each bone's box: what inference/optimize.py fits on."""
    post_process: tuple[str, ...] = ()
    """Steps on the masks in this order: min_area=50 (or min_area=50,Pisiform=20), largest, fill_holes, open=2, close=2,
    hysteresis=0.3, one_bone (lists missing and split bones), convex, smooth=3, area_frac=0.001, cut_top=0.1,
    cut_bottom=0.1, or_largest."""


@dataclass(frozen=True)
class EnsembleMember:
    """One network of an ensemble, or all folds of one experiment."""

    path: str
    """Weights (.safetensors or .onnx), or an experiment's folder."""
    weight: float = 1.0
    """In the vote, relative to the other members'."""
    class_weights: dict[str, float] = field(default_factory=dict)
    """Weights of single classes, {"Pisiform": 2}; all others have `weight`."""
    inference_file: str = ""
    """Style of this member; empty takes its own."""
    dataset_file: str = ""
    """Loader whose preparation (_clahe, _crop, _flip) this member sees; empty takes its own."""


@dataclass(frozen=True)
class Ensemble:
    ensemble_models: Annotated[tuple[EnsembleMember, ...], AS_JSON] = ()
    """Members for inference.inference_ensemble: [{"path": "checkpoints/A", "weight": 2}, …], each with path, weight,
    class_weights, inference_file and dataset_file. Sizes and architectures may differ."""
    vote: Literal["soft", "hard", "logit"] = "soft"
    """Members' weighted mean of probabilities (the counterpart for masks of weighted boxes fusion), of masks (each with
    its own threshold), or of logits."""
    vote_threshold: float = 0.0
    """vote hard: share of the members' weight that a pixel needs, 0.6 for 3 of 5; 0 is more than half."""
    ensemble_use_optimization: bool = False
    """Take the weights, thresholds and post-processing that inference/optimize.py has fitted for these members."""
    ensemble_weight_method: Literal["equal", "global", "class", "best"] = "class"
    """Weights that optimize.py fits: none, one a member, one a member and class, or the best member of each class."""
    ensemble_optim_metric: Literal["soft_dice", "dice"] = "dice"
    """What it fits them by: Dice of the probabilities, or of the masks at 0.5."""
    force_optimal: tuple[str, ...] = ()
    """What optimize.py shall use though it is no better than its noise: members, weights, threshold, class_thresholds,
    post_process."""


BEST = "best.safetensors"
"""The best weights in an experiment's folder."""
SHIPPED = Path(__file__).parent / "checkpoints" / "phantom" / BEST
"""Weights that come with the code: trained on drawn hands, for radiographs of any hand (checkpoints/phantom)."""


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
    ensemble: Ensemble = field(default_factory=Ensemble)

    @property
    def folder(self) -> Path:
        """Everything that the experiment writes lies here."""
        return Path(self.run.output_dir) / self.run.exp_name

    @property
    def first_weights(self) -> Path | None:
        """The file that `init_from` names."""
        chosen = self.model.init_from
        return (SHIPPED if chosen == "phantom" else Path(chosen)) if chosen else None

    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of all settings."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:12]


VALUE_ALIASES: dict[str, dict[str, str]] = {
    "scheduler": {
        "cosine": "CosineAnnealingLR",
        "restarts": "CosineAnnealingWarmRestarts",
        "plateau": "ReduceLROnPlateau",
        "step": "StepLR",
        "multistep": "MultiStepLR",
        "poly": "PolynomialLR",
        "polynomial": "PolynomialLR",
        "onecycle": "OneCycleLR",
    },
    "wandb": {"1": "online", "0": "off"},
}
"""Field -> short spelling -> value."""
SHORT_FLAGS: dict[str, tuple[str, str]] = {
    "cpu": ("--device", "cpu"),
    "use_tta": ("--tta_mode", "flip"),
    "use_sliding_window": ("--inference_file", "inference.inference_sliding"),
}
"""Flag without a value -> the flag and value that it stands for."""
BARE_VALUES: dict[str, str] = {"save_masks": "class", "status": "*"}
"""Field -> what its flag means without a value."""


def suggest(name: str, known: Any) -> str:
    """` (did you mean …?)` where something known is near, else nothing."""
    folded = {str(k).casefold(): str(k) for k in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(folded[n] for n in near)}?)" if near else ""


def loss_terms(name: str) -> list[str]:
    """The terms of a loss name: `Combined_Focal_Dice`, `focal_dice` -> Focal, Dice as written; `BCE` -> BCE."""
    parts = name.split("_")
    return parts[1:] if parts[0].casefold() == "combined" else parts
