"""What a run is told: typed settings, checked for all that needs no data, no device and no other process.

``job.command_line`` makes them of a YAML file and a command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from job.config.bounds import MANY, MOST_THREADS, number, path, settings_of, url
from job.config.errors import UserError

_ABOVE = Path(__file__).resolve().parents[2]
REPOSITORY = _ABOVE if (_ABOVE / "configs").is_dir() else Path.cwd()
"""the checkout; for a package that was installed without one, the current directory"""

MAY_CHANGE = {"may_change": True}
"""mark of a setting, or of a whole section, that a run may be continued with another value of"""
NO_RECIPE = {"no_recipe": True}
"""mark of a setting, or of a whole section, in which repetitions of one experiment may differ"""


Augmentation = Literal["flip", "crop", "resized_crop", "rotate", "color", "erasing"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which network, and where its weights come from."""

    name: str = "simple_cnn"
    """simple_cnn, vgg16, any other image classifier of torchvision, such as resnet18, or timm/NAME where timm is"""
    weights: str | None = path(None)
    """null (random), "imagenet" (its library's own), or a state dict's path (.safetensors or .pth)"""
    freeze: Literal["backbone"] | list[str] | None = None
    """what is not trained: null (nothing), "backbone" (all but the last layer), or a list of layers' names"""
    features_once: bool = False
    """VGG at 32 to 63 pixels: the first fully connected layer gets each feature once and learns as fast as the others;
    torchvision's gets each 49 times over and learns 49 times as fast (the weights file has torchvision's layout)"""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, and how they reach the network."""

    source: Literal["cifar10", "folder", "shapes10"] = "cifar10"
    """cifar10, folder (root/train/<class>/*, with val/ and test/ or without, or an archive), or embedded shapes10"""
    root: str = path("data", **MAY_CHANGE, **NO_RECIPE)
    """where the source lies: a directory, or for "folder" also a .tar, .tar.gz, .tar.xz or .zip"""
    labels: str | None = path(None, **MAY_CHANGE, **NO_RECIPE)
    """table (CSV) that says what the images of "folder" are, in root or anywhere: columns path, label, and if need be
    split and group"""
    validation: float = number(0.2, 0, 1.0)
    """share of the training images held out for validation, from 0 up to but not including 1; where "folder" has
    validation images of its own, these are taken"""
    test: float = number(0.2, 0, 1.0)
    """share of all images held out for the test where "folder" has neither test nor validation images of its own"""
    hold_out: Literal["random", "stratified", "grouped"] = "random"
    """how: random; stratified (of each class its share, one image at least); grouped (no group of labels is parted)"""
    image_size: int = number(32, 8, 1025)
    """height and width in pixels that images of the "folder" source are resized to"""
    resize: Literal["squeeze", "crop", "pad"] = "squeeze"
    """how images that are not square become so: squeeze (both sides to image_size), crop (the shorter side, and of the
    longer the middle is kept), pad (the longer side, and black to both sides of the shorter)"""
    augment: list[Augmentation] = field(default_factory=list)
    """what is done at random to training images, in whatever order it is named: flip (mirrored), crop (shifted by up to
    4 pixels at 32, in proportion elsewhere), resized_crop (a box of 8% to all of it, enlarged), rotate (by up to 15
    degrees), color (contrast, brightness and saturation by up to 40%), erasing (a box of 2% to 40% becomes the mean)"""
    mean: tuple[float, float, float] = number((0.5, 0.5, 0.5), -math.inf)
    """per channel, subtracted from values in [0, 1]"""
    std: tuple[float, float, float] = number((0.5, 0.5, 0.5), above=0)
    """per channel, divides what is left"""
    download: bool = field(default=True, metadata=MAY_CHANGE | NO_RECIPE)
    """whether a missing data set or weights file may be fetched from the network"""
    url: str | None = url(None, **MAY_CHANGE, **NO_RECIPE)
    """a site's own copy of cifar10's archive, http, https or file, tried before those that are known"""
    cache: str | None = path(None, **MAY_CHANGE, **NO_RECIPE)
    """directory for decoded images; null: beside the source, or the user's cache directory if that is read-only"""
    skip_unreadable: bool = False
    """leave out files that are no images, with one warning, in place of stopping"""


@dataclass(frozen=True, kw_only=True)
class SeedOf:
    """What draws by a seed of its own; null: by train.seed."""

    split: int | None = number(None, 0, 2**32)
    """seed of the images that are held out"""
    weights: int | None = number(None, 0, 2**32)
    """seed of initial weights"""
    order: int | None = number(None, 0, 2**32)
    """seed of the order of images in each epoch"""
    augmentation: int | None = number(None, 0, 2**32)
    """seed of changes to images, mixup and cutmix among them"""
    dropout: int | None = number(None, 0, 2**32)
    """seed of dropout and its like"""


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long and how."""

    epochs: int = number(10, 1, MANY, **MAY_CHANGE)
    """passes over the training images"""
    batch_size: int = number(128, 1, MANY)
    """global batch size: images per optimizer step over all processes together"""
    gradient_accumulation: int = number(1, 1, 10_001, **MAY_CHANGE)
    """parts in which each process computes its share of a batch, to save memory; the gradient stays the same"""
    gradient_shards: int | None = number(None, 1, 10_001)
    """null: fastest, the same to rounding on any number of processes. N: gradients and batch normalisation's statistics
    are of N parts, summed in one fixed order, so that any number of processes that divides N trains the same bits"""
    label_smoothing: float = number(0.0, 0, 1.0)
    """cross-entropy's label smoothing, from 0 up to but not including 1"""
    mixup: float = number(0.0, 0, 100.0)
    """alpha: each training image is mixed with another one, in shares from Beta(alpha, alpha); 0: not"""
    cutmix: float = number(0.0, 0, 100.0)
    """alpha: a box of another image lies on each training image, its area from Beta(alpha, alpha); 0: not; with mixup
    too a coin decides for each image"""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: an image's loss counts images / (classes x images of its class), 1 on average over the training set"""
    ema: float | None = number(None, 0.5, 1.0)
    """share, such as 0.999, that an average of the weights keeps at each step, less in the first steps; that average is
    evaluated and written in place of the weights themselves; null: none"""
    patience: int | None = number(None, 1, MANY)
    """epochs without a better validation accuracy after which a run is finished; null: it trains train.epochs"""
    cross_check: int | None = number(None, 1, 10**9, **MAY_CHANGE, **NO_RECIPE)
    """steps between comparisons of what processes make of the same images: one that differs ends the run; null: none"""
    clip_norm: float | None = number(None, above=0)
    """largest global L2 norm of the gradient; null: not clipped"""
    seed: int = number(42, 0, 2**32, **NO_RECIPE)
    """seed of initial weights, split, order, augmentation and dropout"""
    seed_of: SeedOf = field(default_factory=SeedOf)
    """seeds of their own, so that between runs one of these differs alone"""
    deterministic: bool = True
    """only kernels that give the same bits each time"""

    def seed_for(self, chance: Literal["split", "weights", "order", "augmentation", "dropout"]) -> int:
        """The seed that ``chance`` is drawn by."""
        own: int | None = getattr(self.seed_of, chance)
        return self.seed if own is None else own


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer, with the global learning rate."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """update rule"""
    learning_rate: float = number(0.001, above=0)
    """peak learning rate, for the global batch; not scaled by the number of processes"""
    backbone_rate: float = number(1.0, above=0)
    """factor of the learning rate for all but the last layer"""
    weight_decay: float = number(0.0, 0)
    """L2 penalty (adam, sgd) or decoupled decay (adamw)"""
    decay_norms: bool = True
    """whether weight_decay is also that of biases and of normalisations, whose weights are vectors"""
    momentum: float = number(0.9, 0, 1.0)
    """sgd only"""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a function of the step."""

    name: Literal["constant", "cosine", "onecycle"] = "constant"
    """shape after the warm-up: constant, half a cosine to 0, or straight up and straight down to 0"""
    warmup_epochs: float = number(0, 0)
    """epochs of linear warm-up from 0; "onecycle" with 0 takes a fifth of the run"""
    extended: Literal["finish", "restart", "stretch"] | None = field(default=None, metadata=MAY_CHANGE | NO_RECIPE)
    """when train.epochs of a run has changed under cosine or onecycle: finish (the old schedule, then its last rate),
    restart (the added epochs have a schedule of their own), stretch (the rest follows that of the new length: the rate
    jumps); null: refused"""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What the arithmetic runs on. How many processes there are is the launcher's business."""

    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=MAY_CHANGE)
    """auto: a GPU where there is one"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """arithmetic of the network; weights and optimizer stay in fp32"""
    compile: Literal["none", "default", "graphs"] = field(default="none", metadata=MAY_CHANGE)
    """none; default: torch.compile, which takes its time first; graphs: the step's kernels as CUDA graphs (GPU only)"""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """how gradients travel between processes; bf16 is half the traffic, and rounds what the processes sum"""
    data_on: Literal["auto", "device", "host"] = field(default="auto", metadata=MAY_CHANGE)
    """where the images lie; auto: on the device if they take less than half of its free memory"""
    threads: int | None = number(None, 1, MOST_THREADS + 1, **MAY_CHANGE)
    """CPU threads of each process; null: OMP_NUM_THREADS, or this machine's cores shared among its processes"""
    timeout: float = number(600, 1, 1e7, **MAY_CHANGE)
    """seconds after which a process that others wait for is taken for dead"""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the whole state is saved."""

    every_epochs: int | None = number(1, 1, MANY)
    """epochs between saves; null: none at epoch ends but the last"""
    every_steps: int | None = number(None, 1, 10**9)
    """optimizer steps between saves; null: only at epoch ends"""
    every_seconds: float | None = number(600.0, above=0)
    """seconds between saves, besides those by steps and epochs; null: none"""
    keep: int = number(2, 2, MANY)
    """newest checkpoints kept, at least 2 so that one damaged file loses no run"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where results go."""

    dir: str | None = path(None)
    """run directory; null: runs/<config name>-<local time>, under Slurm runs/<job name>-<job id>"""
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = field(default_factory=lambda: ["tensorboard"])
    """where metrics go beside metrics.jsonl; one that is not installed is left out, and said"""
    log_every: int = number(50, 1, 10**9)
    """optimizer steps between training lines in metrics.jsonl"""
    weights: Literal["last", "best"] = field(default="last", metadata={"may_change": False, "no_recipe": False})
    """which are tested and written: of the last epoch, or of the one with the best validation accuracy"""
    max_minutes: float | None = number(None, above=0)
    """stop, save and exit with status 75 after this many minutes; null: no limit"""
    notify: str | None = None
    """who is told when a start of the run finishes, stops or fails: a command, which gets it as JSON on its standard
    input, or $NAME of an environment variable that holds a command or a web address; null: nobody"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run is told."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    runtime: Runtime = field(default_factory=Runtime, metadata=NO_RECIPE)
    checkpoint: Checkpoint = field(default_factory=Checkpoint, metadata=MAY_CHANGE | NO_RECIPE)
    run: Run = field(default_factory=Run, metadata=MAY_CHANGE | NO_RECIPE)

    def __post_init__(self) -> None:
        for key, value, f, marks in settings_of(self):
            fits = marks.get("fits")
            if value is None and "None" not in str(f.type):  # the library takes it for "not given"
                raise UserError(f"{key}=null", "needs a value")
            if fits and not all(map(fits, value if isinstance(value, tuple) else [value])):
                raise UserError(f"{key}={value!s:.200}", f"must be {marks['allowed']}")
        if self.run.notify is not None and ("://" in self.run.notify or not self.run.notify.strip()):
            raise UserError(
                "run.notify holds a web address, or nothing",
                "an address may be a secret: put it into an environment variable, and give that as '$NAME'",
            )
        if self.model.name == "simple_cnn" and self.model.weights == "imagenet":
            raise UserError("model.weights=imagenet", "there are none for simple_cnn; use null, or model.name vgg16")
        if self.train.gradient_shards and self.train.gradient_accumulation > 1:
            raise UserError("train.gradient_accumulation with train.gradient_shards", "use one: shards save memory too")
        if self.train.gradient_shards and self.runtime.gradients != "fp32":
            raise UserError("runtime.gradients=bf16 with train.gradient_shards", "sums are exact in fp32; use one")
        if self.train.cross_check and not self.train.deterministic:
            raise UserError("train.cross_check with train.deterministic=false", "use one: without it bits never recur")
        if self.model.freeze == "backbone" and self.optimizer.backbone_rate != 1:
            raise UserError("optimizer.backbone_rate with model.freeze=backbone", "use one: what is frozen has no rate")
        if self.data.source in ("cifar10", "shapes10") and self.data.image_size != 32:
            raise UserError(
                f"data.image_size={self.data.image_size}",
                f"{self.data.source}'s images are 32 pixels; use 32, or data.source folder",
            )
        for name, source in (("labels", "folder"), ("url", "cifar10")):
            if getattr(self.data, name) is not None and self.data.source != source:
                raise UserError(f"data.{name} with data.source={self.data.source}", f"use {source}, or {name} null")
        if self.data.hold_out == "grouped" and self.data.labels is None:
            raise UserError("data.hold_out=grouped", "give data.labels, a table with a column of groups")
        if self.schedule.warmup_epochs >= self.train.epochs:
            raise UserError(
                f"schedule.warmup_epochs={self.schedule.warmup_epochs:g}",
                f"must be less than train.epochs={self.train.epochs}",
            )

    def parts(self, world_size: int) -> int:
        """In how many equal parts each of ``world_size`` processes computes its share of a batch.

        Raises UserError when there are no such parts.
        """
        train, shards = self.train, self.train.gradient_shards
        if shards is not None and shards % world_size:
            raise UserError(
                f"train.gradient_shards={shards} does not divide by {world_size} processes",
                f"use {-(-shards // world_size) * world_size}, or another number of processes",
            )
        parts = shards // world_size if shards else train.gradient_accumulation
        whole = parts * world_size
        if train.batch_size % whole:
            near = [size for size in (train.batch_size // whole * whole, -(-train.batch_size // whole) * whole) if size]
            raise UserError(
                f"train.batch_size={train.batch_size} does not divide by {world_size} processes x {parts} parts each",
                f"use {' or '.join(map(str, near))}, or another number of processes",
            )
        return parts
