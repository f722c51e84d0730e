"""What is wrong with a checkpoint is found and said, the one before it is used, and nothing in it is ever executed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import stat
import time
from pathlib import Path

import pytest
import torch
from jobs import checkpoints, metrics
from support.forked import fork_server

from job.config.errors import UserError
from job.runs import checkpoint, files
from job.runs.checkpoint import FILES, MANIFEST, Checkpoints, State

SLOW = {"do": "slow", "at": "step", "n": None}
EVERY_FILE = [*FILES, MANIFEST]
POSITION = {"epoch": 1, "images": 0, "losses": [], "counts": [], "epoch_loss": 0.0, "skipped": 0, "best": None}
POSITION |= {"metrics_bytes": 0, "scaler": None, "classes": [], "data": "", "world_size": 1, "config": {}}


def state(step: int, size: int = 100) -> State:
    draw = torch.Generator().manual_seed(step)
    tensors = {"a.weight": torch.randn(size, 3, generator=draw), "b.count": torch.tensor(step)}
    return State(tensors, {"a.weight/exp_avg": torch.randn(size, 3, generator=draw)}, POSITION | {"step": step})


def equal(one: State, other: State) -> bool:
    pairs = ((one.model, other.model), (one.optimizer, other.optimizer))
    return one.trainer["step"] == other.trainer["step"] and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A directory with checkpoints of steps 10, 20 and 30."""
    for step in (10, 20, 30):
        checkpoint.write(tmp_path, state(step))
    return tmp_path


def load(directory: Path, said: list[str] | None = None) -> State | None:
    return Checkpoints(directory, keep=2, say=(said if said is not None else []).append).load(metrics_bytes=0)


def missing(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def bit_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = random.Random(path.name).randrange(len(content))
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [missing, emptied, truncated, bit_flipped])
@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_is_used(three, name, harm) -> None:
    harm(three / "step-00000030" / name)
    said: list[str] = []
    found = load(three, said)
    assert found is not None
    assert equal(found, state(20))
    assert len(said) == 1
    assert "step-00000030" in said[0]
    if name != MANIFEST:
        assert name in said[0]


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 1, "files": []}', '{"format": 1, "files": {"a": 1}}', "\0"])
def test_a_manifest_of_anything_else_is_passed_over(three, text) -> None:
    (three / "step-00000030" / MANIFEST).write_text(text)
    found = load(three)
    assert found is not None
    assert equal(found, state(20))


def test_every_bit_of_a_manifest_counts(three) -> None:
    manifest = three / "step-00000030" / MANIFEST
    content = manifest.read_bytes()
    for place in range(0, len(content), 7):
        manifest.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        with contextlib.suppress(ValueError, OSError):
            assert equal(checkpoint.read(manifest.parent), state(30)), f"byte {place}"


