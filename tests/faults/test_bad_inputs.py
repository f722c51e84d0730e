"""Four hundred bad inputs, each given to a command of the job as people would: one line, status 2, no traceback.

``test_fuzz.py`` damages valid ones at random; here are the mistakes that people make, and what a stranger might send.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import tarfile
import typing
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import run_directories
from support.jobs import run_job, the_error

from job.config.errors import printable
from job.config.settings import Config
from job.models.simple_cnn import SimpleCNN
from job.runs import checkpoint

SECONDS = 60
"""on a machine that does other things as well; a tenth of a second on one that does not"""


class Bad(NamedTuple):
    """``HERE`` in the words stands for a directory of the case's own, in which ``make`` has put something."""

    command: str
    """and its arguments, separated by blanks, or as a list"""
    says: str
    """in the one line"""
    make: Callable[[Path], object] | None = None
    environment: dict[str, str] = {}  # noqa: RUF012 (never changed)
    more: tuple[str, ...] = ()
    """arguments with blanks"""


def file(name: str, content: bytes | str) -> Callable[[Path], object]:
    """Something that writes a file."""
    encoded = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")

    def write(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(encoded)

    return write


def pipe(name: str) -> Callable[[Path], object]:
    return lambda here: os.mkfifo(here / name)


# --- settings, each with a value of another kind and, where there are bounds, one beyond them

SECTIONS = typing.get_type_hints(Config)
SETTINGS = {
    f"{section}.{f.name}": (typing.get_type_hints(kind)[f.name], f)
    for section, kind in SECTIONS.items()
    for f in dataclasses.fields(kind)
}


def of_another_kind(hint: Any) -> str:
    return "x" * 5000 if str in (hint, *typing.get_args(hint)) else "{x: 1}"


def out_of_bounds(f: dataclasses.Field[Any]) -> str | None:
    fits = f.metadata.get("fits", lambda _: True)
    numbers = (number for number in (-1, 0, 10**10, 1e300) if not fits(number))
    found = next(numbers, None) if isinstance(f.default, int | float) or f.default is None else None
    return None if found is None else f"{found:.0f}" if isinstance(found, int) else str(found)


def beyond() -> list[Bad]:
    found = []
    for key, (hint, f) in SETTINGS.items():
        found.append(Bad("train.py", key, more=(f"--{key}={of_another_kind(hint)}",)))
        if (number := None if str in (hint, *typing.get_args(hint)) else out_of_bounds(f)) is not None:
            found.append(Bad(f"train.py --{key}={number}", f"{key}={'' if 'e' in number else number}"))
    return found


def nulls() -> list[Bad]:
    needed = [key for key, (hint, _) in SETTINGS.items() if type(None) not in typing.get_args(hint)]
    without = [key.split(".") for key in needed if not dataclasses.is_dataclass(SETTINGS[key][0])]
    return [
        Bad("train.py --config=HERE/c", f"{section}.{name}=null: needs", file("c", f"{section}: {{{name}: null}}"))
        for section, name in without
    ]


# --- command lines

COMMAND_LINES = [
    Bad("train.py --train.epoks=3", "unknown key train.epoks: did you mean train.epochs?"),
    Bad("train.py --check --train.epoks=3", "unknown key train.epoks: did you mean train.epochs?"),
    Bad("evaluate.py --run HERE --train.epoks=3", "no run directory"),
    Bad("prepare.py --epochs=3", "unknown key epochs: did you mean train.epochs?"),
    Bad("train.py --nonsense=3", "unknown key nonsense"),
    Bad("train.py 3", "unexpected argument '3'"),
    Bad("train.py -x", "unexpected argument '-x'"),
    Bad("train.py --train.epochs", "--train.epochs: needs a value"),
    Bad("train.py --config", "--config: needs a value"),
    Bad("train.py", "--train is a section", more=("--train={epochs: 3}",)),
    Bad("train.py", "unknown key", more=("--",)),
    Bad("train.py", "unknown key", more=("--=1",)),
    Bad("train.py", r"unknown key \x1b[2J\u202eb", more=("--\x1b[2J\u202eb=1",)),
    Bad("train.py", r"data.validation=\x1b[2J\u202e", more=("--data.validation=\x1b[2J\u202e",)),
    Bad("train.py --model.name=", "model.name"),
    Bad(f"train.py --train.epochs={'9' * 4000}", "a number of too many digits"),
    Bad(f"train.py --optimizer.learning_rate=0x{'f' * 400}", "a number of too many digits"),
    Bad("train.py --optimizer.learning_rate=nan", "optimizer.learning_rate=nan: must be a number"),
    Bad("train.py --optimizer.learning_rate=1e999", "optimizer.learning_rate=inf: must be a positive number"),
    Bad("train.py --train.epochs=2.5", "train.epochs=2.5: must be a whole number"),
    Bad("train.py --train.epochs=true", "must be a whole number"),
    Bad("train.py --data.std=[1,1,0]", "data.std"),
    Bad("train.py --data.mean=[1,1]", "data.mean=[1, 1]: must be a list of 3, each a number"),
    Bad("train.py --run.trackers=[excel]", "must be a list, each one of tensorboard, wandb, mlflow"),
    Bad("train.py", "aliases are not taken", more=("--run.trackers=&a [*a]",)),
    Bad("train.py", "aliases are not taken", more=("--train.clip_norm=&a {x: *a}",)),
    Bad("train.py", "tags are not taken", more=("--train.epochs=!!int 3",)),
    Bad("train.py", "tags are not taken", more=("--train.epochs=!!python/name:os.system",)),
    Bad(f"train.py --data.mean={'[' * 3000}", "nested too deeply"),
    Bad("train.py --data.root=~nosuchuser/x", "data.root=~nosuchuser/x: must be a path that can exist on this machine"),
    Bad("train.py --data.cache=~nosuchuser", "data.cache=~nosuchuser: must be a path"),
    Bad("train.py --model.weights=~nosuchuser", "model.weights=~nosuchuser: must be a path"),
    Bad("train.py --run.dir=~nosuchuser", "run.dir=~nosuchuser: must be a path"),
    Bad(f"train.py --run.dir=/x/{'y' * 256}", "must be a path"),
    Bad("train.py --run.dir=", "run.dir=: must be a path"),
    Bad("train.py --data.image_size=64", "cifar10's images are 32 pixels; use 32, or data.source folder"),
    Bad("train.py --data.source=shapes10 --data.image_size=8", "shapes10's images are 32 pixels"),
    Bad("train.py --model.weights=imagenet", "there are none for simple_cnn"),
    Bad("train.py --schedule.warmup_epochs=10", "must be less than train.epochs=10"),
    Bad("train.py --data.source=shapes10 --data.url=https://a.site/b", "use cifar10, or url null"),
    Bad("train.py --train.gradient_shards=2 --train.gradient_accumulation=2", "use one: shards save memory too"),
    Bad("train.py --train.gradient_shards=2 --runtime.gradients=bf16", "sums are exact in fp32"),
    Bad("train.py --train.batch_size=3 --train.gradient_accumulation=2", "train.batch_size=3 does not divide by"),
    Bad("train.py --check --nodes=two", "--nodes two: must be a whole number"),
    Bad("train.py --check --nodes", "--nodes: needs a value"),
    Bad("train.py --check --nodes=0", "--nodes 0: must be at least 1"),
    Bad("train.py --check --gpus-per-node=-1", "--gpus-per-node -1: must be a whole number"),
    *(Bad(f"{command} /nonexistent", "is no run directory") for command in ("watch.py", "report.py", "compare.py")),
    *(Bad(f"{command} HERE", "is no run directory") for command in ("watch.py", "report.py", "compare.py")),
    *(Bad(f"{command} HERE/f", "f is no run directory", file("f", "")) for command in ("watch.py", "report.py")),
    *(Bad(command, "the following arguments are required: run") for command in ("watch.py", "report.py")),
    Bad("compare.py", "no runs: name runs"),
    *(Bad(f"{command} --nonsense HERE", "unrecognized arguments: --nonsense") for command in ("watch.py", "report.py")),
    Bad("evaluate.py", "--run"),
    Bad("evaluate.py --run", "--run: needs a value"),
    Bad("evaluate.py --run HERE", "is no run directory"),
    Bad("predict.py x.png", "--run"),
    Bad("predict.py --run HERE x.png", "is no run directory"),
    Bad("predict.py --run HERE", "no images"),
    Bad("predict.py --run HERE --batch 0 x.png", "must be 1 or more"),
    Bad("predict.py --run HERE --batch many x.png", "invalid int value: 'many'"),
    Bad("predict.py --run HERE HERE", "no images in"),
    Bad("predict.py --run HERE HERE/again", "is a link to a directory that contains it", lambda here: again(here)),
]


def again(here: Path) -> None:
    (here / "again").mkdir()
    (here / "again" / "again").symlink_to(".")


# --- configuration files

LAUGHS = "".join(f"k{i}: &n{i} {{x: *n{i - 1}, y: *n{i - 1}}}\n" for i in range(1, 40))
TEXTS: dict[str | bytes, str] = {
    "train: {epochs: 1, epochs: 2}": "line 1: not valid YAML: key 'epochs' is given twice",
    "train: {epoch: 2}": "unknown key train.epoch",
    "trian: {epochs: 2}": "unknown key trian.epochs",
    "trian: {}": "unknown key trian",
    "epochs: 2": "unknown key epochs",
    "1: 2": "unknown key 1",
    "train:\n": "must be a section of settings",
    "train: 3": "train=3 in",
    "train: [1]": "must be a section of settings",
    "- 1": "must hold settings",
    "3": "must hold settings",
    "": "must hold settings",
    "# nothing\n": "must hold settings",
    "train: [": "not valid YAML",
    "train: {epochs: 3": "not valid YAML",
    "\ttrain: {epochs: 3}": "not valid YAML",
    "train: {epochs: 3}\n---\ntrain: {epochs: 4}": "not valid YAML",
    "train: {epochs: three}": "train.epochs=three: must be a whole number",
    "train: {epochs: {x: 1}}": "unknown key train.epochs.x",
    "!!python/object/apply:os.system ['touch /tmp/pwned']": "not valid YAML",
    "train: !!set {epochs}": "not valid YAML",
    "optimizer: {learning_rate: .inf}": "optimizer.learning_rate=inf",
    "optimizer: {learning_rate: 1e999}": "optimizer.learning_rate=inf",
    "train: &a {epochs: *a}": "line 1: not valid YAML: aliases are not taken, write the value itself",
    "a: &a {b: 1}\nc: [*a, *a, *a]": "line 2: not valid YAML: aliases",
    f"k0: &n0 {{x: 1}}\n{LAUGHS}": "not valid YAML: aliases",
    "- " * 30_000: "nested too deeply",
    "train: {epochs: " + "9" * 5001 + "}": "a number of too many digits",
    "train: {epochs: 1" + ":1" * 30_000 + "}": "a number of too many digits",
    "train: {epochs: 2026-13-01}": "month must be in 1..12",
    "train: {epochs: 0x_}": "not valid YAML",
    "".join(f"k{i}: 1\n" for i in range(7000)): "unknown key k0",
    "x" * 100_000: "has more than 65536 bytes",
    'data: {root: "a\\0b"}': "must be a path",
    'data: {root: "\\u202e\\ud800"}': r"data.root=\u202e\ud800: must be a path",
    'train: {"a\\nb": 1}': r"unknown key train.a\nb",
    'train: {"\\e[2J": 1}': r"unknown key train.\x1b[2J",
    "train: {epochs: 3} # é".encode("latin-1"): "no text in UTF-8",
    "train: {epochs: 3}".encode("utf-16"): "no text in UTF-8",
    b"\0" * 100: "not valid YAML",
    b"\x89PNG\r\n\x1a\n": "no text in UTF-8",
}
CONFIGS = [Bad("train.py --config=HERE/own.yaml", says, file("own.yaml", text)) for text, says in TEXTS.items()]
CONFIGS += [
    Bad("train.py --config=HERE/own.yaml", "cannot be read (No such file"),
    Bad("train.py --config=HERE", "cannot be read (Is a directory"),
    Bad("train.py --config=HERE/own.yaml", "is no regular file", pipe("own.yaml")),
    Bad("train.py --config=HERE/loop", "cannot be read", lambda here: (here / "loop").symlink_to("loop")),
    *(Bad(f"train.py --config={path}", "is no regular file") for path in ("/dev/zero", "/dev/null")),
    Bad("train.py --config=/proc/self/mem", "cannot be read"),
    Bad("evaluate.py --run HERE --config=/dev/zero", "is no run directory"),
    Bad("prepare.py --config=HERE/own.yaml", "unknown key a", file("own.yaml", "a: 1")),
]

# --- environments

MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
TWO = {"WORLD_SIZE": "2", "RANK": "0"}
SAID: list[tuple[dict[str, str], str]] = [
    ({"RANK": "1"}, "RANK=1 in the environment: there is no WORLD_SIZE: unset RANK, or start with accelerate"),
    ({"RANK": "-1"}, "RANK is no whole number"),
    ({"RANK": "²"}, "RANK is no whole number"),
    ({"RANK": "0x1"}, "RANK is no whole number"),
    ({"RANK": "9" * 5001}, "RANK is no whole number"),
    ({"LOCAL_RANK": "1"}, "there is no WORLD_SIZE"),
    ({"LOCAL_WORLD_SIZE": "4"}, "there is no WORLD_SIZE"),
    ({"PMI_SIZE": "4"}, "there is no WORLD_SIZE: unset PMI_SIZE"),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "there is no WORLD_SIZE: unset OMPI_COMM_WORLD_SIZE"),
    ({"RANK": "1", "WORLD_SIZE": "1"}, "count from 0 to WORLD_SIZE - 1: unset RANK WORLD_SIZE"),
    ({"WORLD_SIZE": "0"}, "count from 0"),
    ({"WORLD_SIZE": "2", **MEETING}, "there is no RANK: unset WORLD_SIZE"),
    ({**TWO, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MEETING}, "count from 0"),
    ({**TWO, "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1", **MEETING}, "local ranks count"),
    ({**TWO, "MASTER_PORT": "29500"}, "there is no MASTER_ADDR"),
    ({**TWO, "MASTER_ADDR": "localhost"}, "there is no MASTER_PORT"),
    ({**TWO, "MASTER_ADDR": "localhost", "MASTER_PORT": ""}, "there is no MASTER_PORT"),
    ({**TWO, "MASTER_ADDR": "localhost", "MASTER_PORT": "65536"}, "MASTER_PORT=65536"),
    ({**TWO, "MASTER_ADDR": "localhost", "MASTER_PORT": "http"}, "MASTER_PORT"),
    ({"RANKZERO_WORLD_SIZE": "two"}, "RANKZERO_WORLD_SIZE=two in the environment is no whole number: unset RANKZ"),
    ({"RANKZERO_WORLD_SIZE": "2"}, "2 processes were asked for and 1 started"),
    ({"RANKZERO_END_TIME": "soon"}, "unset RANKZERO_END_TIME"),
    ({"SLURM_STEP_NUM_TASKS": "2"}, "2 processes were asked for and 1 started"),
    ({"OMP_NUM_THREADS": "1000000"}, "OMP_NUM_THREADS=1000000 in the environment is more than 1024: unset"),
]
ENVIRONMENTS = [Bad("train.py --data.source=shapes10 --run.dir=HERE/run", says, None, said) for said, says in SAID]

