"""Files that stand whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def write_whole(path: Path, text: str) -> None:
    """Write a small text file so that readers, and a crash, see the old content or the new."""
    temporary = beside(path)
    try:
        write_file(temporary, [text.encode()])
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_left_overs(directory: Path) -> None:
    """Remove what a process that was killed had written beside. Nobody else may be writing in ``directory``."""
    for path in directory.glob(".*.*"):
        if path.suffix[1:].isdigit():
            path.unlink(missing_ok=True)


def flush_directory(path: Path) -> None:
    """Make renames in ``path`` outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)


def write_file(path: Path, contents: list[bytes | memoryview]) -> dict[str, Any]:
    """Write a new file, flush it to the disk, and say how many ``bytes`` it has and their ``sha256``."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb", buffering=0) as file:
        for content in contents:
            view = memoryview(content)
            while len(view):  # one call writes at most 2 GiB
                chunk = view[: 1 << 26]
                written = file.write(chunk)
                digest.update(chunk[:written])
                size += written
                view = view[written:]
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def beside(path: Path) -> Path:
    """Where ``path`` is written before it is renamed. In a container the next process has the same number."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    return temporary


def save_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write one safetensors file, whole or not at all."""
    temporary = beside(path)
    try:
        write_safetensors(temporary, to_host(tensors))
        temporary.replace(path)
        flush_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    import torch

    return {name: torch.empty_like(t, device="cpu").copy_(t.detach()) for name, t in tensors.items()}


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """One pass that writes and hashes, holding no second copy and, unlike the library's writer, no interpreter lock.

    Format: https://github.com/huggingface/safetensors#format
    """
    import torch

    header: dict[str, Any] = {}
    contents, offset = [], 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        data = tensor.reshape(-1).view(torch.uint8).numpy()
        header[name] = {
            "dtype": _DTYPES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        contents.append(memoryview(data))  # type: ignore[arg-type]
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of eight
    return write_file(path, [len(text).to_bytes(8, "little"), text, *contents])
