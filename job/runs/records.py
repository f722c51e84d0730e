"""What stands in a run directory's JSON files, key by key. Accuracies are fractions, losses are in nats."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from job.config.kinds import MOST
from job.config.settings import Config

State = Literal["running", "preempted", "failed", "finished"]
Number = Annotated[int, 1, MOST]
"""of something counted from 1"""
Share = Annotated[float, 0, 1]
Interval = Annotated[list[Share], 2, 2]
"""low and high end"""


class TrainLine(TypedDict):
    """A line of ``metrics.jsonl`` every ``run.log_every`` steps, and at the end of an epoch."""

    split: Literal["train"]
    step: Number
    """optimizer steps taken, from 1"""
    epoch: Number
    """from 1"""
    loss: float | None
    """mean over the images since the last line; None when fp16's loss scaling left out all of their steps"""
    learning_rate: float
    """of the last step"""
    images_per_second: float
    """over all processes"""
    fingerprint: NotRequired[str]
    """of the weights after the step (``job.models.fingerprint``); runs of before it have none"""
    skipped_steps: NotRequired[int]
    """steps of the whole run that fp16's loss scaling left out, if any"""


class ValidationLine(TypedDict):
    """A line of ``metrics.jsonl`` after each epoch. What validation gives is left out where no images are held out."""

    split: Literal["validation"]
    epoch: Number
    step: Number
    train_loss: float
    """mean over the images of the epoch"""
    loss: NotRequired[float | None]
    """None when it is not finite"""
    accuracy: NotRequired[Share]
    class_accuracy: NotRequired[list[Share | None]]
    """in the order of the classes; None without images"""
    seconds: NotRequired[float]
    """that validation took"""


MetricsLine = TrainLine | ValidationLine


class ClassRow(TypedDict):
    """One class in ``evaluation.json``. A ratio without a denominator is None."""

    name: str
    images: int
    correct: int
    accuracy: Share | None
    precision: Share | None
    recall: Share | None
    f1: Share | None
    auc: NotRequired[Share | None]
    """of the class against all others; as for all of them, in ``Evaluation``"""
    interval: Interval | None
    """of the accuracy: 95%, Wilson's"""


class Confusion(TypedDict):
    """A mistake and how often it is made."""

    true: str
    predicted: str
    images: int


class Origin(TypedDict):
    """What an evaluation is of. What need not be there stands in that of a finished run."""

    world_size: int
    checkpoint: str | None
    """the newest checkpoint, or the weights file, whose weights were evaluated"""
    epochs: NotRequired[int]
    epochs_trained: NotRequired[int]
    """fewer than ``epochs`` where train.patience came to its end"""
    weights: NotRequired[Literal["last", "best"]]
    """of the last epoch, or of the one of ``best_validation``"""
    best_validation: NotRequired[ValidationLine | None]
    last_validation: NotRequired[ValidationLine | None]
    parameters: NotRequired[int]
    """that were trained"""
    data: NotRequired[str]
    """the data set's fingerprint"""
    deep: NotRequired[Annotated[list[float], 2, 2] | None]  # of images of more than 8 bits, what became 0 and 255
    notes: NotRequired[list[str]]
    """what of the splits makes the numbers mean less than they seem to"""
    root: NotRequired[str]
    """where the images lie that job/evaluate.py was given, where they are not the run's own"""


class Matrix(TypedDict):
    """Images by true and predicted class, in one of two forms."""

    confusion_matrix: NotRequired[list[list[int]]]
    """[true, predicted]"""
    confusions: NotRequired[list[list[int]]]
    """[true, predicted, images] of each cell that is not 0, with more than 200 classes"""


