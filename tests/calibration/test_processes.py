"""Several processes, here threads with models of their own, find what one finds."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nm_export.calibration import calibrate
from nm_export.calibration.processes import Processes
from nm_export.calibration.statistics import InputStatistics
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
            every = torch.stack(self.tensors)
            self.barrier.wait()  # nobody brings the next one before all have these
            return every

        return gather


def together(count, sequences, prepare=lambda model: None, **settings):
    """Calibrate in `count` threads; the models, and what each thread raised."""
    meeting = Meeting(count)
    models = [sparse_model(**SPARSITY) for _ in range(count)]
    errors = [None] * count

    def work(rank):
        prepare(models[rank])
        try:
            processes = Processes(rank, count, meeting.gather_for(rank))
            calibrate(models[rank], sequences, batch_size=2, processes=processes, **settings)
        except UserError as error:
            errors[rank] = error

    in_threads(count, work)
    return models, errors


def in_threads(count, work):
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def statistics():
    return {"input": InputStatistics(5, ("median_sum", "square_sum", "maximum"))}


@pytest.mark.parametrize("block_by_block", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_process_gets_the_parameters_of_one(count, block_by_block):
    sequences = token_ids(samples=8, length=10)  # four batches: with five processes, one has nothing to do
    alone = sparse_model(**SPARSITY)
    calibrate(alone, sequences, batch_size=2)
    models, errors = together(count, sequences, block_by_block=block_by_block)
    assert errors == [None] * count
    for name, module in alone.nm_modules().items():
        for model in models:
            other = model.nm_modules()[name]
            assert torch.equal(other.nm_score, module.nm_score)
            assert torch.equal(other.nm_shift, module.nm_shift)


def test_processes_share_the_batches():
    rounds = [Processes(rank, 3).rounds("abcdefg") for rank in range(3)]
    assert rounds == [["a", "d", "g"], ["b", "e", None], ["c", "f", None]]
    assert Processes(2, 3).rounds("ab") == [None]


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 6), batches=st.integers(0, 9), seed=st.integers(0, 99))
def test_sums_are_those_of_one_process_to_the_last_bit(count, batches, seed):
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-12, 12, (batches,), generator=generator)  # additions in another order would show
    texts = [torch.randn(3, 5, generator=generator) * scale for scale in scales]
    alone = statistics()
    for text in texts:
        alone["input"].update(text)

    meeting = Meeting(count)
    totals = [statistics() for _ in range(count)]

    def work(rank):
        processes = Processes(rank, count, meeting.gather_for(rank))
        measured = statistics()
        for text in processes.rounds(texts):
            if text is not None:
                measured["input"].update(text)
            processes.add(totals[rank], measured)

    in_threads(count, work)
    for total in totals:
        assert torch.equal(total["input"].state(), alone["input"].state())


@pytest.mark.parametrize("block_by_block", [False, True])
def test_all_stop_when_one_finds_a_nan(block_by_block):
    sequences = token_ids(samples=4, length=10)
    sequences[0, 0] = 1  # only the first batch, of the first process, holds this token

    def poison(model):
        with torch.no_grad():
            model.get_input_embeddings().weight[1] = float("nan")

    _, errors = together(2, sequences, poison, block_by_block=block_by_block)
    for error in errors:
        assert "model.layers.0.self_attn.q_proj holds NaN" in str(error)