# --- data: folders and archives


def image(size: int = 8, form: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.effect_noise((size, size), 50).convert("RGB").save(written, form)
    return written.getvalue()


TREE = {f"{split}/{name}/{n}.png": image() for split in ("train", "test") for name in ("cat", "dog") for n in (0, 1)}
Members = dict[str, bytes]


def tree(**changes: bytes | None) -> Members:
    """The images of two classes; what a change maps to None is left out with all below it."""
    kept = {k: v for k, v in TREE.items() if not any(v is None and k.startswith(name) for name, v in changes.items())}
    return kept | {name: content for name, content in changes.items() if content is not None}


def as_folder(members: Members) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        for name, content in members.items():
            file(f"data/{name}", content)(here)

    return make


def as_zip(members: Members, cut: float = 1.0, mode: int = 0) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        with zipfile.ZipFile(here / "data", "w") as archive:
            for name, content in members.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                archive.writestr(info, content)
        os.truncate(here / "data", int((here / "data").stat().st_size * cut))

    return make


def as_tar(members: Members, kind: str = "w", cut: float = 1.0, **of_the_last: Any) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        with tarfile.open(here / "data", kind) as archive:  # type: ignore[call-overload]
            for number, (name, content) in enumerate(members.items(), 1):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if number == len(members):
                    for key, value in of_the_last.items():
                        setattr(info, key, value)
                archive.addfile(info, io.BytesIO(content))
        os.truncate(here / "data", int((here / "data").stat().st_size * cut))

    return make


def circle(here: Path) -> None:
    as_folder(tree())(here)
    shutil.rmtree(here / "data" / "train" / "cat")
    (here / "data" / "train" / "cat").symlink_to("cat")


LAST = tree() | {"train/cat/x.png": b""}
ROOTS: list[tuple[Callable[[Path], object] | None, str]] = [
    (None, "data does not exist"),
    (pipe("data"), "is neither a folder nor a file"),
    (lambda here: (here / "data").symlink_to("/dev/zero"), "is neither a folder nor a file"),
    (lambda here: (here / "data").mkdir(), "train/<class>/*"),
    (as_folder({"cat/0.png": image()}), "only one class, cat: give two or more class folders"),
    (as_folder(tree(**{"train/": None})), "no train/<class>/*"),
    (as_folder(tree(**{"train/dog": None, "test/dog": None})), "only one class, train/cat and test/cat"),
    (as_folder({k.replace("/", "/images/", 1): v for k, v in TREE.items()}), "the folders below it are cat, dog"),
    (as_folder(tree(**{"test/dog": None, "test/Dog/0.png": image()})), "train/ has no Dog"),
    (as_folder(tree(**{"train/dog/0.png": b"", "train/dog/1.png": b""})), "train/dog/0.png (empty file)"),
    (as_folder(tree(**{"train/cat/0.png": image()[:100]})), "train/cat/0.png (image file is truncated)"),
    (as_folder(tree(**{"train/cat/a.txt": b"no image"})), "train/cat/a.txt (unknown format)"),
    (as_folder(tree(**{"train/cat/\x1b[2J.png": b""})), r"train/cat/\x1b[2J.png (empty file)"),
    (as_folder(tree(**{"train/cat/\u202egnp.png": b""})), r"train/cat/\u202egnp.png (empty file)"),
    (as_folder(tree(**{"train/cat/\udcff.png": b""})), r"train/cat/\udcff.png (empty file)"),
    (circle, "train/ has no cat"),
    (file("data", b""), ".tar.xz or .zip"),
    (file("data", b"Rar!\x1a\x07\x00" + bytes(600)), ".tar.xz or .zip"),
    (file("data", b"7z\xbc\xaf\x27\x1c" + bytes(600)), ".tar.xz or .zip"),
    (file("data", b"<!DOCTYPE html><html>404"), ".tar.xz or .zip"),
    (file("data", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), ".tar.xz or .zip"),
    (file("data", b"PK\x03\x04" + bytes(100)), "damaged or truncated"),
    (file("data", b"\x1f\x8b\x08" + bytes(100)), "data"),
    (as_zip({}), "train/<class>/*"),
    (as_zip(tree(**{"train/": None})), "no train/<class>/*"),
    (as_zip({f"a/{k}": v for k, v in TREE.items()} | {f"b/{k}": v for k, v in TREE.items()}), "more than one place"),
    (as_zip(tree(), cut=0.9), "damaged or truncated"),
    (as_zip(LAST | {"../x.png": b""}), "member ../x.png points outside"),
    (as_zip(LAST | {"/etc/x.png": b""}), "member /etc/x.png points outside"),
    (as_zip({**tree(), "train/cat/\x1b[2J.png": b""}), r"train/cat/\x1b[2J.png"),
    (as_zip(tree(), mode=0o120777), "is a link"),
    (as_zip(LAST | {"train/cat/x.png": bytes(1 << 24)}), "train/cat/x.png (unknown format)"),
    *((as_tar(tree(), kind, cut=0.5), "damaged or truncated") for kind in ("w", "w:gz", "w:xz")),
    (as_tar(LAST | {"../x.png": b""}), "member ../x.png points outside"),
    (as_tar(LAST | {"train/cat/../../../x.png": b""}), "points outside"),
    (as_tar(LAST, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "train/cat/x.png is a link"),
    (as_tar(LAST, type=tarfile.LNKTYPE, linkname="/etc/passwd"), "train/cat/x.png is a link"),
    (as_tar(LAST, type=tarfile.FIFOTYPE), "train/cat/x.png is a link or no ordinary file"),
    (as_tar(LAST, type=tarfile.CHRTYPE), "train/cat/x.png is a link or no ordinary file"),
    (as_tar(LAST, pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 50)}), "train/cat/x.png"),
]
FOLDER = "--data.source=folder --data.root=HERE/data --data.cache=HERE/cache --data.image_size=8"
DATA = [Bad(f"prepare.py {FOLDER}", says, make) for make, says in ROOTS]
DATA += [
    Bad("prepare.py --data.download=false --data.root=HERE", "job/prepare.py"),
    Bad("train.py --data.download=false --data.root=HERE/no --run.dir=HERE/run", "job/prepare.py"),
    Bad("prepare.py --data.root=HERE", "cifar-10-python.tar.gz", file("cifar-10-python.tar.gz", b"not it")),
    Bad("prepare.py --data.root=HERE", "cifar-10-batches-py", file("cifar-10-batches-py/data_batch_1", b"not it")),
    Bad("prepare.py --data.source=shapes10 --data.cache=/proc/nowhere", "data.cache"),
    Bad("prepare.py --data.source=shapes10 --data.cache=HERE/f", "data.cache", file("f", b"")),
    Bad("train.py --data.source=shapes10 --run.dir=/proc/nowhere", "run directory /proc/nowhere cannot be written"),
    Bad("train.py --data.source=shapes10 --run.dir=HERE/f", "HERE/f", file("f", b"")),
    Bad("train.py --data.source=shapes10 --run.dir=/dev/null/x", "/dev/null/x"),
    Bad("train.py --data.source=shapes10 --runtime.device=cuda --run.dir=HERE/run", "1 GPU was asked for on"),
]

