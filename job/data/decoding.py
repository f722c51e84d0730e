"""One image file becomes RGB pixels; many do in processes of their own.

Imports nothing of this project and no array library, since it is also what those processes run: they start in a tenth
of a second of one core. A ``ProcessPoolExecutor`` takes three times that, since each of its processes imports the main
script anew, and leaves a warning when the job is killed. Threads would not do: of the 0.1 ms that a small image takes,
Pillow spends most in Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000")
"""not all that Pillow knows: for some, such as EPS, it starts other programs"""
LARGEST = 1 << 30
"""bytes of an image file; what has more, such as a film, is not read"""
TOO_LARGE = "more than 1 GiB"

Image.MAX_IMAGE_PIXELS = 1 << 28  # telephones make 200 million
_HUGE = 89_478_485  # pixels, Pillow's own limit; smaller images keep the bits that they always became

Encoded = bytes | Path
"""an image file's bytes, or where to read them"""
Range = tuple[float, float]
"""values of a set's deep images, of 16 bits or in floating point, that become 0 and 255"""
Deep = Range | Literal["ask"] | None
"""what ``read`` makes of a deep image"""
Pixels = list[bytes | str | Range]
"""for each file what ``read`` gives, or in words what was wrong with it"""
RESIZE = {
    "squeeze": "both sides to image_size",
    "crop": "the shorter side to image_size, then the middle of the longer",
    "pad": "the longer side to image_size, then black to both sides of the shorter",
}
"""what each ``data.resize`` does, in words"""
Reader = Callable[[Sequence[Encoded]], Future[Pixels]]
"""reads many files as ``read`` does, later; paths must be absolute"""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read(encoded: Encoded, size: int, resize: str = "squeeze", deep: Deep = None) -> bytes | Range:
    """Pixels of an image in RGB, ``size * size * 3`` bytes in rows, made square as ``resize`` says (``RESIZE``).

    See ``to_rgb`` for what becomes of other kinds of images; with "ask" a deep one gives its own range in place of
    pixels. Resizing is bilinear over all pixels that a new one covers. Raises ``ValueError`` with the reason for
    anything that is not a whole image, of one of ``FORMATS``, with at most ``LARGEST`` bytes and
    ``Image.MAX_IMAGE_PIXELS`` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # on odd metadata
            content = _content(encoded)
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened, contextlib.ExitStack() as alone:
                if opened.width * opened.height > _HUGE:
                    opened.draft(None, (4 * size, 4 * size))  # a JPEG can be read at an eighth of its size
                    lock = alone.enter_context(open(__file__, "rb"))  # others take up to 4 GB: one at a time
                    with contextlib.suppress(OSError):
                        fcntl.flock(lock, fcntl.LOCK_EX)
                if deep == "ask" and _is_deep(opened):
                    return _range(opened)
                image = to_rgb(opened, None if deep == "ask" else deep)
                return _square(image, size, resize).tobytes()
    except Exception as error:  # Pillow raises nearly anything on a broken file
        raise ValueError(_reason(error)) from error


def to_rgb(image: Image.Image, deep: Range | None = None) -> Image.Image:
    """An upright RGB image, 8 bits a channel, of whatever Pillow has opened.

    The orientation that a camera noted (EXIF) is applied, if it can be read. Grey and palette images become RGB;
    transparent ones lie on white; CMYK is converted without a colour profile; of an animation the first frame counts.
    Grey images of 16 bits or in floating point: the range ``deep`` becomes 0 to 255 in equal steps, what lies outside
    is cut; without a range the upper 8 of 16 bits are kept. (Of 16 bits in colour Pillow always reads the upper 8.)
    Raises ``ValueError`` for floating-point images of unknown range.
    """
    image.load()  # in a PNG the orientation may come after the pixels, whose faults are not to be passed over
    turn = None
    with contextlib.suppress(Exception):  # Pillow raises nearly anything on broken EXIF
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "RGB":
        return image
    if _is_deep(image):
        if image.mode == "F" and deep is None:
            raise ValueError("floating-point image, and the range of values is not known")
        low, high = deep or (0, 1 << 16)
        scale = 256 / (high - low) if high > low else 0.0
        image = _values(image).convert("F").point(lambda value: value * scale + -low * scale).convert("L")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))  # 16 bits, for some formats in a container of 32; floating point


def _values(image: Image.Image) -> Image.Image:
    return image if image.mode == "F" else image.convert("I")


def _range(image: Image.Image) -> Range:
    """The lowest and the highest value of a deep image."""
    values = _values(image)
    if image.mode == "F" and not math.isfinite(sum(array("f", values.tobytes()))):
        raise ValueError("floating-point image with values that are not finite")
    low, high = values.getextrema()
    assert isinstance(low, (int, float)) and isinstance(high, (int, float))  # noqa: PT018 (for mypy: one channel)
    return float(low), float(high)


def _square(image: Image.Image, size: int, resize: str) -> Image.Image:
    """``image`` with both sides of ``size``."""
    width, height = image.size
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR, box)
    inner = size, size
    if resize == "pad":
        longer = max(width, height)
        inner = max(1, round(size * width / longer)), max(1, round(size * height / longer))
    if image.size != inner:
        image = image.resize(inner, Image.Resampling.BILINEAR)
    if inner != (size, size):
        padded = Image.new("RGB", (size, size))
        padded.paste(image, ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return padded
    return image


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""what makes an image upright, by its orientation in EXIF; ``ImageOps.exif_transpose`` stumbles over other entries"""


@contextlib.contextmanager
def readers(size: int, processes: int, resize: str = "squeeze", deep: Deep = None) -> Iterator[Reader]:
    """So many processes that ``read`` images; they end with this context, or with this process."""
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def ask(encoded: Sequence[Encoded]) -> Pixels:
        process = idle.get()
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018 (for mypy)
        try:
            pickle.dump((encoded, (size, resize, deep)), process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            answer: Pixels = pickle.load(process.stdout)  # noqa: S301 (from our own process)
            return answer
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            raise ChildProcessError(f"a process that decodes images died (status {process.wait()})") from None
        finally:
            idle.put(process)

    with contextlib.ExitStack() as stack:
        for _ in range(processes):
            command = [sys.executable, "-P", __file__]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)  # closes its input, which ends it, and waits
            idle.put(process)
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        try:
            yield lambda encoded: pool.submit(ask, encoded)
        finally:
            pool.shutdown(cancel_futures=True)


def _serve() -> None:
    """Answer requests from standard input on standard output until the former ends."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:  # the job decides when to stop
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            encoded, way = pickle.load(sys.stdin.buffer)  # noqa: S301 (from the process that started this one)
            pixels: Pixels = []
            for item in encoded:
                try:
                    pixels.append(read(item, *way))
                except ValueError as error:
                    pixels.append(str(error))
            pickle.dump(pixels, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()


def _content(encoded: Encoded) -> bytes:
    if isinstance(encoded, Path):
        if encoded.exists() and not encoded.is_file():  # a pipe would never end
            raise ValueError("not an ordinary file")
        if encoded.stat().st_size <= LARGEST:
            encoded = encoded.read_bytes()
    if isinstance(encoded, Path) or len(encoded) > LARGEST:
        raise ValueError(TOO_LARGE)
    if not encoded:
        raise ValueError("empty file")
    return encoded


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown format"
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


if __name__ == "__main__":
    _serve()
