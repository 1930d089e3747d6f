"""The processes that `accelerate launch`, `torchrun` or `mpirun` has started, if any."""

from datetime import timedelta

import torch
from torch import Tensor

from nm_export.calibration.processes import Processes

TIMEOUT = timedelta(hours=6)
"""How long a process waits for the others.

The first one measures the dense model's perplexity meanwhile. It need not be short: a process that dies closes its
connections, which ends the others at once, and so does the launcher.
"""


def launched_processes() -> Processes:
    """Join the other processes of a launch; a process that was started alone stays alone."""
    from accelerate import PartialState
    from accelerate.utils import gather, get_cpu_distributed_information, parse_flag_from_env

    if get_cpu_distributed_information().world_size == 1:
        return Processes()
    # without the flag, a machine without accelerators would take every process for one on its own
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=TIMEOUT)

    def rows(tensor: Tensor) -> Tensor:
        # devices without float64 exchange the bits
        bits = tensor.contiguous().view(torch.int64).unsqueeze(0).to(state.device)
        every: Tensor = gather(bits)
        return every.cpu().view(torch.float64)

    return Processes(state.process_index, state.num_processes, rows)
