"""Quantises ONNX models to 8 bits, and measures on photographs what that costs and gains.

Weights get a scale per channel, activations one per tensor, from their range over the
photographs. What the finest convolutions round shows directly in the result; they are the first
and the last ones, of which as many stay in float32 as a small loss needs. So do those that
estimate something from the whole photograph, which take no time.
"""

import dataclasses
import json
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from restore_jax import batches, models
from restore_jax.degradation import digital_gain
from restore_jax.errors import UsageError
from restore_jax.image_io import image_files, image_paths
from restore_jax.inference import pixels, tile_plan, white_level
from restore_jax.inference.deploy import onnx_graph
from restore_jax.inference.restorer import Restorer

if TYPE_CHECKING:
    import onnx
    import onnxruntime

# Of each photograph, the middle is used; this many photographs suffice.
_SIDE = 256
_MOST = 32
# From this many on, every second one is kept for measuring.
_FEWEST_DIVIDED = 6
# Loss of PSNR that is aimed at, dB. Without the clean photographs it is not known; results this
# close to those in float32 lose so much where these are 36 dB from the truth.
_LOSS = 0.1
_CLOSENESS = 52.0
# How many of the first and last convolutions stay in float32, from the fastest choice on.
_IN_FLOAT = ((1, 1), (1, 3), (1, 5), (2, 5), (3, 5), (5, 5), (5, 9), (9, 9))
_ROUNDS = 5
# What makes one value of an image, or of many of its pixels.
_GLOBAL = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool", "Gemm"})


