"""Names of classes, images and runs are other people's: nothing in them stops a run, and nothing obeys them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

from jobs import Job, status
from PIL import Image
from support.jobs import run_job

NAMES = [b"v\xf6gel", b"\x1b[31mred", b"[red]cat", b"line\nbreak", "\u202eltr".encode(), "\U0001f408".encode(), b"<b>&"]
POSIX = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""where the locale knows no letter beyond ASCII"""
OBEYED = ("\x1b", "\u202e", "<b>&")


def test_hostile_and_undecodable_names_where_the_locale_is_ascii(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 2)):
        for shade, name in enumerate(NAMES):
            folder = os.path.join(os.fsencode(tmp_path), b"set", split.encode(), name)
            os.makedirs(folder)
            for number in range(count):
                content = io.BytesIO()
                Image.new("RGB", (32, 32), (shade * 30, number * 20, 0)).save(content, "png")
                Path(os.fsdecode(os.path.join(folder, b"\xe9\x1b[1m%d.png" % number))).write_bytes(content.getvalue())
    run = tmp_path / os.fsdecode(b"r\xfcn")
    given = ["--data.source=folder", f"--data.root={tmp_path / 'set'}", f"--data.cache={tmp_path / 'cache'}"]
    given += ["--train.batch_size=8", "--run.trackers=[]", f"--run.dir={run}"]
    first = run_job("train.py", *given, "--train.epochs=1")
    assert first.returncode == 0, first.stderr
    done = run_job("train.py", *given, "--train.epochs=2", fresh=True, **POSIX)  # and it goes on
    assert done.returncode == 0, done.stderr
    assert status(run)["state"] == "finished"
    names = {row["name"] for row in json.loads((run / "evaluation.json").read_text())["classes"]}
    assert {os.fsdecode(name) for name in NAMES[:4]} <= names, "data stay what they are"
    shown = [done.stdout, *((run / name).read_text(encoding="utf-8") for name in ("log.txt", "report.html"))]
    for text in shown:
        assert r"v\udcf6gel" in text
        assert r"\x1b[31mred" in text
        assert not any(mark in text for mark in OBEYED if mark != "<b>&" or "<html" in text)


def test_a_full_console_stops_no_run(settings: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job([*settings, "--train.epochs", "1", "--run.dir", str(run)], Path("/dev/full"))
    assert job.wait() == [0]
    assert status(run)["state"] == "finished"
    assert "wrote " in (run / "log.txt").read_text(encoding="utf-8").splitlines()[-1]
