"""docs/your-images.md: every command that a newcomer is told to type, on a few images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
from PIL import Image
from support.jobs import REPOSITORY, run_job

PAGE = REPOSITORY / "docs" / "your-images.md"
SMALL = [
    "--model.weights=null",
    "--data.image_size=32",
    "--train.epochs=2",
    "--run.trackers=[]",
    "--runtime.device=cpu",
]
"""what differs here: ImageNet's weights are not to be had, and time is short"""


def test_every_command_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for name, count in (("cat", 22), ("dog", 17)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            pixels = noise.integers(0, 150, (40, 60, 3), np.uint8) + np.uint8(100 * (name == "cat"))
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert [words[1] for words in commands].count("job/train.py") == 3
    assert len(commands) == 8
    said = {}
    for words in commands:
        assert words[0] == "python"
        script, arguments = words[1].removeprefix("job/"), words[2:]
        into = arguments[arguments.index(">") + 1] if ">" in arguments else None
        arguments = arguments[: arguments.index(">")] if into else arguments
        here = [str(tmp_path / word) if word.startswith(("photos", "runs/")) else word for word in arguments]
        here = [str(REPOSITORY / word) if word.startswith("configs/") else word for word in here]
        done = run_job(script, *here, *(SMALL if "--config" in here else []), report=script == "train.py")
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        said[into or " ".join(words[1:])] = done.stdout
    result = json.loads((tmp_path / "runs" / "photos" / "evaluation.json").read_text())
    assert [(row["name"], row["images"] > 0) for row in result["classes"]] == [("cat", True), ("dog", True)]
    assert (tmp_path / "runs" / "photos" / "report.html").exists()
    assert (tmp_path / "photos-model" / "model.pt2").exists()
    assert len(said["predictions.csv"].splitlines()) == 1 + 39
    assert "balanced" in said["job/compare.py runs/photos runs/balanced"]


def test_every_setting_that_the_page_names_is_one() -> None:
    from job.config import command_line

    cells = re.findall(r"`(--[^`]+)`", PAGE.read_text())
    settings = [shlex.split(cell) for cell in cells if re.match(r"--(data|train|model|optimizer)\.", cell)]
    assert len(settings) > 8
    for words in settings:
        complete = words if len(words) % 2 == 0 else [*words, "20"]
        config = ["--config", str(REPOSITORY / "configs" / "finetune.yaml")]
        command_line.parse([*config, *complete], description="")
