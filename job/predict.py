"""Name the classes of images with the weights of a run, finished or running.

Ways to run it:
  python job/predict.py --run RUN IMAGE|FOLDER ...      a line for each: class, probability, runners-up
  python job/predict.py --run RUN --json FOLDER         a JSON object a line, with all probabilities
  python job/predict.py --run RUN --csv FOLDER >FILE    a table: path, predicted, confidence, and each class
  cat IMAGE | python job/predict.py --run RUN -         one image from standard input
  python job/predict.py --run RUN --export DIR          the model for use elsewhere, checked after writing; --onnx
Folders are searched with all that is below them, as in training, for files whose names end as those of images do.
Images of any size are turned upright and made square as those were that the run was trained on. An image that cannot be
read is said on standard error, the others are still named, and the exit status is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: `job` is found from anywhere, and what lies in job/ shadows nothing
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import csv
import io
import itertools
import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from job.config.command_line import Arguments
from job.config.errors import FAILED, UserError, printable
from job.data import archives, decoding
from job.data.decoding import Deep, Encoded
from job.distributed import ending

if TYPE_CHECKING:
    from torch import Tensor

STDIN = "-"
HEAD = ("path", "predicted", "confidence")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""what spreadsheets take for the beginning of one"""


def main(argv: list[str]) -> int:
    """Predict, export or both; returns the exit status, 1 when an image could not be read."""
    parser = Arguments(__doc__ or "")
    parser.add_argument("--run", required=True, type=Path, help="run directory")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line, also for images that fail")
    form.add_argument("--csv", action="store_true", help="a table for spreadsheets, with empty cells for such images")
    parser.add_argument("--top", type=int, default=3, help="classes to show of each image (default: 3)")
    parser.add_argument("--batch", type=int, default=64, help="images computed at once (default: 64)")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the model there, for use without this job")
    parser.add_argument("--onnx", action="store_true", help="with --export: as ONNX, in place of torch's own format")
    parser.add_argument("images", nargs="*", help="image files, folders, or - for standard input")
    options = parser.parse_args(argv)
    if not options.images and options.export is None:
        raise UserError("no images", "name files or folders, - for standard input, or --export DIR")
    if options.batch < 1 or options.top < 1:
        raise UserError("--batch and --top", "must be 1 or more")
    if options.onnx and options.export is None:
        raise UserError("--onnx", "needs --export DIR")
    names = list(expand(options.images))

    from job.runs import export

    model, group = export.restored(options.run)
    if options.export is not None:
        for line in export.export(model, options.export, options.run / "model.safetensors", onnx=options.onnx):
            print(printable(line), file=sys.stderr)
    if options.csv and names:
        print(_row([*HEAD, *(f"{name} (class)" if name in HEAD else name for name in model.classes)]), flush=True)
    width = min(max((len(name) for name in names), default=0), 60)
    unread = False
    way = (model.settings.data.resize, model.deep)
    for batch, pixels, reasons in read(names, model.size, options.batch, *way):
        rows = iter(model.probabilities(pixels, group).tolist())
        for name, reason in zip(batch, reasons, strict=True):
            if reason is not None:
                unread = True
                ending.complain(f"{name}: {reason}")
                if options.json:
                    print(json.dumps({"picture": name, "error": reason}), flush=True)
                elif options.csv:
                    print(_row([_path(name), *[""] * (len(HEAD) - 1 + len(model.classes))]), flush=True)
                continue
            probabilities = dict(zip(model.classes, next(rows), strict=True))
            if options.csv:
                line = _cells(name, probabilities)
            else:
                line = _record(name, probabilities) if options.json else _line(name, probabilities, options.top, width)
            print(line, flush=True)
    return FAILED if unread else 0


