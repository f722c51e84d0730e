"""The process group and its collectives: with whom this process computes, and on which device.

The only module that constructs an ``Accelerator``. torch is imported inside functions: entry points need this module
before they can afford torch.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from job.config.errors import DivergedError, FailedError, UserError, first_line
from job.config.settings import Runtime
from job.distributed import cores, ending, launcher, startup
from job.distributed.meeting import handshake, roll_call

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

T = TypeVar("T")
TRAVELS = {kind.__name__: kind for kind in (UserError, FailedError, DivergedError)}
"""the errors that one rank raises for all"""


@dataclass(frozen=True)
class Group:
    """The processes of a job, and which one of them this is. With one, the collectives do nothing."""

    accelerator: Accelerator
    device: torch.device
    rank: int
    world_size: int
    local_rank: int
    set_up_group: Any
    """a gloo group without a practical time limit: one process may decode or download for an hour"""
    control_group: Any
    """a gloo group for small messages between hosts that must not wait for a device"""
    roll_call: roll_call.RollCall | None = None
    """by which a rank that is missing is named"""

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    @property
    def local_world_size(self) -> int:
        """Processes of this job on this host."""
        return launcher.local_world_size()

    def guarded(self, work: Callable[[], T], *, on: bool = True) -> T | None:
        """Run ``work`` where ``on``; when it fails anywhere, every rank raises the error of the lowest such rank.

        That is the UserError or FailedError which ``work`` raised; of any other the traceback is printed there.
        """
        result: T | None = None
        problem: UserError | FailedError | None = None
        if on:
            try:
                result = work()
            except (UserError, FailedError) as error:
                problem = error
            except Exception as error:
                ending.show_traceback()
                problem = FailedError(f"rank {self.rank} failed: {type(error).__name__}: {first_line(error)}")
        for reported in self.gathered([type(problem).__name__, str(problem)] if problem else None):
            if reported is not None:
                kind, message = reported
                raise TRAVELS[kind](message)
        return result

    def once_a_node(self, work: Callable[[], T]) -> T:
        """Run ``work`` on one process of each node: its result, plain data as for ``gathered``, on all of them there.

        Errors are those of ``guarded``.
        """
        results = self.gathered(self.guarded(work, on=self.local_rank == 0))
        return cast(T, results[self.rank - self.local_rank])

    def gathered(self, value: T) -> list[T]:
        """``value`` of every rank, in rank order: plain data, of which tuples come back as lists.

        It travels as JSON: to unpickle what came over a network is to run it.
        """
        text = json.dumps(value).encode()
        if self.world_size == 1:
            return [json.loads(text)]
        lengths = _exchange(len(text).to_bytes(8, "big"), self.set_up_group)
        longest = max(int.from_bytes(length, "big") for length in lengths)
        return [json.loads(text) for text in _exchange(text.ljust(longest), self.set_up_group)]

    def from_rank_zero(self, value: T) -> T:
        """Rank zero's ``value``, everywhere."""
        return self.gathered(value)[0]

    def rows_of_all(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows [k, n] of every rank, in rank order: [world_size * k, n].

        Every rank must call it, with the same number of rows.
        """
        if self.world_size == 1:
            return rows
        import torch.distributed as dist

        gathered = rows.new_empty(self.world_size * len(rows), rows.shape[1])
        dist.all_gather_into_tensor(gathered, rows)
        return gathered

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place and returned. Every rank must call it."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rank zero's ``tensors``, everywhere, so that one process reads a file for all. Every rank must call it."""
        if self.world_size == 1:
            return tensors
        import torch
        import torch.distributed as dist

        shapes = self.from_rank_zero({name: (list(t.shape), str(t.dtype)) for name, t in tensors.items()})
        result = {}
        for name, (shape, kind) in shapes.items():
            dtype = getattr(torch, kind.removeprefix("torch."))
            # Contiguous: what is sent is memory, in whatever order it lies.
            tensor = tensors[name].to(self.device).contiguous() if self.is_rank_zero else None
            result[name] = torch.empty(shape, dtype=dtype, device=self.device) if tensor is None else tensor
            dist.broadcast(result[name], src=0)
        return result

    def maximum(self, values: list[int]) -> list[int]:
        """Element-wise maximum over ranks. Every rank must call it."""
        if self.world_size == 1:
            return values
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control_group)
        return tensor.tolist()

    def close(self) -> None:
        """Leave the group after success. After a failure nobody waits for anybody: just exit."""
        if self.world_size > 1:
            if self.roll_call is not None:
                self.roll_call.close()
            # In this order: a gloo group that dies before its models aborts the process one time in ten.
            self.accelerator.free_memory()
            self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def start(
    settings: Runtime,
    *,
    deterministic: bool,
    static_graph: bool = False,
    one_thread: bool = False,
    meeting: contextlib.AbstractContextManager[None] | None = None,
) -> Group:
    """Form the process group that was asked for, on the device that was asked for.

    ``static_graph``: each backward pass is followed by an optimizer step. ``one_thread``: use one CPU thread unless
    told otherwise, since sums over threads differ in their last bits with the number of threads. ``meeting`` is entered
    while processes wait for each other.

    Raises UserError when fewer processes came than were asked for, or when the device is not there.
    """
    asked, world_size = launcher.asked(), launcher.world_size()
    if asked.processes is not None and asked.processes != world_size:
        raise UserError(
            f"{asked.processes} processes were asked for and {world_size} started ({asked.by})",
            "start them by sbatch slurm/*.sh, which tells each its place; one alone by srun --ntasks=1"
            if asked.by.startswith("SLURM")
            else "on GPUs use --config_file launch/multi_gpu.yaml, on CPUs --config_file launch/cpu.yaml, "
            f"with --num_processes {asked.processes}" + (f"; or unset {asked.by}" if asked.by.isupper() else ""),
        )
    threads = cores.threads_for(settings, alone=one_thread)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Threads that wait spin, for a tenth of a second by default: on shared cores that is ten times slower than working.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only so

    if world_size > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # the rest is said by errors, and was 25 lines of each

    import torch

    _prepare_arithmetic(threads, deterministic=deterministic, compiled=settings.compile == "default")
    cpu = cores.on_cpu(settings.device, asked, torch.cuda.device_count())
    if cpu:
        cores.keep_freed_memory()
    for note in launcher.not_used(settings.precision):
        print(note, file=sys.stderr)
    with meeting if meeting is not None and world_size > 1 else contextlib.nullcontext():
        return _meet(settings, cpu=cpu, static_graph=static_graph)


