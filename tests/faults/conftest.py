"""Small pictures, short runs, and the undisturbed ones that disturbed ones are compared with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from jobs import Fault, Job, differences, draw

EPOCHS = 3


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 32 x 32 pictures, each class with a pattern of its own under noise."""
    return draw(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="session")
def settings(pictures: Path) -> list[str]:
    """The arguments of a run of three epochs of twelve steps: one second."""
    return [
        *("--data.source", "folder", "--data.root", str(pictures), "--data.cache", str(pictures.parent / "cache")),
        *("--train.epochs", str(EPOCHS), "--train.batch_size", "32", "--run.log_every", "5"),
        *("--checkpoint.every_steps", "4", "--run.trackers", "[]", "--runtime.threads", "1"),
    ]


Start = Callable[..., Job]


@pytest.fixture
def start(settings: list[str], tmp_path: Path) -> Iterator[Start]:
    """Start a job in the run directory ``run`` of the test; whatever still runs after the test is killed."""
    jobs: list[Job] = []

    def start(*arguments: str, run: Path = tmp_path / "run", faults: Sequence[Fault] = (), **options: object) -> Job:
        log = tmp_path / f"output-{len(jobs)}.txt"
        job = Job([*settings, "--run.dir", str(run), *arguments], log, faults=faults, **options)  # type: ignore[arg-type]
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        job.signal(9)
        job.wait(10)


@pytest.fixture(scope="session")
def undisturbed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The finished run directory of an undisturbed run, made once for all tests that ask for the same one."""
    made: dict[tuple[object, ...], Path] = {}

    def run(*arguments: str, processes: int = 1, network: str = "") -> Path:
        key = (*arguments, processes, network)
        if key not in made:
            path = tmp_path_factory.mktemp("undisturbed")
            job = Job(
                [*settings, "--run.dir", str(path / "run"), *arguments],
                path / "output.txt",
                processes=processes,
                network=network,
            )
            assert job.wait() == [0] * processes, job.output
            made[key] = path / "run"
        return made[key]

    return run


@pytest.fixture
def same() -> Callable[[Path, Path], None]:
    """Assert that two finished runs are bit for bit the same."""

    def same(run: Path, other: Path) -> None:
        assert differences(run, other) == []

    return same


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system and to become another user")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test starts up to a dozen jobs: on a busy machine that takes its time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900), append=False)
