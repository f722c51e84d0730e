"""Publish a run as a few kilobytes from which job/verify.py computes it anew, without names of machines and folders.

python tests/benchmarks/ledger.py runs/quickstart-20260101-120000 docs/runs/quickstart
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from job.runs import reader

PATHS = (("data", "root"), ("data", "labels"), ("model", "weights"))
NAMES = ("nodes", "slow_nodes", "slurm_job", "slurm_restarts")


def publish(run: Path, ledger: Path) -> None:
    """Write the ``ledger`` of a finished ``run``."""
    assert reader.evaluation(run), f"{run} is not finished"
    ledger.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "evaluation.json"):
        shutil.copyfile(run / name, ledger / name)
    settings = reader.configuration(run)
    for section, key in PATHS:
        settings[section][key] = nameless(settings[section][key])
    settings["run"]["dir"] = settings["run"]["notify"] = settings["data"]["cache"] = None
    (ledger / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    environment = json.loads((run / "environment.json").read_text())
    for start in (environment, *environment["attempts"]):
        start["hosts"] = [f"node{number}" for number in range(len(start["hosts"]))]
        start["command"] = [nameless(word) for word in start["command"]]
        for name in NAMES:
            start.pop(name, None)
    (ledger / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")


def nameless(word: str | None) -> str | None:
    """``word`` without the folders of an absolute path, also behind ``--key=``."""
    return None if word is None else re.sub(r"(^|=)[/~].*/", r"\1", word)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("ledger", type=Path)
    given = parser.parse_args()
    publish(given.run, given.ledger)
