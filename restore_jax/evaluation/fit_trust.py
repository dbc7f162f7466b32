"""Trains the error bar of a restorer on its own data, and calibrates it on the rest."""

import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import batches, models, progress
from restore_jax.checkpoints import trust_file
from restore_jax.errors import UsageError
from restore_jax.evaluation import per_image, trained
from restore_jax.metrics import coverage
from restore_jax.parallel import device_mesh, processes
from restore_jax.trust import conformal
from restore_jax.trust.network import ErrorBar, Trust

PIXELS = 8_000_000
"""Pixels of the training images: 122 images of 256×256."""

# Updates of the error bar, several for each batch: restoring it takes most of the time.
_UPDATES = 240
_LEARNING_RATE = 3e-3
# Added to errors and half-widths before their logarithm: a quarter of a grey level.
_FLOOR = 0.25 / 255
# Pixels of each validation image that are kept for the calibration, at most.
_PIXELS = 2**16


class Measured(NamedTuple):
    """Pixels of a validation image, [N] each.

    Attributes:
        category, id: of the image.
        half_width: as predicted, before calibration.
        error: as `coverage.errors`.
        is_defect: whether the pixel is known to belong to a defect.
    """

    category: str
    id: str
    half_width: np.ndarray
    error: np.ndarray
    is_defect: np.ndarray


def fit_trust(
    source: trained.Trained,
    make_data: Callable[[ConfigDict], batches.Data],
    output: pathlib.Path | None = None,
    overwrite: bool = False,
    pixels: int = PIXELS,
) -> str:
    """Trains, calibrates and checks the trust map of a model, and writes it.

    The error bar is trained on the training images, with the restorer as it is, and calibrated
    on the validation images. For the check, these are divided in halves, and each half is
    measured with intervals that were calibrated on the other.

    Args:
        source: the model, and the data to train and calibrate on.
        make_data: creates the data that a configuration describes.
        output: for a weights file or a shipped model, the weights file to write, with
            everything that the given one holds; None for a workdir, which gets the file
            `trust.safetensors`.
        overwrite: whether `output` may replace a file.
        pixels: how many pixels of training images to restore.

    Returns:
        What was measured, in lines.

    Raises:
        UsageError: for an output that does not fit or exists, a model that cannot be read, or
            too few validation images.
    """
    _check_output(source, output, overwrite)
    config = source.data_config
    mesh = device_mesh.make_mesh(
        device_mesh.fitting_devices(config.train.batch_size, config.eval.batch_size)
    )
    model, variables, _ = trained.read(source, mesh)
    data = make_data(config)
    if data.counts.get("val", 0) < 2:
        raise UsageError(
            f"config.data: {data.name} has no two validation images to calibrate on"
        )
    bar = ErrorBar()
    params, images = _train(bar, model, variables, mesh, data, pixels)
    initial = bar.init(jax.random.key(0), *_ONE_BLOCK)["calibration"]
    measured = _measure(
        bar, {"params": params, "calibration": initial}, model, variables, mesh, data
    )
    first, second = halves(measured)
    try:
        checked = [
            (part, conformal.calibrate(*_pooled(other)))
            for part, other in ((first, second), (second, first))
        ]
        calibration = conformal.calibrate(*_pooled(measured))
    except ValueError as error:
        raise UsageError(f"config.data: {error}; take more or larger images") from error
    notes = {
        "width": bar.width,
        "data": data.name,
        "images": images,
        "calibrated_on": len(measured),
        **check(checked),
    }
    trust = Trust(bar, jax.device_get({"params": params, "calibration": calibration}), notes)
    if source.file is None:
        path = trust_file.write_beside(source.home, trust, jax.device_get(variables))
    else:
        assert output is not None  # checked above
        path = trust_file.add(source.file, trust, output)
    return format_notes(notes, path)


def format_notes(notes: Mapping[str, Any], path: pathlib.Path) -> str:
    """Formats what the check of a trust map gave, for a terminal."""
    inside = notes["defect_coverage"]
    halves_ = " and ".join(f"{share:.1%}" for share in notes["halves"])
    return "\n".join(
        (
            f"90 % intervals, calibrated on {notes['calibrated_on']} images of "
            f"{notes['data']}; checked on each half of them, calibrated on the other:",
            f"  pixels within their interval  {notes['coverage']:.1%} ({halves_})",
            "  those of defects              "
            + ("no defect is known" if inside is None else f"{inside:.1%}"),
            f"  median half-width             {255 * notes['half_width']:.1f} grey levels",
            f"trust map: {path}",
        )
    )


def halves(measured: Sequence[Measured]) -> tuple[list[Measured], list[Measured]]:
    """Divides images in two, alternately within each category."""
    ordered = sorted(measured, key=lambda image: (image.category, image.id))
    return ordered[::2], ordered[1::2]


