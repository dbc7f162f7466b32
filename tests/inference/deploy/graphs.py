"""Small ONNX graphs, made by hand: the converter takes a minute for the smallest network."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT = onnx.TensorProto.FLOAT


def _graph(nodes, tensors, with_context=False):
    def image(name, *sides):
        return helper.make_tensor_value_info(name, FLOAT, ["B", *sides, 3])

    inputs = [image("degraded", "H", "W")]
    if with_context:
        inputs.append(image("context", "P", "Q"))
    graph = helper.make_graph(
        nodes,
        "restorer",
        inputs,
        [image("restored", "H", "W")],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    proto.ir_version = 10
    onnx.checker.check_model(proto)
    return proto


def _convolution(name, source, kernel, target):
    return helper.make_node(
        "Conv", [source, kernel], [target], name, pads=[1, 1, 1, 1], kernel_shape=[3, 3]
    )


def smoothing(features=12, blocks=6, seed=0):
    """A network of residual blocks that smooths, as one trained against noise does."""
    rng = np.random.default_rng(seed)
    binomial = np.outer([1, 2, 1], [1, 2, 1]) / 16
    mix = np.zeros((features, 3))
    mix[np.arange(features), np.arange(features) % 3] = 1
    tensors = {"zero": np.float32(0)}
    tensors["first"] = mix[:, :, None, None] * binomial
    tensors["last"] = (mix.T * 3 / features)[:, :, None, None] * binomial
    nodes = [
        helper.make_node("Transpose", ["degraded"], ["image"], perm=[0, 3, 1, 2]),
        _convolution("first_conv", "image", "first", "x0"),
    ]
    for i in range(blocks):
        for half in "ab":
            scale = 0.2 / np.sqrt(9 * features)
            tensors[f"{half}{i}"] = rng.normal(0, scale, (features, features, 3, 3))
        nodes += [
            _convolution(f"conv_a{i}", f"x{i}", f"a{i}", f"y{i}"),
            helper.make_node("Max", [f"y{i}", "zero"], [f"z{i}"], f"max{i}"),
            _convolution(f"conv_b{i}", f"z{i}", f"b{i}", f"w{i}"),
            helper.make_node("Add", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"add{i}"),
        ]
    nodes += [
        _convolution("last_conv", f"x{blocks}", "last", "sum"),
        helper.make_node("Transpose", ["sum"], ["restored"], perm=[0, 2, 3, 1]),
    ]
    return _graph(nodes, {name: np.asarray(v, np.float32) for name, v in tensors.items()})


def telling_of_tiles(with_context):
    """A network that sees the borders of its tile, and the weighted mean of the context."""
    rng = np.random.default_rng(1)
    tensors = {
        "kernel": rng.normal(0, 0.2, (3, 3, 3, 3)).astype(np.float32),
        "axes": np.array([1, 2]),
        "half": np.float32(0.5),
    }
    nodes = [
        helper.make_node("Transpose", ["degraded"], ["image"], perm=[0, 3, 1, 2]),
        _convolution("conv", "image", "kernel", "x"),
        helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1]),
        helper.make_node("Add", ["y", "half"], ["z"]),
    ]
    if with_context:
        nodes += [
            helper.make_node("ReduceMean", ["context", "axes"], ["mean"], keepdims=1),
            helper.make_node("Mul", ["z", "mean"], ["restored"]),
        ]
    else:
        tensors.pop("axes")
        nodes.append(helper.make_node("Identity", ["z"], ["restored"]))
    return _graph(nodes, tensors, with_context)
