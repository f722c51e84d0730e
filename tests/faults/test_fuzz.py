"""Valid inputs, damaged: no command may end in a traceback, hang, fill the memory, or say what a terminal would obey.

  FUZZ_CASES=10000 python -m pytest -n 2 tests/faults/test_fuzz.py

tries so many other ones, in an hour; without it each kind is tried a few times, with the same damage each time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import json
import os
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from job import compare, evaluate, predict, report, train, watch
from job.config import command_line
from job.config.errors import FailedError, UserError, printable
from job.config.plain import flat, to_dict
from job.config.settings import Config, Data
from job.data import datasets, decoding
from job.display import run_page
from job.display.console import Console
from job.runs import checkpoint

pytestmark = [  # what a process holds until it ends, such as its run directory, here goes with its case
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
LIMIT = 120
"""seconds after which a case hangs, on a machine that does other things as well"""
GROWTH = 1 << 30
"""bytes by which one case may raise the peak of this process's memory"""
CASES = int(os.environ.get("FUZZ_CASES", "0"))
LAUGHS = ", ".join(f"k{i}: &n{i} {{x: *n{i - 1}, y: *n{i - 1}}}" for i in range(1, 40))
VALUES = [
    *("", "0", "-1", "1", "1e999", "-1e999", ".nan", "NaN", "0.5", "1e20", str(2**31), str(2**63), "7" * 5001),
    *("null", "true", '""', "[]", "{}", "[1, 2, 3]", "{x: 1}", '{"x": {"y": []}}', "[" * 3000, "{a: " * 500, "[null]"),
    *("&a [*a]", "&a {x: *a}", "*a", f"{{k0: &n0 {{x: 1}}, {LAUGHS}}}", "{<<: {x: 1}}", "{<<: 1}", "{x: 1, x: 2}"),
    *("2026-01-01", "2026-99-99", "0o17", "1_0", "1:2:3", "!!python/name:os.system", "!!binary AA==", "!!set {a}"),
    *('"~nosuchuser/x"', '"/proc/x/y"', '"/dev/null/x"', '"/dev/null"', '"../.."', '"."', f'"{"x" * 5000}"'),
    *('"\\u0000"', '"\\u001b[2J\\u001b]0;x\\u0007"', '"\\u202egnp.exe"', '"a\\nb"', '"\\ud800"', "\x00", "\x1b[2J"),
    *("\x85", "\r", "\t", "\\", "%s{0}", "[bold]x[/bold]", "[/x]", "@", "`", "- ", ": ", "#", "\ufeff", "é"),
]  # fmt: skip
"""what stands in another's place, as JSON and YAML write it: wrong kinds, bounds, hostile paths and characters"""
BYTES = ["flip", "cut", "double", "insert", "swap", "zero"]
TREE = ["value", "value", "value", "value", "remove"]
FILE = ["delete", "folder", "pipe", "loop", "other"]
Edit = tuple[float, str, str]
SHARES = st.integers(0, 9999).map(lambda number: number / 10000)


def edits(ways: list[str], most: int = 3) -> st.SearchStrategy[list[Edit]]:
    """Up to ``most`` times where (a share of the whole), how, and with what."""
    return st.lists(st.tuples(SHARES, st.sampled_from(ways), st.sampled_from(VALUES)), max_size=most)


