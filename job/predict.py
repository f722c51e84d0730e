"""Name the classes of pictures with the weights of a run, finished or running.

Ways to run it:
  python job/predict.py --run RUN PICTURE|FOLDER ...    a line for each: class, probability, runners-up
  python job/predict.py --run RUN --json FOLDER         a JSON object a line, with all probabilities
  cat PICTURE | python job/predict.py --run RUN -       one picture from standard input
  python job/predict.py --run RUN --export DIR          the model for use elsewhere, checked after writing
Folders are searched with all that is below them. Pictures of any size are turned upright and squeezed to the model's.
A picture that cannot be read is said on standard error, the others are still named, and the exit status is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from job.config.command_line import Arguments
from job.config.errors import FAILED, UserError
from job.data import decoding
from job.data.decoding import Encoded
from job.distributed import ending

if TYPE_CHECKING:
    from concurrent.futures import Future

    from torch import Tensor

STDIN = "-"


def main(argv: list[str]) -> int:
    """Predict, export or both; returns the exit status, 1 when a picture could not be read."""
    parser = Arguments(__doc__ or "")
    parser.add_argument("--run", required=True, type=Path, help="run directory")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, also for pictures that fail")
    parser.add_argument("--top", type=int, default=3, help="classes to show of each picture (default: 3)")
    parser.add_argument("--batch", type=int, default=64, help="pictures computed at once (default: 64)")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the model there, for use without this job")
    parser.add_argument("pictures", nargs="*", help="picture files, folders, or - for standard input")
    options = parser.parse_args(argv)
    if not options.pictures and options.export is None:
        raise UserError("no pictures", "name files or folders, - for standard input, or --export DIR")
    if options.batch < 1 or options.top < 1:
        raise UserError("--batch and --top", "must be 1 or more")
    names = list(expand(options.pictures))

    from job.runs import export

    model, group = export.restored(options.run)
    if options.export is not None:
        for path in export.export(model, options.export):
            print(f"wrote {path}", file=sys.stderr)
    width = min(max((len(name) for name in names), default=0), 60)
    unread = 0
    for batch, pixels, reasons in read(names, model.size, options.batch):
        probabilities = iter(model.probabilities(pixels, group))
        for name, reason in zip(batch, reasons, strict=True):
            unread += reason is not None
            if reason is not None:
                print(f"error: {name}: {reason}", file=sys.stderr)
            found = None if reason is not None else dict(zip(model.classes, next(probabilities).tolist(), strict=True))
            if options.json:
                print(json.dumps(_record(name, found, reason)), flush=True)
            elif found is not None:
                print(_line(name, found, options.top, width), flush=True)
    return FAILED if unread else 0


def expand(names: Sequence[str]) -> Iterator[str]:
    """The picture files that ``names`` mean, folders searched, each in the order of their names.

    Raises UserError for a folder without any; whether the others can be read shows later.
    """
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in decoding.FORMATS}
    for name in names:
        if name == STDIN or not Path(name).is_dir():
            yield name
            continue
        found = [str(path) for path in sorted(Path(name).rglob("*")) if path.suffix.lower() in endings]
        if not found:
            raise UserError(f"no pictures in {name}", f"their names end in one of {', '.join(sorted(endings))}")
        yield from found


def read(names: Sequence[str], size: int, batch: int) -> Iterator[tuple[Sequence[str], Tensor, list[str | None]]]:
    """Batches of names, pixels uint8 [n, 3, size, size] of those that could be read, and what was wrong with each.

    Files are read in processes of their own, some batches ahead.
    """
    import torch

    def result() -> tuple[Sequence[str], Tensor, list[str | None]]:
        chunk, future = waiting.popleft()
        answers = future.result()
        pixels = b"".join(answer for answer in answers if isinstance(answer, bytes))
        flat = torch.frombuffer(bytearray(pixels), dtype=torch.uint8) if pixels else torch.empty(0).byte()
        reasons = [answer if isinstance(answer, str) else None for answer in answers]
        return chunk, flat.view(-1, size, size, 3).permute(0, 3, 1, 2), reasons

    waiting: deque[tuple[Sequence[str], Future[decoding.Pixels]]] = deque()
    chunks = [names[start : start + batch] for start in range(0, len(names), batch)]
    processes = max(1, min(len(chunks), decoding.cores()))
    with decoding.readers(size, processes) as reader:
        for chunk in chunks:
            waiting.append((chunk, reader([_encoded(name) for name in chunk])))
            if len(waiting) > 2 * processes:
                yield result()
        while waiting:
            yield result()


def _encoded(name: str) -> Encoded:
    return sys.stdin.buffer.read() if name == STDIN else Path(name).absolute()


def _record(name: str, probabilities: dict[str, float] | None, reason: str | None) -> dict[str, Any]:
    if probabilities is None:
        return {"picture": name, "error": reason}
    best = max(probabilities, key=probabilities.__getitem__)
    return {"picture": name, "class": best, "probability": probabilities[best], "probabilities": probabilities}


def _line(name: str, probabilities: dict[str, float], top: int, width: int) -> str:
    best = sorted(probabilities, key=probabilities.__getitem__, reverse=True)[:top]
    widest = max(map(len, probabilities))
    shown = "  ".join(f"{label:<{widest}} {probabilities[label]:6.1%}" for label in best)
    return f"{name:<{width}}  {shown}"


if __name__ == "__main__":
    ending.entry(main)
