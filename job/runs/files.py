"""Files that stand whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.data.local.disk import flush

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` for a file that takes its place at the end: a crash leaves the old one or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # in a container the process before had the same number
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a small text file so that readers, too, see the old content or the new."""
    with whole(path) as temporary:
        write_file(temporary, [text.encode(errors="backslashreplace")])


def remove_left_overs(directory: Path) -> None:
    """Remove what a process that was killed had written beside. Nobody else may be writing in ``directory``."""
    for path in directory.glob(".*.*"):
        if path.suffix[1:].isdigit():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def tolerating(*numbers: int) -> Iterator[None]:
    """Let an OSError of these ``numbers`` (errno) end what is done within, and no more than that."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def write_file(path: Path, contents: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a new file, flush it to the disk, and say how many ``bytes`` it has and their ``sha256``."""
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for content in contents:
            file.write(content)
            digest.update(content)
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


@contextlib.contextmanager
def opened_as(path: Path) -> Iterator[str]:
    """Another name of the file ``path`` for safetensors, which takes no path that is no UTF-8."""
    with open(path, "rb") as file:
        yield f"/dev/fd/{file.fileno()}"


def load_arrays(path: Path, names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file by name: those in ``names``, or all.

    Raises OSError, and SafetensorError for a file that is damaged or lacks one.
    """
    from safetensors import safe_open

    with opened_as(path) as file, safe_open(file, "numpy") as kept:
        return {name: kept.get_tensor(name) for name in names or kept.keys()}


def save_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write one safetensors file, whole or not at all."""
    with whole(path) as temporary:
        write_safetensors(temporary, to_host(tensors))
    flush(path.parent)


def to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """One pass that writes and hashes, holding no second copy and, unlike the library's writer, no interpreter lock.

    Format: https://github.com/huggingface/safetensors#format
    """
    import torch

    contents = {name: tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy() for name in sorted(tensors)}
    ends = accumulate(map(len, contents.values()), initial=0)
    header = {
        name: {"dtype": _DTYPES[str(tensors[name].dtype)], "shape": list(tensors[name].shape), "data_offsets": offsets}
        for name, offsets in zip(contents, pairwise(ends), strict=True)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of eight
    return write_file(path, [len(text).to_bytes(8, "little"), text, *(array.data for array in contents.values())])