def spoilt(content: bytes, damage: list[Edit]) -> bytes:
    """``content`` with its bytes, or what it says as JSON, JSON lines, YAML or safetensors, changed by ``damage``."""
    for share, way, value in damage:
        at, text = min(int(share * len(content)), max(len(content) - 1, 0)), value.encode()
        match way:
            case "flip" if content:
                content = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
            case "cut":
                content = content[:at]
            case "double":
                content = content[:at] + content[at // 2 :]
            case "insert":
                content = content[:at] + text + content[at:]
            case "swap":
                content = content[at:] + content[:at]
            case "zero":
                content = content[:at] + bytes(len(content[at : at + 16])) + content[at + 16 :]
            case "value" | "remove":
                with contextlib.suppress(ValueError, yaml.YAMLError, RecursionError):
                    content = _said_otherwise(content, share, text if way == "value" else None)
    return content


def _said_otherwise(content: bytes, share: float, text: bytes | None) -> bytes:
    size = int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and 8 + size <= len(content):  # safetensors
        header = _said_otherwise(content[8 : 8 + size], share, text)
        return len(header).to_bytes(8, "little") + header + content[8 + size :]
    lines = content.splitlines()
    if len(lines) > 1 and lines[0].startswith(b"{") and lines[0].endswith(b"}"):  # JSON lines
        line = int(share * (len(lines) - 1))
        lines[line] = _said_otherwise(lines[line], share * len(lines) % 1, text)
        return b"\n".join([*lines, b""])
    if b"&" in content:  # what was put in before contains itself, or stands for more than any memory holds
        return content
    tree = yaml.safe_load(content.decode())
    places: list[tuple[Any, Any]] = [([tree], 0)]
    for node, key in places:
        inner = node[key]
        places += [(inner, k) for k in inner] if isinstance(inner, dict) else []
        places += [(inner, i) for i in range(len(inner))] if isinstance(inner, list) else []
    node, key = places[min(int(share * len(places)), len(places) - 1)]
    if text is None:
        del node[key]
    else:
        node[key] = "@HERE@"
    return b"" if not tree else json.dumps(tree, default=str).encode().replace(b'"@HERE@"', text or b"")


def spoil(folder: Path, file: Path, damage: list[Edit]) -> None:
    """Change a file of ``folder``."""
    file.write_bytes(spoilt(file.read_bytes(), damage))
    for share, way, _ in damage:
        if way not in FILE or not file.is_file():
            continue
        others = sorted(path for path in folder.rglob("*") if path.is_file() and path != file)
        if way == "other":
            shutil.copy(others[int(share * (len(others) - 1))], file)
            continue
        file.unlink()
        if way == "folder":
            file.mkdir()
        elif way == "pipe":
            os.mkfifo(file)
        elif way == "loop":
            file.symlink_to(file.name)


class Hang(BaseException):
    """A case took too long. No ``except Exception`` of the job's stops it."""


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """What is done within ends in time and by itself, or with one line that can be shown anywhere."""

    def hang(*_: object) -> None:
        raise Hang(f"after {LIMIT} s")

    handlers = {n: signal.getsignal(n) for n in (*train.SIGNALS, signal.SIGALRM)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, message, status = io.StringIO(), "", None
    signal.signal(signal.SIGALRM, hang)
    timer = signal.setitimer(signal.ITIMER_REAL, LIMIT)
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True, file=sys.__stderr__)  # what hears no signal, or takes it
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            yield
    except UserError as error:
        message = str(error)
    except FailedError as error:
        message = printable(str(error))
    except SystemExit as end:
        status = end.code
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *timer)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = out.getvalue()
    assert not status, said
    assert "Traceback" not in said, said[-2000:]
    assert message == printable(message)
    assert said == printable(said, keep="\n")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < GROWTH


def fuzzed(few: int, of_hundred: int) -> settings:
    """``few`` cases, always the same; or ``of_hundred`` per cent of FUZZ_CASES, others each time."""
    return settings(
        max_examples=CASES * of_hundred // 100 or few,
        derandomize=not CASES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def bounded() -> Iterator[None]:
    """What grows without end ends with an error, and not the machine."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 4 * GROWTH, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module", autouse=True)
def home() -> Iterator[Path]:
    """Where a case may write: home and working directory."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", folder)
        patch.delenv("XDG_CACHE_HOME", raising=False)
        patch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing is fetched
        os.chdir(folder)
        yield Path(folder)
        os.chdir(before)
        with warnings.catch_warnings(action="ignore"):
            gc.collect()


@contextlib.contextmanager
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        yield Path(folder)


def png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()


MEMBERS = ["train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png", "test/a/0.png", "test/b/0.png"]
NAMES = [
    *("train/a/2.png", "train/c/0.png", "top/train/a/0.png", "../x.png", "/etc/x.png", "train/../../x", "train", ""),
    *("train/a/\x1b[2J.png", "train/\u202egnp.a/0.png", "train/a/a\nb.png", "train/a\\3.png", "train/a/\udcff.png"),
    *("train/a/.x", "__MACOSX/train/a/0.png", "train/@eaDir/0.png", "train/a/x.txt", "train//a/./4.png", "x" * 300),
    *("train/a/[bold]x[/].png", "train/[/x]/0.png", "train/a/CON", "train/a/" + "d/" * 200 + "0.png", "\x7f/x", "./."),
]
KINDS = ["file", "empty", "text", "dir", "link", "outside", "hard", "pipe"]
FORMS = ["zip", "tar", "tgz", "txz", "folder"]
EXTRA = st.lists(st.tuples(st.sampled_from(NAMES + MEMBERS), st.sampled_from(KINDS)), max_size=3)


