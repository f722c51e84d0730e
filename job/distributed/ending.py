"""How a process ends: what the user can mend in one line, what we must with a traceback, and never a hang."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

from job.config.errors import BAD_INPUT, FAILED, FailedError, UserError
from job.distributed.launcher import launch_rank


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
