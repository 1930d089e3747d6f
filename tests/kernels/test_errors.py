"""What is wrong with a model or with an input is said in one sentence, which names the node."""

import numpy as np
import pytest

from tests.kernels.sessions import create_session, instruction_set, nm_topk_model, run


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"n": 0}, "'proj': the attribute n is 0; it must be from 1 to 4"),
        ({"n": 5}, "'proj': the attribute n is 5; it must be from 1 to 4"),
        ({"n": -(2**63)}, "n is -9223372036854775808"),
        ({"m": 0}, "'proj': the attribute m is 0; it must be from 1 to 2147483647"),
        ({"n": 2**32 + 2, "m": 2**32 + 4}, "m is 4294967300"),
        ({"shift_mode": 3}, "'proj': the attribute shift_mode is 3; it must be from 0 to 2"),
        ({"shift_mode": -1}, "shift_mode is -1"),
        ({"variance_correction": 2}, "'proj': the attribute variance_correction is 2; it must be from 0 to 1"),
        ({"phase": 3}, "'proj': the attribute phase is 3; it must be from 0 to 2"),
        ({"n": None}, "'proj': the integer attribute n is missing"),
        ({"phase": None}, "'proj': the integer attribute phase is missing"),
    ],
)
def test_bad_attributes_are_refused_when_the_model_is_opened(attributes, sentence):
    with pytest.raises(Exception, match="NMTopK node") as caught:
        create_session(nm_topk_model(name="proj", **attributes))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("x", "score", "shift", "sentence"),
    [
        ((2, 10), (10,), (10,), "'proj': K = 10 channels is not a positive multiple of M = 4"),
        ((2, 0), (0,), (0,), "'proj': K = 0 channels is not a positive multiple of M = 4"),
        ((0, 10), (10,), (10,), "K = 10 channels is not a positive multiple of M = 4"),
        ((), (4,), (4,), "'proj': x is a scalar"),
        ((2, 8), (4,), (8,), "'proj': score has shape [4]; x has K = 8 channels, so it must be [8]"),
        ((2, 8), (8,), (1,), "'proj': shift has shape [1]; x has K = 8 channels, so it must be [8]"),
        ((2, 8), (1, 8), (8,), "score has shape [1, 8]"),
        ((2, 8), (), (8,), "score has shape []"),
    ],
)
def test_bad_shapes_are_refused_when_the_model_runs(x, score, shift, sentence):
    session = create_session(nm_topk_model(name="proj"))
    with pytest.raises(Exception, match="NMTopK node") as caught:
        run(session, *(np.zeros(shape, np.float32) for shape in (x, score, shift)))
    assert sentence in str(caught.value)
    # The session is still good.
    ones = np.ones(8, np.float32)
    values, _ = run(session, np.arange(8, dtype=np.float32).reshape(1, 8), ones, 0 * ones)
    assert values.tolist() == [[0, 0, 2, 3, 0, 0, 6, 7]]


def test_more_axes_than_shapes_have_room_for():
    session = create_session(nm_topk_model(name="proj"))
    ones = np.ones(4, np.float32)
    assert run(session, np.ones((1,) * 15 + (4,), np.float32), ones, 0 * ones)[0].shape == (1,) * 15 + (4,)
    with pytest.raises(Exception, match="NMTopK node 'proj': a tensor has 17 axes; it may have up to 16"):
        run(session, np.ones((1,) * 16 + (4,), np.float32), ones, 0 * ones)


def test_a_pattern_is_checked_even_in_a_call_that_is_not_pruned():
    session = create_session(nm_topk_model(phase=2))
    with pytest.raises(Exception, match="K = 6 channels is not a positive multiple of M = 4"):
        run(session, np.zeros((3, 6), np.float32), np.ones(6, np.float32), np.zeros(6, np.float32))


def test_an_unknown_instruction_set_is_refused():
    with instruction_set("sse9"), pytest.raises(Exception, match="NM_EXPORT_ISA must be portable"):
        create_session(nm_topk_model())


def test_other_element_types_are_refused():
    from onnx import TensorProto, helper

    node = helper.make_node(
        "NMTopK",
        ["x", "s", "e"],
        ["v", "t"],
        domain="ai.nm_export",
        n=2,
        m=4,
        shift_mode=0,
        variance_correction=0,
        phase=0,
    )
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "doubles",
        [info("x", TensorProto.DOUBLE, [2, 8]), info("s", TensorProto.FLOAT, [8]), info("e", TensorProto.FLOAT, [8])],
        [info("v", TensorProto.DOUBLE, None), info("t", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.nm_export", 1)]
    with pytest.raises(Exception, match=r"double"):
        create_session(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