# --- weights


class Canary:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("canary"),))


State = dict[str, torch.Tensor]


def changed(value: float) -> Callable[[State], object]:
    return lambda state: state | {"fc1.weight": torch.full_like(state["fc1.weight"], value)}


def saved(content: Callable[[State], object], cut: int | None = None, **options: Any) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        as_folder(tree())(here)
        torch.save(content(SimpleCNN(2).state_dict()), here / "w", **options)
        if cut:
            os.truncate(here / "w", cut)

    return make


def beside(content: bytes | None) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        as_folder(tree())(here)
        if content is not None:
            (here / "w").write_bytes(content)

    return make


HEADER = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
FILES: list[tuple[Callable[[Path], object], str]] = [
    (saved(lambda state: torch.nn.Linear(2, 2).state_dict()), "do not fit the model"),
    (saved(lambda state: {k: v for k, v in state.items() if k != "conv1.bias"}), "do not fit the model"),
    (saved(lambda state: {k: v[:1] for k, v in state.items()}), "do not fit the model"),
    (saved(lambda state: {"conv1.weight": Canary()}), "hold more than tensors"),
    (saved(lambda state: state | {"x": Canary()}, _use_new_zipfile_serialization=False), "hold more than tensors"),
    (saved(lambda state: torch.nn.Sequential(torch.nn.Linear(3, 3))), "hold more than tensors"),
    (saved(lambda state: list(state.items())), "must hold a state dict"),
    (saved(lambda state: {}), "must hold a state dict"),
    (saved(lambda state: 3), "must hold a state dict"),
    (saved(changed(float("nan"))), "NaN or infinity (fc1.weight)"),
    (saved(changed(float("-inf"))), "NaN or infinity (fc1.weight)"),
    (saved(lambda state: {k: v.double() * 1e300 for k, v in state.items()}), "NaN or infinity (conv1.weight)"),
    (saved(lambda state: {k: (v * 99).to(torch.int8) for k, v in state.items()}), "is torch.int8"),
    (saved(lambda state: {k: v.to(torch.complex64) for k, v in state.items()}), "is torch.complex64"),
    (saved(lambda state: state, cut=10_000), "damaged"),
    (beside(b"hello"), "no weights file"),
    (beside(b""), "no weights file"),
    (beside(image()), "no weights file"),
    (beside(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 553433881\n"), "a Git LFS pointer"),
    (beside(b"\n<!DOCTYPE html><html>Virus scan warning</html>"), "a web page"),
    (beside(len(HEADER).to_bytes(8, "little") + HEADER), "damaged"),
    (beside((2**62).to_bytes(8, "little") + b"{"), "damaged"),
    (beside(None), "no such file"),
    (lambda here: (beside(None)(here), (here / "w").mkdir()), "no such file"),
    (lambda here: (beside(None)(here), os.mkfifo(here / "w")), "no such file"),
]
WEIGHTS = [Bad(f"prepare.py {FOLDER} --data.image_size=32 --model.weights=HERE/w", says, make) for make, says in FILES]


# --- run directories and checkpoints that somebody has damaged, or made


def run(*, weights: bool = True) -> Callable[[Path], Path]:
    """A finished run, without the weights of its last checkpoint."""

    def make(here: Path) -> Path:
        path = run_directories.write(here / "run", images=12, epochs=1)
        if weights:
            save_file(SimpleCNN(3).state_dict(), path / "model.safetensors")
        file("x.png", image())(here)
        return path

    return make


def spoilt(name: str, content: bytes | None) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        path = run()(here) / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    return make


def in_its_place(name: str, what: Callable[[Path], object]) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        path = run()(here) / name
        path.unlink(missing_ok=True)
        what(path)

    return make


CONTENTS = [
    b"",
    b"\0" * 100,
    b'{"state": "\xff\xfe"}\n',
    b"[1, 2]\n",
    b"[" * 100_000,
    b'{"step": 1' + b"0" * 5000 + b"}",
]
READERS = ["watch.py --once HERE/run", "report.py HERE/run", "compare.py HERE/run"]
SMALL = ["config.yaml", "evaluation.json", "status.json", "environment.json"]
RUNS = [
    Bad(READERS[number % 3], f"HERE/run/{name}", spoilt(name, content))
    for name in SMALL
    for number, content in enumerate(CONTENTS)
]
RUNS += [
    Bad(READERS[number], f"HERE/run/{name} is {what}", in_its_place(name, put))
    for name in (*SMALL[:2], "metrics.jsonl")
    for number, (what, put) in enumerate(
        [("no file", os.mkfifo), ("a link", lambda path: path.symlink_to("/etc/passwd"))],
    )
]
PREDICT = "predict.py --run HERE/run HERE/x.png"
RUNS += [
    Bad("watch.py --once HERE/run", "metrics.jsonl", in_its_place("metrics.jsonl", Path.mkdir)),
    Bad("watch.py --once HERE/run", "no run directory", spoilt("config.yaml", None)),
    Bad(PREDICT, "no run directory", spoilt("config.yaml", None)),
    Bad(PREDICT, "config.yaml", spoilt("config.yaml", b"optimizer: {learning_rate: .inf}")),
    Bad(PREDICT, "config.yaml", spoilt("config.yaml", b"train: null")),
    Bad(PREDICT, "unknown key train.epoks", spoilt("config.yaml", b"train: {epoks: 3}")),
    Bad(PREDICT, "evaluation.json cannot be read", spoilt("evaluation.json", b"{}")),
    Bad(PREDICT, "evaluation.json cannot be read", spoilt("evaluation.json", b'{"accuracy": NaN}')),
    Bad(PREDICT, "has no weights yet", spoilt("model.safetensors", None)),
    Bad(PREDICT, "no weights file", spoilt("model.safetensors", b"hello")),
    Bad(PREDICT, "damaged", spoilt("model.safetensors", (2**62).to_bytes(8, "little") + b"{")),
    Bad(
        PREDICT, "model.safetensors is a link", in_its_place("model.safetensors", lambda p: p.symlink_to("/etc/passwd"))
    ),
    Bad("evaluate.py --run HERE/run --split all", "--split all: must be one of test, validation, train", run()),
    Bad("evaluate.py --run HERE/run", "this test split is not that of HERE/run (only the run has class ant", run()),
    Bad("compare.py HERE/run --out HERE/x.png", "x.png/comparison.html cannot be written", run()),
    Bad("compare.py HERE/run", "HERE/run is not finished", spoilt("evaluation.json", None)),
    Bad("train.py --data.source=shapes10 --run.dir=HERE/run", "config.yaml", spoilt("config.yaml", b"train: [")),
    Bad("train.py --data.source=shapes10 --run.dir=HERE/run --train.seed=3", "train.seed: 42 -> 3", run()),
]

POSITION = {"epoch": 1, "images": 0, "losses": [], "counts": [], "epoch_loss": 0.0, "skipped": 0, "best": None}
POSITION |= {"metrics_bytes": 0, "scaler": None, "classes": ["a", "b"], "data": "", "world_size": 1, "config": {}}


def checkpointed(
    spoil: Callable[[Path], object] = lambda path: None, state: Callable[[State], State] = dict, **position: Any
) -> Callable[[Path], object]:
    """A run that stands at a checkpoint whose digests are right, then spoilt."""

    def make(here: Path) -> None:
        path = run(weights=False)(here)
        (path / "evaluation.json").unlink()
        (path / "checkpoints").mkdir()
        trainer = {k: v for k, v in (POSITION | {"step": 5} | position).items() if v != "absent"}
        tensors = state(SimpleCNN(2).state_dict())
        spoil(checkpoint.write(path / "checkpoints", checkpoint.State(tensors, {}, {"step": 5} | trainer)))

    return make


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def unsaid(path: Path, name: str) -> None:
    """Seal what is there, without ``name``."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"][name]
    (path / "manifest.json").write_text(json.dumps(manifest))


HARM: list[Callable[[Path], object]] = [Path.unlink, lambda path: os.truncate(path, 0), flipped]
CHECKPOINTS = [
    Bad(PREDICT, "none of the 1 checkpoints in HERE/run/checkpoints is whole", made)
    for made in [
        *(
            checkpointed(lambda path, harm=harm, name=name: harm(path / name))
            for name in (*checkpoint.FILES, checkpoint.MANIFEST)
            for harm in HARM
        ),
        *(checkpointed(lambda path, name=name: unsaid(path, name)) for name in checkpoint.FILES),
        *(checkpointed(**{key: "absent"}) for key in POSITION),
        checkpointed(epoch="one"),
        checkpointed(classes=["a", 3]),
        checkpointed(losses=[None]),
        checkpointed(images=-1),
        checkpointed(config={"train": None}),
        checkpointed(config={"optimizer": {"learning_rate": 10**400}}),
        checkpointed(lambda path: path.rename(path.with_name("step-00000006"))),
    ]
]
CHECKPOINTS += [
    Bad(PREDICT, "do not fit the model", checkpointed(classes=["a", "b", "c"])),
    Bad(PREDICT, "do not fit the model", checkpointed(state=lambda state: {k: v[:1] for k, v in state.items()})),
    Bad(PREDICT, "do not fit the model", checkpointed(state=lambda state: {})),
    Bad(PREDICT, "step-00000005 is a link", checkpointed(lambda path: (shutil.rmtree(path), path.symlink_to("/etc")))),
]


@pytest.mark.parametrize(
    "bad",
    [*COMMAND_LINES, *beyond(), *nulls(), *CONFIGS, *ENVIRONMENTS, *DATA, *WEIGHTS, *RUNS, *CHECKPOINTS],
    ids=lambda bad: printable(" ".join([bad.command, *bad.more, *bad.environment]))[:80],
)
def test_a_bad_input_is_answered_in_one_line(bad: Bad, tmp_path: Path) -> None:
    if bad.make:
        bad.make(tmp_path)
    words = [word.replace("HERE", str(tmp_path)) for word in (*bad.command.split(), *bad.more)]
    said = the_error(run_job(*words, **bad.environment))
    assert bad.says.replace("HERE", str(tmp_path)) in said
    assert said == printable(said)
    assert not list(tmp_path.rglob("canary"))


IMAGES: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty file"),
    "text.jpg": (b"hello", "unknown format"),
    "html.png": (b"<!DOCTYPE html>", "unknown format"),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unknown format"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", "unknown format"),
    "zeros.png": (bytes(1000), "unknown format"),
    "cut.png": (image(64)[:2000], "truncated"),
    "cut.jpg": (image(64, "JPEG")[:1000], "truncated"),
    "cut.webp": (image(64, "WEBP")[:500], ""),
    "cut.gif": (image(64, "GIF")[:900], ""),
    "cut.bmp": (image(64, "BMP")[:900], ""),
    "cut.tiff": (image(64, "TIFF")[:900], ""),
    "head.png": (image()[:8], ""),
    "head.jpg": (b"\xff\xd8\xff\xe0", ""),
    "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "unknown format"),
    "pdf.jpg": (b"%PDF-1.7\n", "unknown format"),
    "no\x1b[2Jcolour.png": (b"", "empty file"),
    "\u202egnp.png": (b"", "empty file"),
    "line\nbreak.png": (b"", "empty file"),
    "caf\udce9.png": (b"", "empty file"),
}


def test_each_bad_image_given_to_predict_is_said_in_a_line_of_its_own_and_the_good_one_is_named(tmp_path: Path) -> None:
    run()(tmp_path)
    for name, (content, _) in IMAGES.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.png")
    paths = [tmp_path / name for name in (*IMAGES, "x.png", "pipe.png", "missing.png", "/dev/zero")]
    done = run_job("predict.py", "--run", tmp_path / "run", *paths)
    assert done.returncode == 1
    assert done.stdout.startswith(str(tmp_path / "x.png"))
    lines = done.stderr.splitlines()
    assert len(lines) == len(paths) - 1, done.stderr
    for line, (name, (_, reason)) in zip(lines, IMAGES.items(), strict=False):
        assert line.startswith(f"error: {printable(str(tmp_path / name))}: ")
        assert reason in line
        assert line == printable(line)


def test_so_many_are_tried() -> None:
    tables = [COMMAND_LINES, beyond(), nulls(), CONFIGS, ENVIRONMENTS, DATA, WEIGHTS, RUNS, CHECKPOINTS, IMAGES]
    assert sum(map(len, tables)) >= 300
