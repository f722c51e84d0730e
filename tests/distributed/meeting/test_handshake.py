"""Who is none of the job's processes takes no part in it, and nothing that he sends is run."""

from __future__ import annotations

import os
import pickle
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from support.forked import fork_server
from support.jobs import environment, free_port

from job.config.errors import FailedError, UserError
from job.distributed.meeting import handshake


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def become(rank: int, port: int, world_size: int = 2, **told: str) -> None:
    os.environ.clear()
    os.environ.update(environment(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1"))
    os.environ.update(MASTER_PORT=str(port), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size), **told)


def member(rank: int, port: int, said: Path, secret: str) -> None:
    """A rank of the job, which leaves how it fared."""
    become(rank, port, **{"RANKZERO_SECRET": secret} if secret else {})
    from job.config.settings import Runtime
    from job.distributed import group

    try:
        ours = group.start(Runtime(device="cpu", timeout=6), deterministic=True)
        said.write_text(str(ours.gathered({"rank": rank, "path": "caf\udce9", "rate": 0.1})))
        ours.close()
    except FailedError as error:
        said.write_text(f"error: {error}")


def stranger(rank: int, port: int, canary: Path, does: str) -> None:
    """Somebody who reaches the meeting place first and speaks as torch's own object collectives do, or not at all."""
    become(rank, port)
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=rank, world_size=2)
    group = dist.new_group(backend="gloo")
    dist.new_group(backend="gloo")
    bait = torch.frombuffer(bytearray(pickle.dumps(Canary(canary))), dtype=torch.uint8)
    if does == "sends a pickle":
        for own in torch.tensor([len(bait)]), bait:
            dist.all_gather([torch.empty_like(own) for _ in range(2)], own, group=group)
    elif does == "sends a false proof":
        for _ in range(2):
            dist.all_gather_into_tensor(torch.empty(64, dtype=torch.uint8), bait.new_zeros(32), group=group)
    time.sleep(30)


def run(*processes: tuple[Any, ...], until: float = 60) -> list[int | None]:
    started = [fork_server().Process(target=target, args=arguments) for target, *arguments in processes]
    for process in started:
        process.start()
    try:
        for process in started[:1] if processes[-1][0] is stranger else started:
            process.join(until)
        return [process.exitcode for process in started]
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize("does", ["sends a pickle", "sends a false proof", "says nothing"])
def test_a_stranger_in_a_ranks_place_is_refused_in_one_line_and_what_he_sends_is_not_run(
    does: str, tmp_path: Path
) -> None:
    port, canary, said = free_port(), tmp_path / "canary", tmp_path / "said"
    assert run((member, 0, port, said, ""), (stranger, 1, port, canary, does))[0] == 0
    assert said.read_text().startswith("error: rank ")
    assert len(said.read_text().splitlines()) == 1
    if does == "sends a false proof":
        assert "rank 1 at 127.0.0.1" in said.read_text()
    assert not canary.exists()


@pytest.mark.parametrize("secrets", [("", ""), ("same", "same"), ("one", "other")])
def test_ranks_know_each_other_by_the_users_file_or_by_a_secret_that_both_were_told(
    secrets: tuple[str, str], tmp_path: Path
) -> None:
    port = free_port()
    run(*((member, rank, port, tmp_path / str(rank), secret) for rank, secret in enumerate(secrets)))
    said = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    if secrets == ("one", "other"):
        assert "rank 1 at" in said[0]
        assert "rank 0 at" in said[1]
        assert all("RANKZERO_SECRET" in line for line in said)
    else:
        everybodys = [{"rank": rank, "path": "caf\udce9", "rate": 0.1} for rank in range(2)]
        assert said == [str(everybodys)] * 2


def own_secret(home: Path, into: Path) -> None:
    os.environ["HOME"] = str(home)
    into.write_bytes(handshake.users_secret())


def test_processes_that_start_at_once_make_one_secret_that_only_the_user_can_read(tmp_path: Path) -> None:
    run(*((own_secret, tmp_path, tmp_path / str(number)) for number in range(6)))
    file = tmp_path / ".rankzero" / "secret"
    assert {(tmp_path / str(number)).read_bytes() for number in range(6)} == {file.read_bytes()}
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    assert os.listdir(file.parent) == ["secret"]


@pytest.mark.parametrize("what", ["file", "folder", "torn"])
def test_a_secret_that_others_could_know_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    secret = handshake.users_secret()
    assert handshake.users_secret() == secret
    if what == "file":
        (tmp_path / ".rankzero" / "secret").chmod(0o644)
    elif what == "folder":
        (tmp_path / ".rankzero").chmod(0o777)
    else:
        (tmp_path / ".rankzero" / "secret").write_bytes(secret[:9])
    with pytest.raises(UserError, match=r"\.rankzero"):
        handshake.users_secret()


def test_without_a_home_the_secret_lies_on_the_hosts_own_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    monkeypatch.setattr(handshake.tempfile, "tempdir", str(tmp_path))
    secret = handshake.users_secret()
    assert (tmp_path / f"rankzero-{os.getuid()}" / "secret").read_bytes() == secret
