"""Editing by hand-made graphs: order, names, constants."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nm_export.onnx.rewrite.editor import GraphEditor

SHAPE = ["tokens", 4]


@pytest.fixture
def graph():
    """`x -> A -> a -> B -> y`, where A leaves an optional output out."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "a", "y")]
    first = helper.make_node("Dropout", ["x"], ["a", ""], name="/A")
    nodes = [first, helper.make_node("Clip", ["a", "", ""], ["y"], name="/B")]
    return helper.make_graph(nodes, "g", info[:1], info[2:], value_info=info[1:2])


def names(graph):
    return [node.name for node in graph.node]


def test_followers_stand_behind_what_they_read(graph, tmp_path):
    with GraphEditor(graph, tmp_path / "data") as editor:
        one = editor.add_constant("one", np.ones(4))
        late = editor.add("Add", ["x", one], "/late", like="a")
        assert editor.follow("a", "Mul", late, "/follower") == "/follower/output_0"
    assert names(graph) == ["/A", "/late", "/follower", "/B"]
    assert list(graph.node[3].input) == ["/follower/output_0", "", ""]
    assert list(graph.node[2].input) == ["a", "/late/output_0"]


def test_an_output_of_the_graph_keeps_its_name(graph, tmp_path):
    with GraphEditor(graph, tmp_path / "data") as editor:
        one = editor.add_constant("one", np.ones(4))
        assert editor.follow("y", "Add", one, "/last") == "y"
        assert editor.follow("y", "Mul", one, "/very_last") == "y"
    assert names(graph) == ["/A", "/B", "/last", "/very_last"]
    assert [node.input[0] for node in graph.node] == ["x", "a", "/B/output_0", "/last/output_0"]
    assert [node.output[0] for node in graph.node] == ["a", "/B/output_0", "/last/output_0", "y"]


def test_constants_are_aligned_and_scaled_in_the_file(graph, tmp_path):
    data = tmp_path / "data"
    data.write_bytes(b"earlier")
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    factors = np.array([1, 2, 0.5, -1], np.float32)
    with GraphEditor(graph, data) as editor:
        editor.add_constant("weight", weight)
        a, b = (editor.add("MatMul", ["a", "weight"], f"/{name}", like="a") for name in "ab")
        editor.scale_columns(editor.nodes["/a"], 1, factors)
        assert editor.nodes["/a"].input[1] == "weight.scaled"
        editor.scale_columns(editor.nodes["/b"], 1, 2 * factors)  # nobody else reads it now
        assert editor.nodes["/b"].input[1] == "weight"
        editor.add("Add", [a, b], "/sum", like="a")
    assert data.read_bytes().startswith(b"earlier")
    onnx.load_external_data_for_model(model := helper.make_model(graph), str(tmp_path))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(stored["weight"], weight * factors * 2)
    np.testing.assert_array_equal(stored["weight.scaled"], weight * factors)


def test_a_constant_that_another_node_reads_stays(graph, tmp_path):
    with GraphEditor(graph, tmp_path / "data") as editor:
        editor.add_constant("bias", np.arange(4))
        y = editor.add("Identity", ["a"], "/product", like="a")
        z = editor.add("Add", [y, "bias"], "/add", like="a")
        node, name = editor.bias_add(editor.nodes["/product"])
        assert (node.name, name) == ("/add", "bias")
        editor.add("Mul", [z, "bias"], "/other", like="a")
        np.testing.assert_array_equal(editor.take_constant("bias"), np.arange(4))
        assert [tensor.name for tensor in graph.initializer] == ["bias"]
        editor.remove_node(editor.nodes["/other"])
        editor.take_constant("bias")
        assert not graph.initializer


def test_two_readers_or_no_constant_are_no_bias(graph, tmp_path):
    with GraphEditor(graph, tmp_path / "data") as editor:
        y = editor.add("Identity", ["a"], "/product", like="a")
        editor.add("Add", [y, "x"], "/residual", like="a")
        assert editor.bias_add(editor.nodes["/product"]) is None
        editor.add_constant("bias", np.arange(4))
        editor.add("Add", [y, "bias"], "/add", like="a")
        assert editor.bias_add(editor.nodes["/product"]) is None
