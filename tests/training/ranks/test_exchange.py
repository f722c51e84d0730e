"""Gradients of several ranks become one: the same bits, whichever way they travel."""

from __future__ import annotations

from pathlib import Path

from support.jobs import metrics, run_job


def test_ranks_of_one_host_and_of_two_hosts_train_the_same_bits(small: list[str], tmp_path: Path) -> None:
    found = []
    for how, local in (("through shared memory", "2"), ("at once\n", "1")):
        run = tmp_path / local
        finished = run_job(
            "train.py",
            *(*small, "--train.epochs=1", "--train.batch_size=42", "--run.log_every=1", f"--run.dir={run}"),
            processes=2,
            LOCAL_WORLD_SIZE=local,
        )
        assert finished.returncode == 0, finished.stderr
        assert how in finished.stdout.replace(", each process on its own cores", "")
        losses = [line["loss"] for line in metrics(run, "train")]
        found.append((losses, (run / "model.safetensors").read_bytes()))
    assert found[0] == found[1]
