"""How a process ends: what the user can mend in one line, what we must with a traceback, and never a hang."""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from job.config.errors import BAD_INPUT, FAILED, FailedError, UserError, first_line, printable
from job.distributed import cores, launcher, preemption

if TYPE_CHECKING:
    from job.distributed.group import Group


def entry(main: Callable[[list[str]], int], *, only_shows: bool = False, joins: bool = False) -> None:
    """Run a command's ``main`` and exit: one line for what the user can mend, a traceback for what we must.

    Whatever becomes of standard output and error, the command goes on and its exit status is that of its work. One that
    ``only_shows`` ends with whoever reads its output, and fails when that cannot be written. One that ``joins`` a group
    looks for other processes, the others work alone.
    """
    _never_fail_to_show(only_shows)
    try:
        launcher.settle(joins=joins)
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        if launcher.launch_rank() == 0 or (launcher.speaks() and not _met()):
            complain(str(error))
        else:
            _let_rank_zero_end()
            if not _met() and not preemption.TOLD.is_set():
                complain(str(error))  # which rank zero does not know, or could not say yet
        status = BAD_INPUT
    except FailedError as error:
        if launcher.launch_rank() in (0, 1):  # rank zero may be the one that is missing
            complain(str(error))
        status = FAILED
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except Exception:
        show_traceback()
        status = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    # A rank in trouble must not wait in destructors for ranks that wait for it.
    if status != 0:
        os._exit(status)
    sys.exit(status)


def complain(text: str) -> None:
    """The one line on standard error that says what is wrong."""
    print(f"error: {printable(text)}", file=sys.stderr)


def show_traceback() -> None:
    """Print the traceback of the exception that is being handled, where nothing in it is obeyed."""
    sys.stderr.write(printable(traceback.format_exc(), keep="\n"))


def _never_fail_to_show(only_shows: bool) -> None:
    """Make standard output and error of this process, for all that writes to them, unable to fail."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed one's number must not become another file's
        os.set_inheritable(free, True)
    os.close(free)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        before: Any = getattr(sys, name)  # None where it was closed
        output = io.BufferedWriter(_Output(descriptor, required=only_shows and descriptor == 1))
        stream = io.TextIOWrapper(
            output,
            encoding=getattr(before, "encoding", "utf-8"),
            errors="backslashreplace",
            line_buffering=getattr(before, "line_buffering", False) or getattr(before, "write_through", False),
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class _Output(io.FileIO):
    """A terminal, pipe or file that may be gone or full: what it does not take is left out.

    Where it is ``required``, the command ends, quietly or with a FailedError.
    """

    def __init__(self, descriptor: int, *, required: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._required = required

    def write(self, content: Any) -> int:
        try:
            while (written := super().write(content)) is None:  # it does not wait by itself
                select.select([], [self], [])
            return written
        except OSError as error:
            if self._required:
                self._required = False  # said once
                if error.errno in (errno.EPIPE, errno.EIO):  # nobody reads any more
                    raise SystemExit(0) from None
                raise FailedError(f"standard output cannot be written ({error.strerror})") from None
            return memoryview(content).nbytes


def _met() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()


def _let_rank_zero_end() -> None:
    """Wait for the launcher to end this rank: it ends all as soon as one does, and rank zero still has to say why.

    Ranks that have met are at the same place; before that, rank zero may still be starting on a slow file system.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not preemption.TOLD.is_set():  # while this rank was starting
        time.sleep(1 if _met() else 10)


def reason(error: Exception, group: Group, batch_size: int) -> str:
    """Why ``error`` ended this rank, in one line; of what nobody foresaw the traceback is printed here."""
    if isinstance(error, FailedError):
        return str(error)
    if out_of_memory(error):
        return (
            f"out of memory on rank {group.rank} with train.batch_size={batch_size} on {group.world_size} processes, "
            f"after {max(cores.peaks().values()) / 1e6:,.0f} MB: lower it, raise train.gradient_accumulation, or use "
            "more processes"
        )
    if lost_contact(error):
        missing = group.roll_call.missing() if group.roll_call is not None else ""
        return missing or f"lost contact with another process: it was killed, crashed or hangs ({first_line(error)})"
    show_traceback()
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