def packed(folder: Path, form: str, members: list[tuple[str, str]]) -> Path:
    """A folder or an archive of ``members``; what this form cannot say is left out."""
    contents = {"file": png(), "text": b"no image"}
    target = folder / form
    (folder / "elsewhere").write_bytes(contents["text"])
    if form == "folder":
        for name, kind in members:
            path = target / "set" / name.strip("/")
            with contextlib.suppress(OSError):  # a name that no file can have
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind in ("file", "text", "empty"):
                    path.write_bytes(contents.get(kind, b""))
                elif kind == "dir":
                    path.mkdir()
                elif kind == "pipe":
                    os.mkfifo(path)
                else:
                    # Not to a file of this machine: a later member of the same name is written through the link.
                    path.symlink_to({"link": "..", "outside": folder / "elsewhere"}.get(kind, path.name))
        return target / "set"
    if form == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, kind in members:
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() + "/" * (kind == "dir"))
                info.external_attr = {"link": 0o120777, "pipe": 0o010644}.get(kind, 0) << 16
                with pytest.warns() if info.filename in archive.namelist() else contextlib.nullcontext():
                    archive.writestr(info, contents.get(kind, b""))
        return target
    types = {"dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "outside": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
    with tarfile.open(target, {"tar": "w", "tgz": "w:gz", "txz": "w:xz"}[form]) as archive:
        for name, kind in members:
            info, content = tarfile.TarInfo(name), contents.get(kind, b"")
            info.type, info.size = types.get(kind, tarfile.REGTYPE), len(content)
            info.linkname = "../../x" if kind == "outside" else "train/a/0.png"
            archive.addfile(info, io.BytesIO(content))
    return target


@fuzzed(15, 20)
@given(form=st.sampled_from(FORMS), extra=EXTRA, damage=edits(BYTES), skip=st.booleans())
def test_folders_and_archives(form: str, extra: list[tuple[str, str]], damage: list[Edit], skip: bool) -> None:
    with place() as folder:
        root = packed(folder, form, [(name, "file") for name in MEMBERS] + extra)
        if form == "folder":
            spoil(root, root / MEMBERS[0], damage)
        else:
            root.write_bytes(spoilt(root.read_bytes(), damage))
        data = Data(source="folder", root=str(root), cache=str(folder / "cache"), skip_unreadable=skip)
        with answered():
            datasets.load(data, 0, log=Console().say)


@fuzzed(100, 30)
@given(form=st.sampled_from(decoding.FORMATS), mode=st.sampled_from(["RGB", "L", "P", "1", "LA"]), damage=edits(BYTES))
def test_images(form: str, mode: str, damage: list[Edit]) -> None:
    image, file = Image.effect_noise((24, 20), 50).convert("RGB"), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    try:
        image.convert(mode).save(file, form, exif=exif)
    except OSError:  # a mode that this format has not
        image.save(file, form)
    with answered():
        try:
            pixels = decoding.read(spoilt(file.getvalue(), damage), 16)
        except ValueError as error:
            raise UserError(str(error)) from None
        assert len(pixels) == 16 * 16 * 3


@pytest.fixture(scope="module")
def options(home: Path) -> list[str]:
    """Of a short run."""
    root = packed(home, "folder", [(name, "file") for name in MEMBERS])
    small = ["--data.source=folder", f"--data.root={root}", "--data.cache=cache", "--data.download=false"]
    return [*small, "--train.epochs=2", "--train.batch_size=2", "--run.trackers=[]", "--runtime.threads=1"]


KEYS = [*flat(to_dict(Config())), *to_dict(Config()), "config", "print_config", "help", "no.such", "", "train.epochs+"]
WORDS = st.tuples(st.sampled_from(KEYS), st.booleans(), st.sampled_from(VALUES))


@fuzzed(14, 25)
@given(damage=edits([*TREE * 3, *BYTES, "delete", "folder", "pipe", "loop"], 2), words=st.lists(WORDS, max_size=2))
def test_configurations_and_command_lines(damage: list[Edit], words: list[tuple[str, bool, str]], options: Any) -> None:
    whole = to_dict(command_line.parse(options, description=""))
    with place() as folder:
        file = folder / "some.yaml"
        file.write_text(json.dumps(whole))
        spoil(folder, file, damage)
        argv = [f"--config={file}", "--check"]
        for key, joined, value in words:
            argv += [f"--{key}={value}"] if joined else [f"--{key}", value]
        with answered():
            train.main(argv)


@pytest.fixture(scope="module")
def finished(home: Path, options: list[str]) -> tuple[Path, list[str]]:
    """A finished run, and the options that made it but ``--run.dir``."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert train.main([*options, "--run.dir=run"]) == 0
    return home / "run", options


FILES = [
    *("config.yaml", "config.yaml", "environment.json", "metrics.jsonl", "metrics.jsonl", "evaluation.json"),
    *("evaluation.json", "status.json", "predictions.safetensors", "samples.safetensors", "model.safetensors"),
]
INSIDE = ["trainer.json", "trainer.json", "manifest.json", "model.safetensors", "optimizer.safetensors"]
COMMANDS = ["report", "compare", "watch", "evaluate", "predict", "train"]


def run_command(name: str, run: Path, argv: list[str], image: Path) -> None:
    """Read ``run`` by a command; the status must be one that it may have."""
    given = {
        "report": [str(run)],
        "compare": [str(run), str(run), "--out", str(run.parent)],
        "watch": [str(run), "--once"],
        "evaluate": ["--run", str(run)],
        "predict": ["--run", str(run), str(image)],
        "train": [*argv, f"--run.dir={run}"],
    }
    main = {"report": report, "compare": compare, "watch": watch, "evaluate": evaluate, "predict": predict}
    with answered(), pytest.MonkeyPatch.context() as patch:
        if name == "train":  # drawing takes longer than all else, and `report` does it
            patch.setattr(run_page, "write", lambda *_: None)
        status = main.get(name, train).main(given[name])
        assert status == 0 or (status == 1 and name in ("watch", "train"))


SPOILT = st.lists(st.tuples(st.sampled_from(FILES), edits([*BYTES, *TREE * 3, *FILE], 2)), min_size=1, max_size=2)


@fuzzed(16, 15)
@given(command=st.sampled_from(COMMANDS), spoilt_files=SPOILT)
def test_run_directories(command: str, spoilt_files: list[tuple[str, list[Edit]]], finished: Any) -> None:
    run, argv = finished
    with place() as folder:
        copy = shutil.copytree(run, folder / "run")
        for name, damage in spoilt_files:
            if (copy / name).is_file():
                spoil(copy, copy / name, damage)
        run_command(command, copy, argv, folder.parent / "folder/set" / MEMBERS[0])


@fuzzed(12, 10)
@given(
    command=st.sampled_from(["none", "predict", "train", "evaluate"]),
    damage=st.lists(st.tuples(st.sampled_from(INSIDE), edits([*BYTES, *TREE * 4, *FILE], 2)), max_size=2),
    sealed=st.booleans(),
)
def test_checkpoints(command: str, damage: list[tuple[str, list[Edit]]], sealed: bool, finished: Any) -> None:
    run, argv = finished
    with place() as folder:
        copy = shutil.copytree(
            run, folder / "run", ignore=shutil.ignore_patterns("evaluation.json", "model.safetensors", "*.png")
        )
        newest = shutil.copytree(run / "checkpoints", copy / "checkpoints", dirs_exist_ok=True) / max(
            os.listdir(run / "checkpoints")
        )
        for name, changes in damage:
            if (newest / name).is_file():
                spoil(newest, newest / name, changes)
        if sealed:  # as somebody would who means harm
            present = {name: (newest / name).read_bytes() for name in checkpoint.FILES if (newest / name).is_file()}
            files = {name: {"bytes": len(b), "sha256": sha256(b).hexdigest()} for name, b in present.items()}
            with contextlib.suppress(OSError):  # a folder stays
                (newest / "manifest.json").unlink(missing_ok=True)  # a pipe would be waited for
                (newest / "manifest.json").write_text(json.dumps({"format": checkpoint.FORMAT, "files": files}))
        if command == "none":
            with answered():
                checkpoint.newest_whole(copy / "checkpoints")
        else:
            run_command(command, copy, argv, folder.parent / "folder/set" / MEMBERS[0])
