"""The processes that `accelerate launch`, `torchrun` or `mpirun` has started, if any."""

import os
import re
import threading
from datetime import timedelta

import torch
from torch import Tensor

from nm_export.calibration.processes import Processes
from nm_export.errors import UserError
from nm_export.progress import doing, say

TIMEOUT = timedelta(hours=6)
"""How long a process waits for the others.

The first one measures the dense model's perplexity meanwhile. It need not be short: a process that dies closes its
connections, which ends the others at once, and so does the launcher.
"""


SILENCE = 5.0
"""Seconds after which a process says that it waits for the others."""

_VARIABLES = re.compile(r"(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|(PMI|MPI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_\w+)")


def launched_processes() -> Processes:
    """Join the other processes of a launch; a process that was started alone stays alone.

    Raises:
        UserError: the environment speaks of a launch that there is not.
    """
    from accelerate.utils import get_cpu_distributed_information

    has, remedy = _variables()  # before accelerate sets more of them
    try:
        found = get_cpu_distributed_information()
    except ValueError as error:
        raise UserError(f"{has}: {error}; {remedy}") from error
    if found.world_size == 1:
        return Processes()
    if "RANK" in os.environ and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UserError(f"{has}, as in a launch, but MASTER_ADDR and MASTER_PORT are not; {remedy}")
    waiting = threading.Timer(
        SILENCE,
        say,
        [
            f"Process {found.rank} of {found.world_size} waits for the others, because {has}. If you did not launch "
            f"several processes, stop this one (Ctrl-C) and {remedy}."
        ],
    )
    waiting.daemon = True
    waiting.start()
    try:
        with doing(f"Waiting for {found.world_size} processes"):
            return _join()
    except Exception as error:  # of torch.distributed and accelerate, which raise what they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the {found.world_size} processes of the launch cannot be joined ({reason}); {has}: {remedy}"
        ) from error
    finally:
        waiting.cancel()


def _join() -> Processes:
    from accelerate import PartialState
    from accelerate.utils import gather, parse_flag_from_env

    # without the flag, a machine without accelerators would take every process for one on its own
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=TIMEOUT)

    def rows(tensor: Tensor) -> Tensor:
        # devices without float64 exchange the bits
        bits = tensor.contiguous().view(torch.int64).unsqueeze(0).to(state.device)
        every: Tensor = gather(bits)
        return every.cpu().view(torch.float64)

    if state.num_processes > 1:
        rows(torch.zeros(1, dtype=torch.float64))  # some backends connect only when they are used
    return Processes(state.process_index, state.num_processes, rows)


def _variables() -> tuple[str, str]:
    """What the environment says of a launch, and what to do if there is none."""
    names = sorted(name for name in os.environ if _VARIABLES.fullmatch(name))
    values = ", ".join(f"{name}={os.environ[name][:40]}" for name in names)
    return f"the environment has {values}", f"unset them (unset {' '.join(names)}), or start with accelerate launch"
