"""What stands in a run directory's JSON files, key by key. Accuracies are fractions, losses are in nats."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

State = Literal["running", "preempted", "failed", "finished"]


class TrainLine(TypedDict):
    """A line of ``metrics.jsonl`` every ``run.log_every`` steps, and at the end of an epoch."""

    split: Literal["train"]
    step: int
    """optimizer steps taken, from 1"""
    epoch: int
    """from 1"""
    loss: float | None
    """mean over the images since the last line; None when fp16's loss scaling left out all of their steps"""
    learning_rate: float
    """of the last step"""
    images_per_second: float
    """over all processes"""
    skipped_steps: NotRequired[int]
    """steps of the whole run that fp16's loss scaling left out, if any"""


class ValidationLine(TypedDict):
    """A line of ``metrics.jsonl`` after each epoch. What validation gives is left out where no images are held out."""

    split: Literal["validation"]
    epoch: int
    step: int
    train_loss: float
    """mean over the images of the epoch"""
    loss: NotRequired[float | None]
    """None when it is not finite"""
    accuracy: NotRequired[float]
    class_accuracy: NotRequired[list[float | None]]
    """in the order of the classes; None without images"""
    seconds: NotRequired[float]
    """that validation took"""


MetricsLine = TrainLine | ValidationLine


class ClassRow(TypedDict):
    """One class in ``evaluation.json``. A ratio without a denominator is None."""

    name: str
    images: int
    correct: int
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    interval: list[float] | None
    """low and high end of the accuracy's 95% Wilson interval"""


class Confusion(TypedDict):
    """A mistake and how often it is made."""

    true: str
    predicted: str
    images: int


class Origin(TypedDict):
    """What an evaluation is of. The last four stand in that of a finished run."""

    world_size: int
    checkpoint: str | None
    """the newest checkpoint, or the weights file, whose weights were evaluated"""
    epochs: NotRequired[int]
    best_validation: NotRequired[ValidationLine | None]
    parameters: NotRequired[int]
    """that were trained"""
    data: NotRequired[str]
    """the data set's fingerprint"""


class Matrix(TypedDict, total=False):
    """Images by true and predicted class, in one of two forms."""

    confusion_matrix: list[list[int]]
    """[true, predicted]"""
    confusions: list[list[int]]
    """[true, predicted, images] of each cell that is not 0, with more than 200 classes"""


class Evaluation(Origin, Matrix):
    """``evaluation.json``, and ``evaluation-<split>.json`` of job/evaluate.py."""

    split: str
    images: int
    loss: float
    accuracy: float
    interval: list[float]
    classes: list[ClassRow]
    top_confusions: list[Confusion]


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