def expand(names: Sequence[str]) -> Iterator[str]:
    """The image files that ``names`` mean, folders searched, each in the order of their names.

    What is left out of a folder is counted in one line on standard error. Raises UserError for a folder without any;
    whether the others can be read shows later.
    """
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in decoding.FORMATS}
    for name in names:
        if name == STDIN or not Path(name).is_dir():
            yield name
            continue
        files: list[str] = []
        others: Counter[str] = Counter()
        for member in archives.below(Path(name)):
            if member.debris:
                others["that desktops, editors or a NAS made"] += 1
            elif isinstance(member.content, Path):
                suffix = member.content.suffix.lower()
                if suffix in endings:
                    files.append(str(member.content))
                else:
                    others[suffix or "without an ending"] += 1
        left_out = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        if left_out:
            left_out = f"; left out {others.total()} files: {left_out}"
        if not files:
            raise UserError(f"no images in {name}{left_out}", f"their names end in one of {', '.join(sorted(endings))}")
        if left_out:
            print(printable(f"{name}: {len(files)} images{left_out}"), file=sys.stderr)
        yield from files


def read(
    names: Sequence[str], size: int, batch: int, resize: str, deep: Deep
) -> Iterator[tuple[Sequence[str], Tensor, list[str | None]]]:
    """Batches of names, pixels uint8 [n, 3, size, size] of those that could be read, and what was wrong with each.

    Files are read in processes of their own, some batches ahead.
    """
    import torch

    chunks = [names[start : start + batch] for start in range(0, len(names), batch)]
    processes = max(1, min(len(chunks), decoding.cores()))
    with decoding.readers(size, processes, resize, deep) as reader:
        futures = (reader([_encoded(name) for name in chunk]) for chunk in chunks)
        ahead = deque(itertools.islice(futures, 2 * processes))
        for chunk in chunks:
            ahead.extend(itertools.islice(futures, 1))
            answers = ahead.popleft().result()
            pixels = b"".join(answer for answer in answers if isinstance(answer, bytes))
            reasons = [answer if isinstance(answer, str) else None for answer in answers]
            flat = torch.frombuffer(bytearray(pixels), dtype=torch.uint8) if pixels else torch.empty(0).byte()
            yield chunk, flat.view(-1, size, size, 3).permute(0, 3, 1, 2), reasons


def _encoded(name: str) -> Encoded:
    return sys.stdin.buffer.read(decoding.LARGEST + 1) if name == STDIN else Path(name).absolute()


def _record(name: str, probabilities: dict[str, float]) -> str:
    best = max(probabilities, key=probabilities.__getitem__)
    record = {"picture": name, "class": best, "probability": probabilities[best], "probabilities": probabilities}
    return json.dumps(record)


def _cells(name: str, probabilities: dict[str, float]) -> str:
    best = max(probabilities, key=probabilities.__getitem__)
    numbers = (f"{value:.9g}" for value in (probabilities[best], *probabilities.values()))  # float32, and no digit more
    return _row([_path(name), best, *numbers])


def _path(name: str) -> str:
    """``name`` as one that no spreadsheet takes for a formula, and that names the same file."""
    return f"./{name}" if name.startswith(FORMULA) and name != STDIN else name


def _row(cells: Sequence[str]) -> str:
    """A line of CSV (RFC 4180) without its end.

    Names of files and classes are other people's: a spreadsheet would run one that begins as formulas do, so an
    apostrophe is put before it (https://owasp.org/www-community/attacks/CSV_Injection). Numbers here begin with digits.
    """
    line = io.StringIO()
    harmless = (f"'{cell}" if cell.startswith(FORMULA) and cell != STDIN else cell for cell in cells)
    csv.writer(line).writerow(harmless)  # with its own line end, or it would not quote those within
    text = line.getvalue().removesuffix("\r\n")
    return printable(text, "\n") if sys.stdout.isatty() else text.encode("utf-8", "backslashreplace").decode()


def _line(name: str, probabilities: dict[str, float], top: int, width: int) -> str:
    best = sorted(probabilities, key=probabilities.__getitem__, reverse=True)[:top]
    widest = max(map(len, probabilities))
    shown = "  ".join(f"{label:<{widest}} {probabilities[label]:6.1%}" for label in best)
    return printable(f"{name:<{width}}  {shown}")


if __name__ == "__main__":
    ending.entry(main, only_shows=True)