def test_with_every_checkpoint_damaged_it_stops_and_does_not_start_again(three) -> None:
    for path in three.iterdir():
        (path / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    for _ in range(2):  # the second time as the first
        with pytest.raises(UserError, match="none of the 3 checkpoints"):
            load(three, said)
    assert len(said) == 6


def test_damaged_checkpoints_never_push_out_the_good_ones(three) -> None:
    for step in (20, 30):
        bit_flipped(three / f"step-000000{step}" / "model.safetensors")
    store = Checkpoints(three, keep=2, say=lambda _: None)
    found = store.load(metrics_bytes=0)
    assert found is not None
    assert equal(found, state(10))
    for step in (12, 14):
        store.save(state(step))
        store.wait()
        assert store.failed() is None
        found = load(three)
        assert found is not None
        assert equal(found, state(step)), "what was written last is what is found"
    assert [name for name in checkpoints_in(three) if name.startswith("step")] == ["step-00000012", "step-00000014"]
    assert "damaged-step-00000030" in checkpoints_in(three), "kept for a look, out of the way"


def checkpoints_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_beyond_a_hundred_million_steps_the_order_is_still_that_of_numbers(tmp_path) -> None:
    store = Checkpoints(tmp_path, keep=2, say=lambda _: None)
    for step in (99_999_998, 99_999_999, 100_000_000):
        store.save(state(step))
        store.wait()
        assert store.failed() is None
    assert checkpoints_in(tmp_path) == ["step-100000000", "step-99999999"]
    (tmp_path / "step-100000000" / "trainer.json").unlink()
    assert equal(load(tmp_path), state(99_999_999))
    assert checkpoints_in(tmp_path) == ["damaged-step-100000000", "step-99999999"]


def test_a_damaged_checkpoint_of_the_same_step_makes_room_for_a_whole_one(three) -> None:
    bit_flipped(three / "step-00000030" / "model.safetensors")
    checkpoint.write(three, state(30))
    found = load(three)
    assert found is not None
    assert equal(found, state(30))


def test_the_newest_is_the_one_of_the_latest_step_whatever_the_clock_says(three) -> None:
    now = time.time()
    for step, age in ((10, -3600), (20, 0), (30, 86400)):  # the clock went backwards twice
        os.utime(three / f"step-000000{step}", (now - age, now - age))
    found = load(three)
    assert found is not None
    assert equal(found, state(30))


def test_a_checkpoint_of_a_newer_program_is_not_passed_over_for_an_older_one(three) -> None:
    newest = three / "step-00000030"
    shutil.rmtree(newest)
    before = checkpoint.FORMAT
    checkpoint.FORMAT = before + 1
    try:
        checkpoint.write(three, state(30))
    finally:
        checkpoint.FORMAT = before
    with pytest.raises(UserError, match="format 2"):
        load(three)
    assert newest.exists()


def test_what_a_killed_process_left_is_removed_at_the_next_start(three) -> None:
    for name in (".tmp-step-00000040-123", ".trash-step-00000005"):
        (three / name).mkdir()
        (three / name / "model.safetensors").write_bytes(b"half")
    Checkpoints(three, keep=2, say=lambda _: None)
    assert checkpoints_in(three) == ["step-00000010", "step-00000020", "step-00000030"]


def test_a_left_over_of_a_process_with_the_same_number_is_no_obstacle(tmp_path) -> None:
    for name in ("status.json", "model.safetensors"):
        (tmp_path / f".{name}.{os.getpid()}").write_text("left over by a container's process 1")
    files.write_whole(tmp_path / "status.json", "{}")
    files.save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(3)})
    (tmp_path / f".tmp-step-00000040-{os.getpid()}").mkdir()
    checkpoint.write(tmp_path, state(40))
    assert checkpoints_in(tmp_path) == ["model.safetensors", "status.json", "step-00000040"]


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_planted_pickles_are_never_opened(three, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    bait = pickle.dumps(Canary(canary))
    for name in ("optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "pytorch_model.bin"):
        (three / "step-00000030" / name).write_bytes(bait)
    found = load(three)
    assert found is not None
    assert equal(found, state(30))
    for name in FILES:  # in place of the files themselves, with a manifest that agrees
        (three / "step-00000030" / name).write_bytes(bait)
    manifest = {"bytes": len(bait), "sha256": __import__("hashlib").sha256(bait).hexdigest()}
    text = json.dumps({"format": 1, "files": dict.fromkeys(FILES, manifest)})
    (three / "step-00000030" / MANIFEST).write_text(text)
    found = load(three)
    assert found is not None
    assert equal(found, state(20))
    assert not canary.exists()


def write_on_and_on(directory: str, pipe: multiprocessing.connection.Connection) -> None:
    os.umask(0o027)
    store = Checkpoints(Path(directory), keep=2, say=lambda _: None)
    found = store.load(metrics_bytes=0)
    step = found.trainer["step"] if found else 0
    while True:
        step += 1
        store.save(state(step, 30_000))
        store.wait()
        pipe.send(step)


def test_killed_at_random_instants_a_writer_always_leaves_the_last_one_it_reported(tmp_path) -> None:
    draw = random.Random(0)
    reported = 0
    for _ in range(8):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        writer = fork_server().Process(target=write_on_and_on, args=(str(tmp_path), theirs))
        writer.start()
        theirs.close()
        assert ours.poll(30), "the first checkpoint"
        time.sleep(draw.uniform(0, 0.2))
        writer.kill()
        writer.join()
        while ours.poll():
            try:
                reported = ours.recv()
            except EOFError:
                break
        found = checkpoint.newest_whole(tmp_path, pytest.fail)
        assert found is not None
        assert found.trainer["step"] in (reported, reported + 1)
        assert equal(found, state(found.trainer["step"], 30_000)), "of one step, not of two"


def test_files_and_directories_get_the_rights_that_the_umask_leaves(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        final = checkpoint.write(tmp_path, state(1))
        files.write_whole(tmp_path / "status.json", "{}")
        files.save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(3)})
    finally:
        os.umask(before)
    paths = [final / name for name in EVERY_FILE] + [tmp_path / "status.json", tmp_path / "model.safetensors"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o640}
    assert stat.S_IMODE(final.stat().st_mode) == 0o750


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_bits(
    start, undisturbed, same, tmp_path
) -> None:
    start(faults=[{"do": "kill", "at": "step", "n": 31}, SLOW]).wait()
    run = tmp_path / "run"
    names = checkpoints(run)
    bit_flipped(run / "checkpoints" / names[-1] / "optimizer.safetensors")
    job = start()
    assert job.wait() == [0], job.output
    assert f"passing over checkpoint {names[-1]}: optimizer.safetensors has changed" in job.output
    assert f"from step {int(names[-2][5:])} in epoch" in job.output
    same(run, undisturbed())


def test_lines_that_the_file_system_lost_are_written_again_from_an_older_checkpoint(
    start, undisturbed, same, tmp_path
) -> None:
    start(faults=[{"do": "kill", "at": "step", "n": 31}, SLOW]).wait()
    run = tmp_path / "run"
    older, newest = checkpoints(run)
    known = json.loads((run / "checkpoints" / older / "trainer.json").read_text())["metrics_bytes"]
    os.truncate(run / "metrics.jsonl", known + 10)
    job = start()
    assert job.wait() == [0], job.output
    assert f"passing over checkpoint {newest}: metrics.jsonl has lost lines" in job.output
    assert f"from step {int(older[5:])} in epoch" in job.output
    same(run, undisturbed())


def test_a_run_whose_checkpoints_are_all_damaged_ends_with_status_2_and_changes_nothing(start, tmp_path) -> None:
    start(faults=[{"do": "kill", "at": "step", "n": 20}, SLOW]).wait()  # slow: each save stands before the next is due
    run = tmp_path / "run"
    for name in checkpoints(run):
        emptied(run / "checkpoints" / name / "trainer.json")
    before = metrics(run), checkpoints(run)
    job = start()
    assert job.wait() == [2]
    assert job.output.count("error: none of the 2 checkpoints") == 1
    assert "Traceback" not in job.output
    assert (metrics(run), checkpoints(run)) == before