def _prepare_arithmetic(threads: int, *, deterministic: bool, compiled: bool) -> None:
    """With how many threads, how exactly, and in which order torch computes from now on."""
    import torch

    torch.set_num_threads(threads)
    # TF32 where exact bits are not asked for: three times the matrix rate for ten bits of mantissa.
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = not deterministic
    if deterministic and compiled:
        torch.use_deterministic_algorithms(True)  # imports the compiler: two seconds that others need not wait
    else:
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs a pass over each tensor


def _meet(settings: Runtime, *, cpu: bool, static_graph: bool) -> Group:
    """Wait for all other ranks. Raises FailedError when they do not come within ``settings.timeout`` seconds."""
    import torch.distributed as dist
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import GradientAccumulationPlugin

    startup.mark("torch and accelerate")
    patience = datetime.timedelta(seconds=settings.timeout)
    groups: Any = (None, None)
    unknown: list[int] = []
    roll = None
    absent: Callable[[], list[int]] = list
    try:
        absent = handshake.arrive(patience)
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision={"fp32": "no"}.get(settings.precision, settings.precision),
            # Said here, or the environment is asked, and with it a default_config.yaml that nobody thinks of.
            dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[
                # A millionth more: accelerate takes 600 s, NCCL's default, for "not said"; gloo's is 1,800. NCCL, which
                # aborts the process, comes after the control group, which says who is missing.
                InitProcessGroupKwargs(timeout=patience + datetime.timedelta(seconds=1e-6 if cpu else 30)),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True, static_graph=static_graph),
            ],
        )
        if accelerator.num_processes > 1:
            groups = tuple(dist.new_group(backend="gloo", timeout=patience) for _ in range(2))
            unknown = handshake.strangers(
                launcher.secret() or handshake.users_secret(),
                accelerator.process_index,
                partial(_exchange, group=groups[0]),
            )
            if not unknown:
                roll = roll_call.join(accelerator.process_index, settings.timeout, partial(_exchange, group=groups[0]))
            # Only now: a day would also be the time that ranks wait for one that died while they met.
            set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
            set_timeout(datetime.timedelta(days=1), groups[0])
    except RuntimeError as error:
        if not ending.lost_contact(error):
            raise
        never = ", ".join(map(str, absent()))
        raise FailedError(
            f"rank {never or launcher.launch_rank()} of {launcher.world_size()} "
            f"{'never came to' if never else 'did not meet all others at'} {launcher.meeting_address()} "
            f"({first_line(error)}): see whether all started, and whether that address can be reached from every node"
        ) from None
    if unknown:
        raise FailedError(
            f"rank {', '.join(map(str, unknown))} at {launcher.meeting_address()} is none of this job's: give every "
            "process the same RANKZERO_SECRET, or find out who reached that address before the job did"
        )
    return Group(
        accelerator=accelerator,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        local_rank=accelerator.local_process_index,
        set_up_group=groups[0],
        control_group=groups[1],
        roll_call=roll,
    )


def _exchange(own: bytes, group: Any) -> list[bytes]:
    """``own`` of every rank, in rank order; equally many bytes on all."""
    import torch
    import torch.distributed as dist

    row = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    rows = row.new_empty(dist.get_world_size(group), len(row))
    dist.all_gather_into_tensor(rows.view(-1), row, group=group)
    return [row.numpy().tobytes() for row in rows]