class Evaluation(Origin, Matrix):
    """``evaluation.json``, and ``evaluation-<split>.json`` and ``evaluation-of-<data>.json`` of job/evaluate.py."""

    split: str
    images: int
    loss: float
    accuracy: Share
    interval: Interval
    top5_accuracy: NotRequired[Share]
    """share of images whose true class is among the five most probable: 1 with five classes or fewer"""
    macro_accuracy: NotRequired[Share | None]
    """mean of the classes' accuracies, each of the same weight, over those that have images (balanced accuracy)"""
    macro_f1: NotRequired[Share | None]
    """mean of the classes' F1, over those that have images or are predicted"""
    calibration_error: NotRequired[Share]
    """expected calibration error: how far the probability of the predicted class is from the share that is right"""
    auc: NotRequired[Share | None]
    """mean of the classes' areas under the ROC curve, over those that have images and others; None, too, where images
    times classes are more than 2^27, whose probabilities are not gathered"""
    classes: Annotated[list[ClassRow], 1, MOST]
    top_confusions: list[Confusion]


class Seconds(TypedDict, total=False):
    """Where the seconds of a start, or of all of them, went: each is in one of these."""

    startup: float
    """from the launch to the first step"""
    training: float
    """steps; of a run, those that count"""
    repeated: float
    """of a run: steps that a later start did again"""
    checkpoints: float
    """that training waited for"""
    evaluation: float
    """validation, test and report"""
    waiting: float
    """of a run: between two starts, and of a killed one since it last wrote"""


class Status(TypedDict):
    """``status.json``."""

    state: State
    step: int
    signal: str | None
    """why it stopped early"""
    error: str | None
    attempt: int
    """starts in this directory, from 1"""
    recurs: NotRequired[bool]
    """whether the same command would come to the same end"""
    complete: NotRequired[bool]
    """of a finished run: whether its report was written and its result said"""
    seconds: NotRequired[Seconds]
    """of this start, until this was written"""
    seconds_in_all: NotRequired[Seconds]
    peak_memory: NotRequired[list[int]]
    """bytes of the host that each rank of this start took at most"""
    peak_device_memory: NotRequired[list[int]]
    """of its device"""
    waited: NotRequired[list[float]]
    """seconds that each rank waited for the gradients of others, where it computes on a CPU"""


class Platform(TypedDict, total=False):
    """What may decide on bits beside the settings, as ``environment.json`` says it of a start; more is written."""

    git_commit: str | None
    code: str
    """hex SHA-256 over the files in ``job/``"""
    world_size: Number
    hosts: list[str]
    devices: list[str]
    device_type: str
    arithmetic: str
    """the CPU's instructions that are used, or the versions of CUDA and cuDNN"""
    threads: Number
    python: str
    torch: str
    accelerate: str


class Start(Platform, total=False):
    """A start in ``environment.json``."""

    started: str
    """ISO 8601"""
    step: int
    """optimizer steps that stood when it began"""
    steps_per_epoch: Number
    attempt: int
    began: float
    """seconds since 1970, of the launch under Slurm, or of the process"""
    seconds: Seconds
    """of a start that is over, when it last wrote"""
    reached: int
    """optimizer step that stood then"""


class Environment(Platform, total=False):
    """``environment.json``: the newest start, and all of them."""

    command: list[str]
    launcher: str
    slurm_job: str | None
    attempts: list[Start]


class Position(TypedDict):
    """``trainer.json`` of a checkpoint: all of the state that is no tensor. ``Progress`` says what the first are."""

    step: int
    epoch: Number
    images: int
    losses: list[float]
    counts: list[int]
    epoch_loss: float
    skipped: int
    schedule: NotRequired[Annotated[list[Annotated[list[int], 2, 2]], 1, MOST]]
    best: ValidationLine | None
    last: NotRequired[ValidationLine | None]
    fingerprint: NotRequired[str]
    fingerprint_of_rest: NotRequired[str]  # of all tensors but the weights
    metrics_bytes: int
    scaler: dict[str, Any] | None
    classes: list[str]
    data: str
    """the data set's fingerprint"""
    deep: NotRequired[Annotated[list[float], 2, 2] | None]
    world_size: int
    config: Config
