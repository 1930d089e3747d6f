"""Several processes, here threads with models of their own, learn what one learns."""

import threading

import pytest
import torch

from nm_export.calibration.processes import Processes
from nm_export.errors import UserError
from nm_export.learning import learn
from tests.learning.training import MODES, SEQUENCES, assert_equal, calibrated, section, state


class Meeting:
    """Gathers a tensor of every thread, in the order of ranks, as often as they like."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count, timeout=120)
        self.tensors = [None] * count

    def gather_for(self, rank):
        def gather(tensor):
            self.tensors[rank] = tensor
            self.barrier.wait()
            rows = torch.stack(self.tensors)
            self.barrier.wait()  # nobody brings the next tensor before all have read these
            return rows

        return gather


def together(count, work):
    """What `work(processes)` returns, or the UserError that it raises, in `count` threads."""
    meeting, results = Meeting(count), [None] * count

    def run(rank):
        try:
            results[rank] = work(Processes(rank, count, meeting.gather_for(rank)))
        except UserError as error:
            results[rank] = error
        except BaseException as error:
            meeting.barrier.abort()  # as a launcher ends the other processes
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_passes_of_a_step_are_dealt_out(mode, count, tmp_path):
    settings = section(mode, gradient_accumulation=2, epochs=2)  # the third process has nothing to do
    alone = calibrated()
    expected = learn(alone, SEQUENCES, settings)
    models = [calibrated() for _ in range(count)]
    with torch.no_grad():  # as if another kind of machine had calibrated
        models[-1].model.layers[0].mlp.up_proj.nm_scale += 1e-7

    def work(processes):
        # only the first process sees its checkpoints: machines without a common disk
        folder = tmp_path / str(processes.rank)
        return learn(models[processes.rank], SEQUENCES, settings, checkpoint_dir=folder, processes=processes)

    for _ in range(2):
        reports = together(count, work)
        assert all(report == reports[0] for report in reports)
        assert reports[0].losses == pytest.approx(expected.losses, rel=1e-4)
        for model in models[1:]:
            assert_equal(state(model), state(models[0]))
        for name, tensor in state(alone).items():
            torch.testing.assert_close(state(models[0])[name], tensor, rtol=1e-3, atol=1e-3)
        fresh = calibrated().state_dict()
        for model in models:
            model.load_state_dict(fresh)
    assert [any((tmp_path / str(rank)).glob("*")) for rank in range(count)] == [True] + [False] * (count - 1)


@pytest.mark.parametrize("mode", MODES)
def test_processes_with_a_common_folder_continue_together(mode, tmp_path):
    settings = section(mode, gradient_accumulation=2, epochs=2)

    def run():
        models = [calibrated() for _ in range(2)]

        def work(processes):
            model = models[processes.rank]
            return learn(model, SEQUENCES, settings, checkpoint_dir=tmp_path, processes=processes)

        return together(2, work), [state(model) for model in models]

    (first, states), (second, states_again) = run(), run()
    assert second == first
    for again, before in zip(states_again, states, strict=True):
        assert_equal(again, before)


@pytest.mark.parametrize("mode", MODES)
def test_all_stop_when_one_diverges(mode):
    sequences = SEQUENCES.clone()
    sequences[0] = 2  # one process alone computes with it
    models = [calibrated() for _ in range(2)]
    for model in models:
        with torch.no_grad():
            model.get_input_embeddings().weight[2] = float("nan")
    settings = section(mode, gradient_accumulation=4, epochs=1)
    errors = together(2, lambda processes: learn(models[processes.rank], sequences, settings, processes=processes))
    assert all("Learning diverged" in str(error) for error in errors)