@dataclasses.dataclass(frozen=True)
class Example:
    """A part of a photograph.

    Attributes:
        degraded: float32 [1, h, w, 3], as the network sees it.
        context: float32 [1, 64, 64, 3], the thumbnail of the photograph; None where the network
            does not use it.
        clean: float32 [1, h, w, 3], the truth; None where it is not known.
    """

    degraded: np.ndarray
    context: np.ndarray | None = None
    clean: np.ndarray | None = None

    def inputs(self, session: "onnxruntime.InferenceSession") -> dict[str, np.ndarray]:
        """Returns the inputs that a session takes."""
        named = {"degraded": self.degraded, "context": self.context}
        return {one.name: named[one.name] for one in session.get_inputs()}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a quantised model loses and gains.

    Attributes:
        photographs: how many it was measured on.
        held_out: whether these are others than it was calibrated with.
        closeness: PSNR between its results and those in float32, dB, mean.
        psnr: PSNR of the results in float32 against the clean photographs, mean in dB; None
            where these are not given.
        loss: how much of it is lost; None likewise.
        speedup: how many times as fast as in float32 it is, in one thread on this CPU.
        quantised: number of convolutions with 8 bits.
        convolutions: number of all.
    """

    photographs: int
    held_out: bool
    closeness: float
    psnr: float | None
    loss: float | None
    speedup: float
    quantised: int
    convolutions: int

    def __str__(self) -> str:
        """Returns lines for a terminal."""
        lines = [
            f"int8: {self.quantised} of {self.convolutions} convolutions; {self.closeness:.1f} "
            f"dB from the results in float32, over {self.photographs} photographs that it was "
            f"{'not ' * self.held_out}calibrated with"
        ]
        if self.loss is not None:
            lines.append(
                f"against the clean photographs: {self.loss:.2f} dB less than the "
                f"{self.psnr:.2f} dB of float32"
            )
        if not self.is_small:
            lines.append(
                f"this is more than the {_LOSS} dB aimed at: float16 or float32 is better here"
            )
        lines.append(f"{self.speedup:.1f} times as fast as float32, in one thread on this CPU")
        return "\n".join(lines)

    @property
    def is_small(self) -> bool:
        """Whether the loss is as small as it is aimed at."""
        return self.closeness >= _CLOSENESS if self.loss is None else self.loss <= _LOSS


def read(
    folder: pathlib.Path, restorer: Restorer, size: tuple[int, int] | None
) -> list[Example]:
    """Reads parts of photographs to calibrate a model with, such as it is to restore.

    Args:
        folder: has the photographs, or two folders, `degraded` and `clean`, with the same file
            names in both.
        restorer: the model.
        size: height and width that the model takes; None: any.

    Raises:
        UsageError: if there are none, or one cannot be used.
    """
    if not folder.is_dir():
        raise UsageError(f"--calibration={folder}: no such folder")
    root = folder / "degraded" if (folder / "degraded").is_dir() else folder
    clean = folder / "clean" if root != folder and (folder / "clean").is_dir() else None
    paths = list(image_paths.walk(root))
    if unlisted := [path for path in paths if path.is_dir()]:
        raise UsageError(f"--calibration={unlisted[0]}: the folder cannot be listed")
    if not paths:
        raise UsageError(f"--calibration={folder}: there are no photographs in it")
    chosen = [
        paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, _MOST).round().astype(int))
    ]
    examples = []
    for path in chosen:
        shown = _picture(path, restorer)
        rows, columns = (
            _middle(length, side)
            for length, side in zip(
                (shown.height, shown.width), size or (None, None), strict=True
            )
        )
        truth = None
        if clean is not None:
            beside = _picture(clean / path.relative_to(root), restorer, is_clean=True)
            if (beside.height, beside.width) != (shown.height, shown.width):
                raise UsageError(f"--calibration={folder}: {path.name} has two sizes")
            truth = beside.read(rows, columns)[None]
        context = None if shown.context is None else shown.context[None]
        examples.append(Example(shown.read(rows, columns)[None], context, truth))
    return examples


def _picture(
    path: pathlib.Path, restorer: Restorer, is_clean: bool = False
) -> pixels.TiledImage:
    try:
        photograph = image_files.read(path)
    except image_files.ImageFileError as error:
        raise UsageError(f"--calibration: {error}") from error
    photograph = white_level.with_white(photograph, None, white_level.trained_white(restorer))
    undoes = restorer.options.undo_gain and not is_clean
    return pixels.TiledImage(
        photograph.pixels,
        1.0,
        batches.CONTEXT_SIZE if models.takes_context(restorer.model) else None,
        photograph.white,
        gain=digital_gain.of_photograph(photograph.pixels) if undoes else None,
    )


def _middle(length: int, side: int | None) -> np.ndarray:
    """Returns the indices of the middle of an axis, as many as a model takes."""
    wanted = side or min(_SIDE, -(-length // tile_plan.MIN_TILE) * tile_plan.MIN_TILE)
    begin = max(0, (length - wanted) // 2)
    return tile_plan.reflected(length, begin + wanted)[begin:]


def quantised(
    proto: "onnx.ModelProto", calibration: Sequence[Example]
) -> tuple["onnx.ModelProto", Cost]:
    """Returns a model with convolutions of 8 bits, and what it costs.

    The cost is stored in the metadata under "int8", as JSON.

    Args:
        proto: the model, in float32.
        calibration: the photographs. From six on, every second one is for measuring alone.

    Raises:
        UsageError: if the model has too few convolutions.
    """
    import onnx  # noqa: PLC0415

    simple = onnx_graph.simplified(proto)
    exact = onnx_graph.session(proto.SerializeToString())
    ranging, measuring = calibration, calibration
    if held_out := len(calibration) >= _FEWEST_DIVIDED:
        ranging, measuring = calibration[::2], calibration[1::2]
    wanted = [_run(exact, example) for example in measuring]
    convolutions = _convolutions(simple)
    count = sum(node.op_type == "Conv" for node in simple.graph.node)
    found, cost = None, None
    for first, last in _IN_FLOAT:
        chosen = convolutions[first : len(convolutions) - last]
        if not chosen:
            break
        found = _quantised(simple, chosen, ranging)
        session = onnx_graph.session(found.SerializeToString())
        cost = _cost(session, measuring, wanted, held_out, (len(chosen), count))
        if cost.is_small:
            break
    if found is None or cost is None:
        raise UsageError(
            "--calibration: the model has too few convolutions for int8, as the first and the "
            "last stay in float32; use float16"
        )
    cost = dataclasses.replace(cost, speedup=_speedup(proto, found, calibration[0]))
    props = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(found, props | {"int8": json.dumps(dataclasses.asdict(cost))})
    return found, cost


def _convolutions(proto: "onnx.ModelProto") -> list[str]:
    """Returns the names of the convolutions from whose pixels those of the result come.

    They are in the order of computation. Those whose output only tells something about the
    whole image are not among them.
    """
    made_by = {name: node for node in proto.graph.node for name in node.output}
    open_names, reached = [output.name for output in proto.graph.output], set()
    while open_names:
        node = made_by.get(open_names.pop())
        if node is None or node.name in reached or node.op_type in _GLOBAL:
            continue
        reached.add(node.name)
        open_names.extend(node.input)
    return [
        node.name
        for node in proto.graph.node
        if node.op_type == "Conv" and node.name in reached
    ]


def _quantised(
    proto: "onnx.ModelProto", chosen: Sequence[str], calibration: Sequence[Example]
) -> "onnx.ModelProto":
    """Quantises the convolutions with given names, and the Relu after each."""
    import onnx  # noqa: PLC0415
    from onnxruntime import quantization  # noqa: PLC0415

    outputs = {name for node in proto.graph.node if node.name in chosen for name in node.output}
    relus = [
        node.name
        for node in proto.graph.node
        if node.op_type == "Relu" and outputs.issuperset(node.input)
    ]
    taken = {one.name for one in proto.graph.input}

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._rest: Iterator[Example] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            example = next(self._rest, None)
            if example is None:
                return None
            named = {"degraded": example.degraded, "context": example.context}
            return {name: named[name] for name in taken}

    with tempfile.TemporaryDirectory() as folder, onnx_graph.quiet():
        source, target = (pathlib.Path(folder) / name for name in ("exact.onnx", "int8.onnx"))
        onnx.save(proto, source)
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu"],
            nodes_to_quantize=[*chosen, *relus],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(target)


def _run(session: "onnxruntime.InferenceSession", example: Example) -> np.ndarray:
    return np.clip(session.run(["restored"], example.inputs(session))[0], 0, 1)


def _psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Returns the PSNR of an image in [0, 1], dB; 99 at most."""
    error = float(np.mean(np.square(image.astype(np.float64) - truth)))
    return min(99.0, -10 * math.log10(max(error, 1e-12)))


