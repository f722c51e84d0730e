"""What is said: once, in whatever terminal or file there is, with or without colour."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console as RichConsole
from support.jobs import environment, run_job

from job.display import console
from job.display.console import Console

RESULT = {
    "split": "test",
    "images": 2000,
    "accuracy": 0.6,
    "loss": 1.25,
    "interval": [0.58, 0.62],
    "classes": [
        {"name": name, "images": n, "correct": int(n * a), "accuracy": a if n else None, "precision": a, "recall": a}
        | {"f1": a, "interval": [a - 0.02, a + 0.02] if n else None}
        for name, n, a in (("bird", 1000, 0.4), ("a cat with quite a long name", 1000, 0.8), ("größe", 0, 0.0))
    ],
    "top_confusions": [{"true": "bird", "predicted": "größe", "images": 7}],
}
SCRIPT = """
import sys, time
sys.path[:0] = sys.argv[1:]
from test_console import RESULT
from job.display.console import Console
from job.distributed import ending

def main(argv):
    console = Console()
    console.say("hello " + "and welcome " * 8, label="greeting")
    console.warn("look")
    with console.bar("epoch 1/3 [/]", 100, "images", 50, 200, step="5", loss="") as move:
        for _ in range(5):
            move(10, loss="1.2345")
            time.sleep(0.3)
    for epoch, accuracy in ((1, 0.5), (2, 0.25)):
        line = {"epoch": epoch, "step": 10 * epoch, "train_loss": 1.5, "loss": 1.25, "accuracy": accuracy}
        console.epoch(line, 3, best=epoch == 1)
    console.result(RESULT)
    return 0

ending.entry(main)
"""
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_a_terminal(columns: int, **extra: str) -> str:
    """What the script prints on a terminal so many columns wide."""
    leader, follower = pty.openpty()
    given = environment(**{"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "50"} | extra)
    given.pop("NO_COLOR", None) if "NO_COLOR" not in extra else None
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, Path(__file__).parents[:2])],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=given,
        cwd=Path(__file__).parents[2],
    )
    os.close(follower)
    output = b""
    while process.poll() is None or select.select([leader], [], [], 0.1)[0]:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                output += os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
    os.close(leader)
    assert process.wait() == 0, output.decode()
    return output.decode().replace("\r\n", "\n")


def in_a_file(**extra: str) -> str:
    command = [sys.executable, "-c", SCRIPT, *map(str, Path(__file__).parents[:2])]
    directory = Path(__file__).parents[2]
    return subprocess.run(
        command, env=environment(**extra), capture_output=True, check=True, cwd=directory, encoding="utf-8"
    ).stdout


def test_on_a_terminal_a_bar_moves_with_step_loss_rate_and_time_left_in_fields_that_do_not() -> None:
    shown = on_a_terminal(140)
    assert "\x1b[33mwarning: look" in shown
    plain = ANSI.sub("", shown)
    assert re.search(r"epoch 1/3 \[/\] .*%  step +5  loss  1\.2345 .* images/s .* s left .* s of this epoch", plain)
    bars = re.findall(r"epoch 1/3 \[/\] [━╸╺ ]{16} .*?(?=\r|\n|epoch)", plain)
    assert len({bar.index("images/s") for bar in bars if "images/s" in bar}) == 1
    assert "hardest: bird (40.0%), a cat with quite a long name (80.0%)" in plain
    assert "most confused: bird taken for größe (7)" in plain


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_terminal_of_any_width_shows_one_growing_table_of_epochs_and_nothing_wider_than_it(columns: int) -> None:
    plain = ANSI.sub("", on_a_terminal(columns))
    lines = [line for part in plain.split("\n") for line in part.split("\r")]
    assert max(map(cell_len, lines)) <= columns
    head, first, second = (line.split() for line in lines if line.lstrip().startswith(("epoch  ", "1/3 ", "2/3 ")))
    assert head[:2] == ["epoch", "loss"]
    assert first[:5] == ["1/3", "1.5000", "1.2500", "50.00%", "best"]
    assert second[:4] == ["2/3", "1.5000", "1.2500", "25.00%"]
    assert ("step" in head) == (columns >= 80)
    greeting = [line for line in lines if "welcome" in line]
    assert greeting[0].startswith("greeting hello")
    assert all(line.startswith(" " * 9) for line in greeting[1:])


def test_a_dumb_terminal_gets_plain_lines() -> None:
    shown = on_a_terminal(80, TERM="dumb")
    assert "epoch 1/3  step 10  train loss 1.5000  validation loss 1.2500  accuracy 50.00%  (best so far)" in shown
    assert "\x1b" not in shown


def test_no_color_is_respected() -> None:
    colours = [code for code in ANSI.findall(on_a_terminal(120, NO_COLOR="1")) if re.search(r"\[[0-9;]*3[0-7]", code)]
    assert colours == []


def test_in_a_file_there_are_plain_lines_and_no_bar() -> None:
    shown = in_a_file()
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert shown.splitlines()[0].startswith("hello and welcome")
    assert shown.splitlines()[1] == "warning: look"
    assert "images/s" not in shown


def test_where_there_are_no_such_letters_nothing_fails() -> None:
    shown = in_a_file(PYTHONIOENCODING="ascii")
    assert "gr\\xf6\\xdfe" in shown
    assert "########--" in shown


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_table_fits_the_width_and_keeps_class_accuracy_and_bar(width: int) -> None:
    screen = RichConsole(width=width, force_terminal=False)
    with screen.capture() as capture:
        screen.print(console.class_table(RESULT, width))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= width
    assert any("bird" in line and "40.0%" in line and "####" in line for line in lines)
    assert "…" not in "".join(line for line in lines if "bird" in line)
    assert any("95% interval" in line for line in lines) == (width > 40)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the log stays open, as in a run
def test_the_log_has_all_that_was_said_also_before_it_was_opened(tmp_path: Path) -> None:
    said = Console()
    said.say("early")
    said.log_to(tmp_path / "log.txt")
    said.result(RESULT)
    text = (tmp_path / "log.txt").read_text()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d early\n", text)
    assert "a cat with quite a long name" in text
    assert "hardest: bird" in text


def test_a_quiet_console_says_nothing_and_opens_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = Console(quiet=True)
    quiet.log_to(tmp_path / "log.txt")
    quiet.say("nothing")
    quiet.result(RESULT)
    with quiet.bar("epoch", 10, "images") as move:
        move(10)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "log.txt").exists()


def test_two_processes_say_everything_once(small: list[str], tmp_path: Path) -> None:
    done = run_job("train.py", *small, "--train.epochs=1", f"--run.dir={tmp_path / 'run'}", processes=2)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch ")] == ["epoch 1/1"]
    for words in ("hardest: ", "most confused: ", "wrote ", "test: "):
        found = [line for line in lines if line.startswith(words)]
        assert found
        assert len(found) == len(set(found))