def check(
    parts: Sequence[tuple[Sequence[Measured], Mapping[str, np.ndarray]]],
) -> dict[str, Any]:
    """Measures calibrated intervals on images that they were not calibrated on.

    Args:
        parts: images, each with a calibration that has not seen them.

    Returns:
        "coverage", the share of all pixels within their interval, and "halves", that of each
        part; "defect_coverage", that of the pixels of defects, None without any; and
        "half_width", the median, where 1 is white.
    """
    covered, half_widths, is_defect = [], [], []
    for images, calibration in parts:
        predicted, error = _pooled(images)
        logs = np.log(predicted)
        factors = np.interp(logs, calibration["levels"], calibration["factors"])
        half_widths.append(np.exp(logs + factors))
        covered.append(error <= half_widths[-1])
        is_defect += [image.is_defect for image in images]
    all_covered, known = np.concatenate(covered), np.concatenate(is_defect)
    return {
        "coverage": float(all_covered.mean()),
        "halves": [float(part.mean()) for part in covered],
        "defect_coverage": float(all_covered[known].mean()) if known.any() else None,
        "half_width": float(np.median(np.concatenate(half_widths))),
    }


_ONE_BLOCK = (np.zeros((1, 8, 8, 3), np.float32),) * 2


def _check_output(
    source: trained.Trained, output: pathlib.Path | None, overwrite: bool
) -> None:
    if source.file is None:
        if output is not None:
            raise UsageError(
                f"--output={output}: the trust map of a run is saved in its workdir; leave it "
                "out"
            )
        return
    if output is None or output.suffix != ".safetensors":
        raise UsageError(
            f"--output: name the file to write {source.given} with its trust map to, ending in "
            ".safetensors"
        )
    if output.exists() and not overwrite:
        raise UsageError(f"--output={output}: exists; take another name, or give --overwrite")


def _pooled(measured: Sequence[Measured]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.concatenate([image.half_width for image in measured]),
        np.concatenate([image.error for image in measured]),
    )


def pinball(errors: jax.Array, half_width: jax.Array) -> jax.Array:
    """Returns the loss whose minimum is the 90 % quantile of each pixel's error.

    Of the logarithms, whose quantile is the logarithm of the quantile: otherwise the few worst
    photographs would decide everything.

    Args:
        errors: [B, H, W, 1].
        half_width: the prediction, likewise.

    Returns:
        The mean, a scalar.
    """
    excess = jnp.log(errors + _FLOOR) - jnp.log(half_width + _FLOOR)
    share = conformal.COVERAGE
    return jnp.mean(jnp.maximum(share * excess, (share - 1.0) * excess))


def _train(
    bar: ErrorBar,
    model: nn.Module,
    variables: Mapping[str, Any],
    mesh: Mesh,
    data: batches.Data,
    pixels: int,
) -> tuple[dict[str, Any], int]:
    """Trains the error bar of a restorer that stays as it is.

    Returns:
        Its parameters, and the number of images that it was trained on.
    """
    drawn = data.train_batches(0)
    first = next(drawn)
    batch_size, height, width = first["degraded"].shape[:3]
    steps = -(-pixels // (batch_size * height * width))
    per_batch = -(-_UPDATES // steps)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, per_batch * steps))
    begin = bar.init(jax.random.key(0), *_ONE_BLOCK)
    calibration = begin["calibration"]

    @jax.jit
    def update(
        params: Any, moments: Any, variables: Any, batch: Mapping[str, jax.Array]
    ) -> tuple[Any, Any]:
        context = models.context_of(model, batch)
        restored = model.apply(variables, batch["degraded"], **context)

        def loss(params: Any) -> jax.Array:
            half_width = bar.apply(
                {"params": params, "calibration": calibration}, batch["degraded"], restored
            )
            error = jnp.abs(jnp.clip(restored, 0.0, 1.0) - batch["clean"])
            return pinball(jnp.max(error, axis=-1, keepdims=True), half_width)

        def descend(_: jax.Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
            params, moments = state
            change, moments = optimizer.update(jax.grad(loss)(params), moments)
            return optax.apply_updates(params, change), moments

        return jax.lax.fori_loop(0, per_batch, descend, (params, moments))

    params = processes.replicate(begin["params"], mesh)
    moments = processes.replicate(optimizer.init(begin["params"]), mesh)
    with progress.bar(total=steps * batch_size, title="error bar") as shown:
        for batch in itertools.islice(itertools.chain([first], drawn), steps):
            arrays = device_mesh.to_devices(batch, mesh)
            # Waited for: on a CPU, steps in flight at once block each other's exchange.
            params, moments = jax.block_until_ready(update(params, moments, variables, arrays))
            shown.update(batch_size)
    return params, steps * batch_size


def _measure(
    bar: ErrorBar,
    bar_variables: Mapping[str, Any],
    model: nn.Module,
    variables: Mapping[str, Any],
    mesh: Mesh,
    data: batches.Data,
) -> list[Measured]:
    """Predicts the half-widths of the validation images, and measures the errors there."""
    found: list[Measured] = []
    predict = jax.jit(bar.apply)
    with progress.bar(total=data.counts["val"], title="calibration") as shown:

        def keep(image: per_image.Restored) -> None:
            # Images of one size share the compiled program.
            half_width = predict(bar_variables, image.degraded[None], image.restored[None])
            error = coverage.errors(image.restored, image.clean).ravel()
            chosen = np.arange(error.size)
            if error.size > _PIXELS:
                chosen = np.random.default_rng(0).choice(chosen, _PIXELS, replace=False)
            known = (image.mask > 0.5).ravel() & image.has_mask
            found.append(
                Measured(
                    image.row["category"],
                    image.row["id"],
                    np.asarray(half_width).ravel()[chosen],
                    error[chosen],
                    known[chosen],
                )
            )
            shown.update()

        per_image.evaluate(model, variables, data.eval_batches("val"), mesh, observe=keep)
    return found