def _cost(
    session: "onnxruntime.InferenceSession",
    calibration: Sequence[Example],
    wanted: Sequence[np.ndarray],
    held_out: bool,
    counts: tuple[int, int],
) -> Cost:
    """Measures the loss, not yet the time."""
    closeness, exact, lost = [], [], []
    for example, other in zip(calibration, wanted, strict=True):
        found = _run(session, example)
        closeness.append(_psnr(found, other))
        if example.clean is not None:
            exact.append(_psnr(other, example.clean))
            lost.append(exact[-1] - _psnr(found, example.clean))
    return Cost(
        photographs=len(wanted),
        held_out=held_out,
        closeness=float(np.mean(closeness)),
        psnr=float(np.mean(exact)) if exact else None,
        loss=float(np.mean(lost)) if lost else None,
        speedup=1.0,
        quantised=counts[0],
        convolutions=counts[1],
    )


def _speedup(exact: "onnx.ModelProto", fast: "onnx.ModelProto", example: Example) -> float:
    """Returns the ratio of the shortest times over alternating runs.

    These are times of one thread on a core, which other programs do not disturb.
    """
    sessions = [onnx_graph.session(one.SerializeToString(), threads=1) for one in (exact, fast)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for session, found in zip(sessions, times, strict=True):
            begin = time.thread_time()
            _run(session, example)
            found.append(time.thread_time() - begin)
    return min(times[0]) / min(times[1])
