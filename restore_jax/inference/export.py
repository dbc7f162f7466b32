"""Exports models for other programs: as ONNX, and as StableHLO for a process that has only JAX.

An exported model takes `degraded` float32 [B, H, W, 3] in [0, 1] and returns `restored` of the
same shape, not clipped; the parameters are included. Models that accept a mask are exported
without one. Every export is compared with the model itself before it is written.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import export as jax_export
from jax.extend.core import jaxpr_as_fun
from ml_collections import ConfigDict

from restore_jax import files, models
from restore_jax.checkpoints import trust_file, weights_file
from restore_jax.config import workdir
from restore_jax.errors import RunError, UsageError
from restore_jax.inference.deploy import onnx_graph, quantisation
from restore_jax.models import portable
from restore_jax.trust.network import Trust

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4
"""Largest allowed difference of an export from the model.

Relative to the range [0, 1], or to the largest absolute value of an image that exceeds it.
"""

STABLEHLO_FILES = ("restorer.stablehlo", "restorer.json")

# The sides of an image have to be a multiple of 2^(number of poolings).
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_ANY_SIZE = ("B", "H", "W", 3)
_ANY_CONTEXT = ("B", "P", "Q", 3)
# Default size of a model that can only be exported at a fixed size.
_FIXED_SIZE = (256, 256)
# Batch, height and width of the images that an export for any size is tested on.
_TRIALS = ((1, 32, 48), (2, 61, 83))

# Batch, height and width of the whole photographs that they are said to be parts of.
_TRIALS_CONTEXT = ((1, 64, 64), (2, 70, 50))

Restore = Callable[..., jax.Array]
# Of functions of `degraded`, and possibly `context`, with their shapes.
_Convert = Callable[[Restore, Sequence[jax.ShapeDtypeStruct]], tuple[Any, Restore]]


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        path: the file, or the folder.
        shape: shape of the input and the output; a letter for a dimension of any size.
        largest_difference: largest difference from the model, over the test images; of ONNX,
            before the precision is reduced.
        report: what was done to the precision, and what it costs; "" if it was kept.
    """

    path: pathlib.Path
    shape: tuple[int | str, ...]
    largest_difference: float
    report: str = ""

    def __str__(self) -> str:
        """Returns a line for a terminal."""
        shape = ", ".join(map(str, self.shape))
        must = self.shape[0] == "B" and self.shape != _ANY_SIZE
        fixed = "; this model needs a fixed size, which --size=HxW sets" if must else ""
        return (
            f"{self.path}: degraded [{shape}] → restored [{shape}]{fixed}; differs from the "
            f"model by at most {self.largest_difference:.1e}"
            + (f"\n{self.report}" if self.report else "")
        )


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A model as ONNX, computing in float32, before it is stored.

    Attributes:
        proto: the graph, with the metadata.
        shape: as of `Exported`.
        largest_difference: as of `Exported`.
    """

    proto: "onnx.ModelProto"
    shape: tuple[int | str, ...]
    largest_difference: float


def convert_onnx(
    model: nn.Module,
    variables: Mapping[str, Any],
    path: pathlib.Path,
    config: ConfigDict | None = None,
    size: tuple[int, int] | None = None,
    notes: Mapping[str, str] | None = None,
    with_context: bool = False,
) -> Conversion:
    """Converts a model to ONNX (opset 23), for any batch size, height and width if possible.

    Args:
        model: the architecture; it computes in float32, whatever its `dtype`.
        variables: variables for `model.apply`.
        path: what is to be written, for messages.
        config: stored in the metadata under "config", as JSON.
        size: as for `export_onnx`.
        notes: further texts for the metadata, such as "licence".
        with_context: a model that estimates something from the whole photograph takes it as a
            second input, `context` float32 [B, h, w, 3], of any size, so that all tiles of a
            photograph can be told the same. Only without `size`.

    Raises:
        UsageError: if packages of the extra `export` are missing.
        RunError: if the model cannot be converted, or onnxruntime gives different results.
    """
    try:
        with onnx_graph.quiet():
            import jax2onnx  # noqa: PLC0415
            import onnx  # noqa: PLC0415
            import onnxruntime  # noqa: F401, PLC0415
    except ImportError as error:
        raise UsageError(
            f"--output={path}: ONNX needs the package {error.name}; pip install "
            '"restore_jax[export]"'
        ) from error
    model = model.clone(dtype=jnp.float32)
    names = ("degraded", "context")

    def convert(
        restore: Restore, specs: Sequence[jax.ShapeDtypeStruct]
    ) -> tuple["onnx.ModelProto", Restore]:
        # The converter gets the function as traced by JAX: its own tracing of Flax loses the
        # padding of dilated convolutions of unknown size and fails at others.
        traced = jax.make_jaxpr(restore)(*specs)
        with onnx_graph.quiet():
            proto = jax2onnx.to_onnx(
                lambda *inputs: jaxpr_as_fun(traced)(*inputs)[0],
                inputs=list(specs),
                model_name="restorer",
                input_names=list(names[: len(specs)]),
                output_names=["restored"],
            )
        onnx_graph.use_relu(proto)
        if all(isinstance(side, int) for side in specs[0].shape):
            proto = onnx_graph.folded(proto)
        fields = {} if config is None else workdir.as_json(config)
        onnx.helper.set_model_props(proto, {**(notes or {}), "config": json.dumps(fields)})
        session = onnx_graph.session(proto.SerializeToString())

        def run(*inputs: jax.Array) -> np.ndarray:
            return session.run(None, dict(zip(names, inputs, strict=False)))[0]

        return proto, run

    return Conversion(*_converted(model, variables, size, convert, "ONNX", with_context))


def export_onnx(
    model: nn.Module,
    variables: Mapping[str, Any],
    path: pathlib.Path,
    config: ConfigDict | None = None,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    notes: Mapping[str, str] | None = None,
    dtype: str = "float32",
    calibration: Sequence[quantisation.Example] | None = None,
) -> Exported:
    """Exports a model as ONNX (opset 23), for any batch size, height and width if possible.

    Args:
        model: the architecture; it computes in float32, whatever its `dtype`.
        variables: variables for `model.apply`.
        path: path of the file, .onnx.
        config: stored in the file's metadata under "config", as JSON.
        size: height and width of all images, px: the file is then for a single image of that
            size and has no shape arithmetic. None: any size, or 256×256 for a model that needs
            a fixed size.
        overwrite: whether an existing file may be replaced.
        notes: further texts for the metadata, such as "licence".
        dtype: "float32"; "float16" to store the weights in half the space; "int8" to compute
            most convolutions with 8 bits. Input and output are float32 in all of them.
        calibration: the photographs for "int8".

    Returns:
        The exported model.

    Raises:
        UsageError: if the file exists, or packages of the extra `export` are missing.
        RunError: if the model cannot be converted, or onnxruntime gives different results.
    """
    _check_new([path], overwrite)
    found = convert_onnx(model, variables, path, config, size, notes)
    proto, report = found.proto, ""
    if dtype == "float16":
        onnx_graph.halve_weights(proto)
        report = "weights in float16"
    elif dtype == "int8":
        assert calibration is not None
        proto, cost = quantisation.quantised(proto, calibration)
        report = str(cost)
    write(path, proto.SerializeToString())
    return Exported(path, found.shape, found.largest_difference, report)


def export_stablehlo(
    model: nn.Module,
    variables: Mapping[str, Any],
    folder: pathlib.Path,
    config: ConfigDict | None = None,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    notes: Mapping[str, str] | None = None,
) -> Exported:
    """Exports a model as StableHLO by `jax.export`, for CPU, CUDA and TPU.

    Args:
        model: the architecture; it computes in float32, whatever its `dtype`.
        variables: variables for `model.apply`.
        folder: folder for restorer.stablehlo, to be read by `jax.export.deserialize`, and
            restorer.json, which describes its input and output and holds the configuration.
        config: stored in restorer.json.
        size: height and width of all images, px: the file is then for a single image of that
            size and has no shape arithmetic. None: any size, or 256×256 for a model that needs
            a fixed size.
        overwrite: whether existing files may be replaced.
        notes: further texts for restorer.json, such as "licence".

    Returns:
        The exported model.

    Raises:
        UsageError: if a file exists.
        RunError: if the model cannot be exported, or the export gives different results.
    """
    paths = [folder / name for name in STABLEHLO_FILES]
    _check_new(paths, overwrite)
    model = model.clone(dtype=jnp.float32)

    def convert(
        restore: Restore, specs: Sequence[jax.ShapeDtypeStruct]
    ) -> tuple[bytes, Restore]:
        exported = jax_export.export(jax.jit(restore), platforms=("cpu", "cuda", "tpu"))(*specs)
        content = bytes(exported.serialize())
        return content, jax.jit(jax_export.deserialize(bytearray(content)).call)

    content, shape, difference = _converted(model, variables, size, convert, "StableHLO")
    array = {"shape": shape, "dtype": "float32", "layout": "BHWC, RGB"}
    description = {
        **(notes or {}),
        "input": {"name": "degraded", **array, "range": [0, 1]},
        "output": {"name": "restored", **array, "range": "near [0, 1], not clipped"},
        "largest_difference": difference,
        "jax": jax.__version__,
        "config": None if config is None else workdir.as_json(config),
    }
    write(paths[0], content)
    write(paths[1], (json.dumps(description, indent=2) + "\n").encode())
    return Exported(folder, shape, difference)


@dataclasses.dataclass(frozen=True)
class ExportedWeights:
    """An exported weights file.

    Attributes:
        path: the file.
        size: its size, in bytes.
        dtype: dtype in which the parameters are stored.
        licence: licence in the file's metadata; "" if there is none.
        sha256: digest of the file.
        largest_difference: largest difference of a test image restored with these weights from
            one restored with the original ones.
    """

    path: pathlib.Path
    size: int
    dtype: str
    licence: str
    sha256: str
    largest_difference: float

    def __str__(self) -> str:
        """Returns lines for a terminal."""
        return (
            f"{self.path}: {self.size / 1e6:.2f} MB, parameters as {self.dtype}; differs from "
            f"the model by at most {self.largest_difference:.1e}\n"
            f"licence  {self.licence or 'none given'}\nsha256   {self.sha256}"
        )


def export_weights(
    model: nn.Module,
    variables: Mapping[str, Any],
    path: pathlib.Path,
    config: ConfigDict,
    dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    trust: Trust | None = None,
) -> ExportedWeights:
    """Exports a model's weights and configuration, see `weights_file.save_weights`.

    Args:
        model: the architecture.
        variables: variables for `model.apply`.
        path: path of the file, .safetensors.
        config: the configuration.
        dtype: as for `save_weights`.
        metadata: as for `save_weights`.
        overwrite: whether an existing file may be replaced.
        trust: the model's trust map, to be kept in the file.

    Returns:
        The exported file, as read back and compared with the model.

    Raises:
        UsageError: as `save_weights`.
    """
    _check_new([path], overwrite)
    weights_file.save_weights(path, variables, config, overwrite, dtype, metadata)
    if trust is not None:
        trust_file.add(path, trust, path)
    module, stored, _ = weights_file.read_weights(path)
    content = path.read_bytes()
    return ExportedWeights(
        path=path,
        size=len(content),
        dtype=dtype,
        licence=weights_file.read_notes(path).get("licence", ""),
        sha256=hashlib.sha256(content).hexdigest(),
        largest_difference=_largest_difference(
            model, variables, functools.partial(jax.jit(module.apply), stored), _TRIALS[:1]
        ),
    )


def side_multiple(model: nn.Module, variables: Mapping[str, Any]) -> int | None:
    """Finds the number that a model pads the sides of images to a multiple of.

    Args:
        model: the architecture.
        variables: variables for `model.apply`.

    Returns:
        The smallest power of two such that JAX can trace the model with symbolic sides that are
        multiples of it; None if there is none.
    """
    for multiple in _MULTIPLES:
        shape = jax_export.symbolic_shape(f"B, {multiple}*H, {multiple}*W, 3")
        try:
            jax.eval_shape(
                lambda x: model.apply(variables, x), jax.ShapeDtypeStruct(shape, jnp.float32)
            )
        # Raised by a comparison of symbolic sizes, directly or within `jnp.pad`.
        except (jax.errors.InconclusiveDimensionOperation, ValueError):
            continue
        return multiple
    return None


def _reflection_matrix(size: int, full: int) -> jax.Array:
    """Returns the matrix of zeros and ones [full, size] that pads an axis by reflection."""
    position = jnp.arange(full)
    # The distance to the nearest multiple of the period 2·(size − 1).
    period = jnp.maximum(2 * size - 2, 1)
    position -= period * jax.lax.div(position, period)
    position = jnp.minimum(position, period - position)
    return (position[:, None] == jnp.arange(size)[None, :]).astype(jnp.float32)


def _at_any_size(model: nn.Module, variables: Mapping[str, Any], multiple: int) -> Restore:
    """Returns a function that pads, restores and crops images of symbolic size.

    `jnp.pad` and indexing need known sizes or are not supported by the converter to ONNX;
    products with matrices of zeros and ones and `jax.lax.slice` work.
    """

    def restore(degraded: jax.Array, context: jax.Array | None = None) -> jax.Array:
        # By default, the context is the whole image without the padding.
        shown = degraded if context is None else context
        whole = {"context": shown} if models.takes_context(model) else {}
        if multiple == 1:
            return model.apply(variables, degraded, **whole)
        height, width = degraded.shape[1:3]
        # Rounded up without dividing a negative number, which ONNX rounds towards zero.
        rows, columns = (
            _reflection_matrix(side, (side + multiple - 1) // multiple * multiple)
            for side in (height, width)
        )
        x = jnp.einsum("oh,bhwc->bowc", rows, degraded, precision="highest")
        x = jnp.einsum("ow,bhwc->bhoc", columns, x, precision="highest")
        restored = model.apply(variables, x, **whole)
        return jax.lax.slice(restored, (0, 0, 0, 0), degraded.shape)

    return restore


def _converted(
    model: nn.Module,
    variables: Mapping[str, Any],
    size: tuple[int, int] | None,
    convert: _Convert,
    kind: str,
    with_context: bool = False,
) -> tuple[Any, tuple[int | str, ...], float]:
    """Converts a model for a given size, or else for any size if possible, and tests it.

    Args:
        model: the architecture.
        variables: variables for `model.apply`.
        size: height and width; None: any, or 256×256 if that fails.
        convert: converts a function for inputs of given shapes; returns the result and a
            function that runs it.
        kind: name of the format, for messages.
        with_context: as for `convert_onnx`.

    Returns:
        The result, the shape of its input, and the largest difference.

    Raises:
        RunError: if no conversion gives the results of the model.
    """
    sides = size or _FIXED_SIZE
    # With a given size, the batch is fixed too: a symbolic one would need shape arithmetic.
    fixed = (1 if size else _ANY_SIZE[0], *sides, 3)
    attempts: list[tuple[Restore, tuple[int | str, ...], Sequence[tuple[int, ...]]]] = [
        (lambda x: model.apply(variables, x), fixed, [(1 if size else 2, *sides)])
    ]
    multiple = None if size else side_multiple(model, variables)
    if multiple is not None:
        attempts.insert(0, (_at_any_size(model, variables, multiple), _ANY_SIZE, _TRIALS))
    problem = ""
    for restore, shape, trials in attempts:
        scope = jax_export.SymbolicScope()
        shapes: list[tuple[int | str, ...]] = [shape]
        contexts: Sequence[tuple[int, ...]] = ()
        if shape == _ANY_SIZE and with_context and models.takes_context(model):
            shapes.append(_ANY_CONTEXT)
            contexts = _TRIALS_CONTEXT
        specs = [
            jax.ShapeDtypeStruct(
                jax_export.symbolic_shape(", ".join(map(str, sides)), scope=scope), jnp.float32
            )
            for sides in shapes
        ]
        try:
            with portable.tracing():
                content, run = convert(restore, specs)
            difference = _largest_difference(model, variables, run, trials, contexts)
        # Converters raise exceptions of any type; a fixed size, tried next, is easier for them.
        except Exception as error:
            problem = next(iter(str(error).splitlines()), type(error).__name__)
            continue
        if difference <= TOLERANCE:
            return content, shape, difference
        problem = f"its results differ by {difference:.1e}, more than {TOLERANCE:.0e}"
    raise RunError(f"{kind}: {type(model).__name__} cannot be exported ({problem[:200]})")


def _largest_difference(
    model: nn.Module,
    variables: Mapping[str, Any],
    run: Restore,
    trials: Sequence[tuple[int, ...]],
    contexts: Sequence[tuple[int, ...]] = (),
) -> float:
    """Returns the largest difference of `run` from the model on random images.

    Args:
        model: the architecture.
        variables: variables for `model.apply`.
        run: the function to compare, of images and their contexts, if any.
        trials: batch, height and width of the images.
        contexts: the same of their contexts; empty for none.
    """
    rng = np.random.default_rng(0)
    expected_of = jax.jit(model.apply)
    largest = 0.0
    with jax.default_matmul_precision("float32"):
        for number, shape in enumerate(trials):
            degraded = rng.random((*shape, 3), np.float32)
            shown = [rng.random((*sides, 3), np.float32) for sides in contexts[number:][:1]]
            context = {"context": shown[0]} if shown else {}
            expected = np.asarray(expected_of(variables, degraded, **context))
            found = np.asarray(run(degraded, *shown))
            if found.shape != expected.shape:
                raise ValueError(f"gives {found.shape} where the model gives {expected.shape}")
            scale = max(1.0, float(np.abs(expected).max()))
            difference = float(np.abs(found - expected).max()) / scale
            # NaN compares false, so that `max` could drop it.
            largest = max(largest, difference if np.isfinite(difference) else np.inf)
    return largest


def _check_new(paths: Sequence[pathlib.Path], overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise UsageError(f"--output={path}: exists; use another name, or give --overwrite")


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically.

    Raises:
        UsageError: if it cannot be written.
    """
    try:
        with files.replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UsageError(f"--output={path}: cannot be written ({error.strerror})") from error
