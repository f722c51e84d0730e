"""Small folders of images that differ in every pixel, as people lay them out, and archives of them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def png(number: int, size: int = 8) -> bytes:
    """An image of noise that differs for each number."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    """``root`` with files by their paths."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def tree(folders: dict[str, int], first: int = 0, size: int = 8) -> dict[str, bytes]:
    """So many images for each folder, every one another."""
    names = [f"{folder}/{number}.png" for folder, count in folders.items() for number in range(count)]
    return {name: png(first + number, size) for number, name in enumerate(names)}


def tar(path: Path, files: dict[str, bytes], top: str = "") -> Path:
    """A .tar.gz of files below a folder ``top``."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def windows_zip(path: Path, files: dict[str, bytes]) -> Path:
    """A zip as Windows PowerShell makes it: folders are parted by backslashes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("/", "\\"), content)
    return path


def table(rows: Iterable[Iterable[object]], separator: str = ",") -> str:
    """A CSV file."""
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)
