"""The whole training state on disk, such that a crash at any instant leaves a usable one.

A checkpoint is a directory ``step-00000313`` of two or three safetensors files, a JSON file and a manifest with sizes
and SHA-256. It is written beside, flushed, and renamed into place last; older ones go only after that. No pickles.
World size is no part of it: positions count images, and only rank zero reads or writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from job.config.errors import UserError
from job.config.kinds import require
from job.config.plain import renewed
from job.models import fingerprint
from job.runs import files
from job.runs.reader import checkpoints, step_of
from job.runs.records import Position

FORMAT = 1
MANIFEST = "manifest.json"
FILES = ("model.safetensors", "optimizer.safetensors", "trainer.json")
COPIES = "copies.safetensors"  # where there are any
AVERAGE, BEST = "average/", "best/"
"""what stands before a tensor's name in ``State.copies``"""
DAMAGED = (OSError, ValueError, KeyError, RecursionError, SafetensorError)
"""what ``read`` raises for a checkpoint that is not whole"""


@dataclass
class State:
    """All that the next step depends on."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """``<parameter name>/<key>``"""
    trainer: dict[str, Any]
    """plain values for JSON: step, position in the epoch in images, running losses, best result, ..."""
    copies: dict[str, Tensor] = field(default_factory=dict)
    """weights beside those that are trained: their average, the best by validation"""

    @property
    def name(self) -> str:
        """of the checkpoint that holds it"""
        return f"step-{self.trainer['step']:08d}"

    @property
    def evaluated(self) -> dict[str, Tensor]:
        """The weights that an evaluation sees."""
        return below(BEST, self.copies) or self.model | below(AVERAGE, self.copies)


class NotFiniteError(RuntimeError):
    """The weights to be saved hold NaN or infinity; they were not saved."""


def reached(point: str) -> None:
    """Called at each instant of a save that could be its last. Does nothing: fault-injection tests replace it."""


class Checkpoints:
    """The checkpoints of one run, ``keep`` of them; none at all where ``directory`` is None, as on other ranks."""

    def __init__(self, directory: Path | None, *, keep: int, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._keep = keep
        self._say = say
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self.save_seconds = 0.0
        """how long the last write took, from copy to rename"""
        if directory is not None:
            directory.mkdir(exist_ok=True)
            for left_over in directory.glob(".*-*"):
                shutil.rmtree(left_over, ignore_errors=True)

    def save(self, state: State) -> bool:
        """Copy ``state`` to host memory and write it in the background; False, and nothing, while one is being written.

        ``failed`` tells afterwards what went wrong.
        """
        if self._directory is None or (self._writer is not None and self._writer.is_alive()):
            return False
        begin = time.monotonic()
        to_host = files.to_host
        copy = State(to_host(state.model), to_host(state.optimizer), state.trainer, to_host(state.copies))
        self._error = None  # whatever became of the save before this one, it matters no more
        self._writer = threading.Thread(target=self._write, args=(copy, begin), name="checkpoint")
        self._writer.start()
        return True

    def wait(self) -> None:
        """Wait for the save that is being written."""
        if self._writer is not None:
            self._writer.join()

    def failed(self) -> BaseException | None:
        """What the last save failed with, once: OSError, or NotFiniteError."""
        error, self._error = self._error, None
        return error

    def load(self, *, metrics_bytes: int) -> State | None:
        """``newest_whole``; what it passed over is set aside as ``damaged-...``: retention would count it."""
        if self._directory is None:
            return None
        state = newest_whole(self._directory, self._say, metrics_bytes=metrics_bytes)
        for path in checkpoints(self._directory):
            if state is not None and step_of(path) > state.trainer["step"]:
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.rename(aside)
        return state

    def _write(self, state: State, begin: float) -> None:
        assert self._directory is not None
        try:
            for what, tensors in (("weights", state.model), ("moments of the gradients", state.optimizer)):
                if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
                    raise NotFiniteError(f"{what} are not finite after step {state.trainer['step']}")
            state.trainer["fingerprint_of_rest"] = fingerprint.of(state.optimizer | state.copies)
            written = write(self._directory, state)
            self.save_seconds = time.monotonic() - begin
            self._retire(written)
        except BaseException as error:
            self._error = error

    def _retire(self, written: Path) -> None:
        # Counted from the new one down: a later step was passed over, and could not be set aside.
        present = [path for path in checkpoints(written.parent) if step_of(path) <= step_of(written)]
        for path in present[: -self._keep]:
            reached("retire")
            with contextlib.suppress(OSError):
                _remove(path)


def newest_whole(
    directory: Path, say: Callable[[str], None] = lambda _: None, *, metrics_bytes: float = math.inf
) -> State | None:
    """The newest checkpoint in ``directory`` that verifies; None where there is none at all.

    One that knows of more than the ``metrics_bytes`` that are left of metrics.jsonl is of no use to go on from, but an
    older one is: the steps after it write the lost lines again. Says which ones are passed over and why.
    Raises UserError when there are some and none verifies.
    """
    present, whole = checkpoints(directory), []
    for path in reversed(present):
        try:
            state = read(path)
            if state.trainer["metrics_bytes"] <= metrics_bytes:
                return state
            whole.append(path)
            raise ValueError("metrics.jsonl has lost lines that it knows of")
        except DAMAGED as error:
            say(f"passing over checkpoint {path.name}: {error}")
    if whole:  # lines are worth less than weights
        say(f"going on from checkpoint {whole[0].name} after all: the lines that metrics.jsonl has lost stay lost")
        return read(whole[0])
    if present:
        raise UserError(
            f"none of the {len(present)} checkpoints in {directory} is whole",
            "restore one from a backup, or move the directory away to start from the beginning",
        )
    return None


def write(directory: Path, state: State) -> Path:
    """Write ``state`` so that it appears in ``directory`` whole or not at all. Raises OSError, leaving nothing.

    A whole one of the same step is left as it is; a damaged one makes room.
    """
    final = directory / state.name
    if final.exists():
        with contextlib.suppress(*DAMAGED):
            read(final)
            return final
        _remove(final)
    temporary = directory / f".tmp-{final.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        written = {}
        for name, tensors in zip((*FILES[:2], COPIES), (state.model, state.optimizer, state.copies), strict=True):
            if tensors or name != COPIES:
                written[name] = files.write_safetensors(temporary / name, tensors)
                reached(name)
        text = json.dumps({"format": FORMAT} | state.trainer, allow_nan=False, indent=1)
        written["trainer.json"] = files.write_file(temporary / "trainer.json", [text.encode()])
        reached("trainer.json")
        files.write_file(temporary / MANIFEST, [json.dumps({"format": FORMAT, "files": written}, indent=1).encode()])
        reached(MANIFEST)
        files.flush(temporary)
        reached("before rename")
        temporary.rename(final)
        reached("after rename")
        files.flush(directory)
        return final
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read(path: Path) -> State:
    """The state in checkpoint ``path``. Raises one of ``DAMAGED``, with the reason, unless all of it verifies.

    Raises UserError for one that a newer program wrote: to pass it over would throw its work away.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        number = manifest["format"]
        names = [*FILES, *([COPIES] if COPIES in manifest["files"] else [])]
        listed = {name: (manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]) for name in names}
    except FileNotFoundError:
        raise ValueError("it has no manifest") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("its manifest is damaged") from None
    for name, (size, digest) in listed.items():
        if not (path / name).exists():
            raise ValueError(f"{name} is missing")
        if (present := (path / name).stat().st_size) != size:
            raise ValueError(f"{name} has {present} bytes, not {size}")
        with open(path / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{name} has changed since it was written (SHA-256 differs)")
    trainer = json.loads((path / "trainer.json").read_text("utf-8"))
    require(trainer, dict, "trainer.json")
    if number != trainer.get("format"):
        raise ValueError("its manifest is damaged")
    if number != FORMAT:
        what = f"checkpoint {path} has format {number}, and this program reads {FORMAT}"
        raise UserError(what, "continue with the program that wrote it, or give another --run.dir")
    trainer["config"] = renewed(trainer.get("config"))
    require(trainer, Position, "trainer.json")
    if path.name != f"step-{trainer['step']:08d}":
        raise ValueError(f"it is of step {trainer['step']}, unlike its name")
    if len(trainer["losses"]) != len(trainer["counts"]):
        raise ValueError("trainer.json has not as many counts as losses")
    tensors = {}
    for name in listed.keys() - {"trainer.json"}:
        with files.opened_as(path / name) as file:
            tensors[name] = load_file(file)
    state = State(tensors[FILES[0]], tensors[FILES[1]], trainer, tensors.get(COPIES, {}))
    held = {"fingerprint": state.model, "fingerprint_of_rest": state.optimizer | state.copies}
    if any(name in trainer and trainer[name] != fingerprint.of(one) for name, one in held.items()):
        raise ValueError("its tensors are not those that training had (their fingerprint differs)")
    return state


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of ``tensors`` whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _remove(path: Path) -> None:
    # A rename first: a checkpoint that is half deleted must not look like a damaged one.
    shutil.rmtree(path.rename(path.with_name(f".trash-{path.name}")), ignore_errors=True)
