"""The ranks come together, and prove to each other that they belong to one launch before anything else is said.

Whoever reaches the meeting place first takes a rank there: the store and gloo ask nobody who he is. So each rank shows
that it knows a secret of the launch or of the user, by a MAC (RFC 2104) over a random number of every rank.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from job.config.errors import UserError
from job.distributed import launcher

LENGTH = 32
"""bytes of a random number, of a proof, and of the user's secret"""


def strangers(secret: bytes, rank: int, exchange: Callable[[bytes], list[bytes]]) -> list[int]:
    """The ranks that do not know ``secret``.

    ``exchange`` gives ``LENGTH`` bytes to all ranks and returns those of each, in rank order. Every rank must call it.
    """
    challenge = b"".join(exchange(secrets.token_bytes(LENGTH)))
    proofs = [
        hmac.digest(secret, other.to_bytes(4, "big") + challenge, "sha256") for other in range(len(challenge) // LENGTH)
    ]
    return [
        other for other, proof in enumerate(exchange(proofs[rank])) if not hmac.compare_digest(proof, proofs[other])
    ]


def users_secret() -> bytes:
    """Random bytes in a file that only this user can read, made by the first process that asks.

    It lies in the home directory, which most clusters share between nodes; without one, on this host's own disk.
    Raises UserError where others can read or replace it.
    """
    places = [Path(tempfile.gettempdir(), f"rankzero-{os.getuid()}")]
    with contextlib.suppress(RuntimeError):  # a container's user may have no home
        places.insert(0, Path.home() / ".rankzero")
    for place in places:
        try:
            return _kept(place / "secret")
        except OSError as error:
            problem = error
    raise UserError(
        f"no secret can be kept in {places[0]} ({problem.strerror})", "set RANKZERO_SECRET, the same for every process"
    )


def _kept(path: Path) -> bytes:
    """The secret at ``path``, made if it is not there: whole or not at all, and one for all who ask at once."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent) as fresh:  # readable by nobody else
            fresh.write(secrets.token_bytes(LENGTH))
            fresh.flush()
            with contextlib.suppress(FileExistsError):
                os.link(fresh.name, path)
    with open(path, "rb") as file:
        for status, others in (path.parent.lstat(), 0o022), (os.fstat(file.fileno()), 0o077):
            if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & others:
                raise UserError(f"others can read or replace {path}", f"remove {path.parent}: it is made anew")
        secret = file.read()
    if len(secret) != LENGTH:
        raise UserError(f"{path} is damaged", f"remove {path.parent}: it is made anew")
    return secret


def arrive(patience: timedelta) -> Callable[[], list[int]]:
    """Leave word at the meeting place, which is rank zero's, that this rank has come; what tells rank zero who has not.

    Raises what torch does where the place cannot be reached.
    """
    if launcher.world_size() == 1 or launcher.by_launcher():  # whose agents met before, in a store of their own
        return list
    import torch.distributed as dist

    rank, (host, _, port) = launcher.launch_rank(), launcher.meeting_address().rpartition(":")
    # The one that the process group makes in this process is then the same.
    store = dist.TCPStore(
        host, int(port), is_master=rank == 0, timeout=patience, wait_for_workers=False, multi_tenant=True
    )
    store.set(f"came/{rank}", "")
    return lambda: [other for other in range(launcher.world_size()) if not (rank or store.check([f"came/{other}"]))]
