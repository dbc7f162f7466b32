"""Rewrites ONNX graphs, with the same results: constants folded, weights stored in float16."""

import contextlib
import logging
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    import onnxruntime

# Smaller tensors, such as biases and shapes, are not worth a cast.
_FEWEST_HALVED = 256


def session(content: bytes, threads: int = 0) -> "onnxruntime.InferenceSession":
    """Returns a session of onnxruntime on the CPU that does not print its errors too.

    Args:
        content: the file.
        threads: how many compute; 0: one per core.
    """
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are also raised as exceptions
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def simplified(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """Folds constants and removes what cancels, such as pairs of transpositions.

    Only operators of standard ONNX are in the result.
    """
    import onnx  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Higher levels introduce operators that only onnxruntime has.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "simplified.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found = onnx.load(path)
    used = {node.domain for node in found.graph.node}
    kept = [opset for opset in found.opset_import if opset.domain in used]
    del found.opset_import[:]
    found.opset_import.extend(kept)
    return found


def folded(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """Folds the constants of a fixed-size graph, in particular its shape arithmetic.

    OpenCV 4 handles shape arithmetic differently and fails at it.
    """
    import onnx  # noqa: PLC0415

    found = simplified(proto)
    for node in found.graph.node:
        beta = next((a.f for a in node.attribute if a.name == "beta"), 1.0)
        if node.op_type == "Gemm" and len(node.input) == 3 and beta == 0.0:
            # With beta = 0 this scalar has no effect, but OpenCV 4 does not accept it.
            del node.input[2]
    _expand_terms(onnx.shape_inference.infer_shapes(found, strict_mode=True), found)
    return onnx.shape_inference.infer_shapes(found, strict_mode=True)


def _expand_terms(inferred: "onnx.ModelProto", proto: "onnx.ModelProto") -> None:
    """Expands computed terms of sums, of which one is added to all pixels.

    OpenCV 5 merges a sum with the convolution before it, and then fails at such a term.

    Args:
        inferred: the graph with all shapes.
        proto: the graph to change.
    """
    import onnx  # noqa: PLC0415

    graph = inferred.graph
    shapes = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    nodes = []
    for node in proto.graph.node:
        if node.op_type == "Add":
            full = shapes[node.output[0]]
            for place, name in enumerate(node.input):
                # The others are constants.
                if name in shapes and shapes[name] != full:
                    wide, sides = f"{name}_expanded_{node.name}", f"{name}_sides_{node.name}"
                    tensor = onnx.numpy_helper.from_array(np.array(full, np.int64), sides)
                    proto.graph.initializer.append(tensor)
                    nodes.append(onnx.helper.make_node("Expand", [name, sides], [wide], wide))
                    node.input[place] = wide
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def use_relu(proto: "onnx.ModelProto") -> None:
    """Replaces max(x, 0) by Relu, which runtimes merge with the convolution before it.

    Constants that are unused then are removed.
    """
    import onnx  # noqa: PLC0415

    zeros = set()
    for tensor in proto.graph.initializer:
        # A scalar, as one of more axes could add axes to the result.
        is_scalar = tensor.data_type == onnx.TensorProto.FLOAT and not tensor.dims
        if is_scalar and onnx.numpy_helper.to_array(tensor) == 0:
            zeros.add(tensor.name)
    for node in proto.graph.node:
        others = [name for name in node.input if name not in zeros]
        if node.op_type == "Max" and len(node.input) == 2 and len(others) == 1:
            node.op_type = "Relu"
            del node.input[:]
            node.input.extend(others)
    # Runtimes warn of constants that nothing uses.
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def halve_weights(proto: "onnx.ModelProto") -> None:
    """Stores the weights in float16, each with a cast to float32 before its use.

    The arithmetic stays in float32: onnxruntime has no float16 convolution for most CPUs, and
    folds the casts when it loads the file.
    """
    import onnx  # noqa: PLC0415

    casts = []
    for tensor in proto.graph.initializer:
        is_small = np.prod(tensor.dims) < _FEWEST_HALVED
        if tensor.data_type != onnx.TensorProto.FLOAT or is_small:
            continue
        name = tensor.name
        # Beyond the range of float16, a weight would become infinite.
        values = np.clip(onnx.numpy_helper.to_array(tensor), -65504, 65504)
        stored = f"{name}_float16"
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings and log messages of the converters."""
    names = ("onnx_ir", "root")
    levels = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)
