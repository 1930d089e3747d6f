"""Several processes, here threads with models of their own, find what one finds."""

import threading

import pytest
import torch

from nm_export.calibration import calibrate
from nm_export.calibration.processes import Processes
from nm_export.errors import UserError
from tests.tiny_models import sparse_model, token_ids

SPARSITY = {
    "score": "clact",
    "shift": "static_scalar",
    "overrides": [{"modules": ["*.gate_proj", "*.down_proj"], "score": "smoothquant", "shift": "static_channel"}],
}


class Meeting:
    """Gathers a tensor of every thread, in the order of ranks."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count, timeout=60)
        self.tensors = [None] * count

    def gather_for(self, rank):
        def gather(tensor):
            self.tensors[rank] = tensor
            self.barrier.wait()
            return torch.stack(self.tensors)

        return gather


def together(count, sequences, prepare=lambda model: None):
    """Calibrate in `count` threads; the models, and what each thread raised."""
    meeting = Meeting(count)
    models = [sparse_model(**SPARSITY) for _ in range(count)]
    errors = [None] * count

    def work(rank):
        prepare(models[rank])
        try:
            processes = Processes(rank, count, meeting.gather_for(rank))
            calibrate(models[rank], sequences, batch_size=2, processes=processes)
        except UserError as error:
            errors[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return models, errors


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_process_gets_the_parameters_of_one(count):
    sequences = token_ids(samples=8, length=10)  # four batches: with five processes, one has nothing to do
    alone = sparse_model(**SPARSITY)
    calibrate(alone, sequences, batch_size=2)
    models, errors = together(count, sequences)
    assert errors == [None] * count
    for name, module in alone.nm_modules().items():
        for model in models:
            other = model.nm_modules()[name]
            torch.testing.assert_close(other.nm_score, module.nm_score, rtol=1e-6, atol=0)
            torch.testing.assert_close(other.nm_shift, module.nm_shift, rtol=1e-6, atol=1e-9)
            first = models[0].nm_modules()[name]
            assert torch.equal(other.nm_score, first.nm_score)
            assert torch.equal(other.nm_shift, first.nm_shift)


def test_processes_share_the_batches():
    sequences = token_ids(samples=7, length=4)
    shares = [Processes(rank, 3).share(sequences, 2) for rank in range(3)]
    assert [[len(batch) for batch in share] for share in shares] == [[2, 1], [2], [2]]
    assert torch.equal(torch.cat([shares[0][0], shares[1][0], shares[2][0], shares[0][1]]), sequences)


def test_all_stop_when_one_finds_a_nan():
    sequences = token_ids(samples=4, length=10)
    sequences[0, 0] = 1  # only the first batch, of the first process, holds this token

    def poison(model):
        with torch.no_grad():
            model.get_input_embeddings().weight[1] = float("nan")

    _, errors = together(2, sequences, poison)
    for error in errors:
        assert "model.layers.0.self_attn.q_proj holds NaN" in str(error)
