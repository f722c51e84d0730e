"""How a process ends: what the user can mend in one line, what we must with a traceback, and never a hang."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from job.config.errors import BAD_INPUT, FAILED, FailedError, UserError, first_line
from job.distributed.launcher import launch_rank

if TYPE_CHECKING:
    from job.distributed.group import Group


def entry(main: Callable[[list[str]], int]) -> None:
    """Run a command's ``main`` and exit: one line for what the user can mend, a traceback for what we must."""
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        if launch_rank() == 0:
            print(f"error: {error}", file=sys.stderr)
        else:
            _let_rank_zero_end()
        status = BAD_INPUT
    except FailedError as error:
        if launch_rank() in (0, 1):  # rank zero may be the one that is missing
            print(f"error: {error}", file=sys.stderr)
        status = FAILED
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # `... | head` is no failure
        status = 0
    except Exception:
        traceback.print_exc()
        status = FAILED
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    # A rank in trouble must not wait in destructors for ranks that wait for it.
    if status != 0:
        os._exit(status)
    sys.exit(status)


def _let_rank_zero_end() -> None:
    """Wait for the launcher to end this rank: it ends all as soon as one does, and rank zero still has to say why.

    Ranks that have met are at the same place; before that, rank zero may still be starting on a slow file system.
    """
    distributed = sys.modules.get("torch.distributed")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(1 if distributed is not None and distributed.is_initialized() else 10)


def reason(error: Exception, group: Group, batch_size: int) -> str:
    """Why ``error`` ended this rank, in one line; of what nobody foresaw the traceback is printed here."""
    if isinstance(error, FailedError):
        return str(error)
    if out_of_memory(error):
        return (
            f"out of memory on rank {group.rank} with train.batch_size={batch_size} on {group.world_size} processes: "
            "lower it, raise train.gradient_accumulation, or use more processes"
        )
    if lost_contact(error):
        return f"lost contact with another process: it was killed, crashed or hangs ({first_line(error)})"
    traceback.print_exc()
    return f"rank {group.rank} failed: {type(error).__name__}: {first_line(error)}"


def lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone or hangs."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError | ConnectionError | TimeoutError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "connection", "timed out", "nccl"))


def out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the allocator of the host, had no more."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
