"""Trains the error bar of a restorer on its own data, and calibrates it on the rest."""

import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from restore_jax.metrics import coverage, defects
from restore_jax.parallel import device_mesh, processes
from restore_jax.trust import conformal, network, planted
from restore_jax.trust.network import ErrorBar, Trust

TRAINING_PIXELS = 16_000_000
"""Pixels of the training images: 244 images of 256×256."""

UPDATES = 2000
"""Updates of the error bar, each on `_PATCHES` patches of the restored images."""

ALARMING = 0.05
"""Share of the calibration pixels whose half-width is alarming."""

_PATCHES = 8
_SIDE = 128  # of a patch, px
_LEARNING_RATE = 3e-3
_FOLDS = 4
_TRIALS = 2  # planted defects of each kind per validation image, for the check
# Shares of the patches with a planted defect of each of `planted.KINDS`. Those that were erased
# leave the weakest traces. They cover so little that the quantile remains that of real errors.
_PLANTED = (0.4, 0.2, 0.15)
# Added to errors and half-widths before their logarithm: a quarter of a grey level.
_FLOOR = 0.25 / 255
# Pixels of each validation image that are kept for the calibration, at most.
_KEPT_PER_IMAGE = 2**16


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


class Region(NamedTuple):
    """A defect that was planted in a restored validation image.

    Attributes:
        kind: one of `planted.KINDS`.
        is_flagged: whether it overlaps the `coverage.FLAGGED_SHARE` widest intervals.
        by_chance: whether it overlaps those of the map turned by 180°.
    """

    kind: str
    is_flagged: bool
    by_chance: bool


def fit_trust(
    source: trained.Trained,
    make_data: Callable[[ConfigDict], batches.Data],
    output: pathlib.Path | None = None,
    overwrite: bool = False,
    pixels: int = TRAINING_PIXELS,
    updates: int = UPDATES,
) -> str:
    """Trains, calibrates and checks the trust map of a model, and writes it.

    The error bar is trained on the training images, restored once, with erased and invented
    defects planted in them (see `trust.planted`), and calibrated on the validation images. For
    the check, these are divided in quarters, and each is measured with intervals that were
    calibrated on the others.

    Args:
        source: the model, and the data to train and calibrate on.
        make_data: creates the data that a configuration describes.
        output: for a weights file or a shipped model, the weights file to write, with
            everything that the given one holds; None for a workdir, which gets the file
            `trust.safetensors`.
        overwrite: whether `output` may replace a file.
        pixels: how many pixels of training images to restore, 18 bytes of memory each.
        updates: how many updates to train for.

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
    crops = _restored(model, variables, mesh, data, pixels)
    params = _train(bar, crops, updates)
    initial = bar.init(jax.random.key(0), *_ONE_BLOCK)["calibration"]
    measured, regions = _measure(
        bar, {"params": params, "calibration": initial}, model, variables, mesh, data
    )
    parts = folds(measured)
    try:
        checked = [
            (
                part,
                conformal.calibrate(*_pooled([*itertools.chain(*parts[:i], *parts[i + 1 :])])),
            )
            for i, part in enumerate(parts)
        ]
        calibration = conformal.calibrate(*_pooled(measured))
    except ValueError as error:
        raise UsageError(f"config.data: {error}; take more or larger images") from error
    notes = {
        "version": network.VERSION,
        "width": bar.width,
        "data": data.name,
        "images": len(crops),
        "updates": updates,
        "calibrated_on": len(measured),
        **check(checked),
        "planted": {
            kind: [sum(column) for column in zip(*found, strict=True)]
            for kind in planted.KINDS
            if (found := [(1, *region[1:]) for region in regions if region.kind == kind])
        },
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
    folds_ = ", ".join(f"{share:.1%}" for share in notes["folds"])
    planted_ = [
        f"  planted defects, {kind:<12} {flagged / count:.0%} of {count} flagged "
        f"({by_chance / count:.0%} by chance)"
        for kind, (count, flagged, by_chance) in notes["planted"].items()
    ]
    return "\n".join(
        (
            f"90 % intervals, calibrated on {notes['calibrated_on']} images of "
            f"{notes['data']}; checked on each quarter of them, calibrated on the others:",
            f"  pixels within their interval  {notes['coverage']:.1%} ({folds_})",
            "  those of defects              "
            + ("no defect is known" if inside is None else f"{inside:.1%}"),
            f"  median half-width             {255 * notes['half_width']:.1f} grey levels",
            f"  {ALARMING:.0%} of the pixels have more than {255 * notes['alarm']:.1f}",
            *planted_,
            f"trust map: {path}",
        )
    )


def folds(measured: Sequence[Measured]) -> list[list[Measured]]:
    """Divides images in four parts, or one for each if there are fewer, by turns.

    In the order of their categories, so that each part has some of the larger ones.
    """
    ordered = sorted(measured, key=lambda image: (image.category, image.id))
    count = min(_FOLDS, len(ordered))
    return [ordered[i::count] for i in range(count)]


def check(
    parts: Sequence[tuple[Sequence[Measured], Mapping[str, np.ndarray]]],
) -> dict[str, Any]:
    """Measures calibrated intervals on images that they were not calibrated on.

    Args:
        parts: images, each with a calibration that has not seen them.

    Returns:
        "coverage", the share of all pixels within their interval, and "folds", that of each
        part; "defect_coverage", that of the pixels of defects, None without any; and
        "half_width", the median, and "alarm", what `ALARMING` of the pixels exceed, where 1 is
        white.
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
        "folds": [float(part.mean()) for part in covered],
        "defect_coverage": float(all_covered[known].mean()) if known.any() else None,
        "half_width": float(np.median(np.concatenate(half_widths))),
        "alarm": float(np.quantile(np.concatenate(half_widths), 1.0 - ALARMING)),
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


def _restored(
    model: nn.Module,
    variables: Mapping[str, Any],
    mesh: Mesh,
    data: batches.Data,
    pixels: int,
) -> list[planted.Crop]:
    """Restores training images once, to be kept in memory as float16."""

    @jax.jit
    def restore(variables: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        degraded = models.input_of(batch)
        restored = model.apply(variables, degraded, **models.context_of(model, batch))
        return degraded, jnp.clip(restored, 0.0, 1.0)

    drawn = data.train_batches(0)
    first = next(drawn)
    batch_size, height, width = first["degraded"].shape[:3]
    steps = -(-pixels // (batch_size * height * width))
    crops: list[planted.Crop] = []
    with progress.bar(total=steps * batch_size, title="restored") as shown:
        for batch in itertools.islice(itertools.chain([first], drawn), steps):
            images = (*restore(variables, device_mesh.to_devices(batch, mesh)), batch["clean"])
            halved = (np.asarray(image, np.float16) for image in images)
            crops += [
                planted.Crop(*one)
                for *one, is_valid in zip(*halved, batch["valid"], strict=True)
                if is_valid
            ]
            shown.update(batch_size)
    return crops


def _train(bar: ErrorBar, crops: Sequence[planted.Crop], updates: int) -> dict[str, Any]:
    """Trains the error bar on restored images and returns its parameters."""
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, updates))
    begin = bar.init(jax.random.key(0), *_ONE_BLOCK)
    calibration = begin["calibration"]

    @jax.jit
    def update(params: Any, moments: Any, patches: planted.Crop) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            half_width = bar.apply(
                {"params": params, "calibration": calibration},
                patches.degraded,
                patches.restored,
            )
            error = jnp.abs(patches.restored - patches.clean)
            return pinball(jnp.max(error, axis=-1, keepdims=True), half_width)

        change, moments = optimizer.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, change), moments

    mesh = device_mesh.make_mesh(device_mesh.fitting_devices(_PATCHES))
    params = processes.replicate(begin["params"], mesh)
    moments = processes.replicate(optimizer.init(begin["params"]), mesh)
    random = np.random.default_rng(0)
    side = min(_SIDE, *(length for crop in crops for length in crop.clean.shape[:2]))
    with progress.bar(total=updates * _PATCHES, title="error bar") as shown:
        for _ in range(updates):
            drawn = [patch(crops, side, random) for _ in range(_PATCHES)]
            stacked = planted.Crop(*map(np.stack, zip(*drawn, strict=True)))
            patches = jax.device_put(stacked, device_mesh.split_over(mesh))
            # Waited for: on a CPU, steps in flight at once block each other's exchange.
            params, moments = jax.block_until_ready(update(params, moments, patches))
            shown.update(_PATCHES)
    return params


def patch(
    crops: Sequence[planted.Crop], side: int, random: np.random.Generator
) -> planted.Crop:
    """Draws a square of a restored image, mirrored along either axis or not.

    Args:
        crops: the images, at least `side` px each way.
        side: of the square.
        random: the source of randomness.

    Returns:
        The square in float32; some of them, with a planted defect.
    """
    crop = crops[random.integers(len(crops))]
    top, left = (random.integers(length - side + 1) for length in crop.clean.shape[:2])
    # Not turned by 90°: a law may blur one direction more than the other.
    steps = [slice(None, None, random.choice((-1, 1))) for _ in range(2)]

    def view(image: np.ndarray) -> np.ndarray:
        square = image[top : top + side, left : left + side]
        return square[tuple(steps)].astype(np.float32)

    chosen = planted.Crop(*map(view, crop))
    kind = random.choice((*planted.KINDS, None), p=(*_PLANTED, 1.0 - sum(_PLANTED)))
    return chosen if kind is None else planted.plant(chosen, kind, random)


def _measure(
    bar: ErrorBar,
    bar_variables: Mapping[str, Any],
    model: nn.Module,
    variables: Mapping[str, Any],
    mesh: Mesh,
    data: batches.Data,
) -> tuple[list[Measured], list[Region]]:
    """Predicts the half-widths of the validation images, and measures the errors there.

    Returns:
        Each image's, and what is found of defects that were planted in them.
    """
    found: list[Measured] = []
    regions: list[Region] = []
    random = np.random.default_rng(0)
    apply = jax.jit(bar.apply)  # images of one size share the compiled program

    def predict(degraded: np.ndarray, restored: np.ndarray) -> np.ndarray:
        half_width = apply(bar_variables, degraded[None], restored[None])
        return np.asarray(half_width)[0, ..., 0]

    with progress.bar(total=data.counts["val"], title="calibration") as shown:

        def keep(image: per_image.Restored) -> None:
            half_width = predict(image.seen, image.restored)
            regions.extend(plant_and_find(predict, image, random))
            error = coverage.errors(image.restored, image.clean).ravel()
            chosen = np.arange(error.size)
            if error.size > _KEPT_PER_IMAGE:
                chosen = np.random.default_rng(0).choice(chosen, _KEPT_PER_IMAGE, replace=False)
            known = (image.mask > 0.5).ravel() & image.has_mask
            found.append(
                Measured(
                    image.row["category"],
                    image.row["id"],
                    half_width.ravel()[chosen],
                    error[chosen],
                    known[chosen],
                )
            )
            shown.update()

        per_image.evaluate(model, variables, data.eval_batches("val"), mesh, observe=keep)
    return found, regions


def plant_and_find(
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
    image: per_image.Restored,
    random: np.random.Generator,
) -> Iterator[Region]:
    """Plants defects in a restored image, one at a time, and looks whether they are flagged.

    Args:
        predict: gives the half-widths [H, W] for what the network saw and its restoration.
        image: the image.
        random: the source of randomness.

    Yields:
        The regions that would count as invented by their size and error, see `metrics.defects`.
    """
    whole = planted.Crop(image.seen, image.restored, image.clean)
    for kind in planted.KINDS * _TRIALS:
        part = tuple(
            slice(begin := int(random.integers(max(1, length - _SIDE + 1))), begin + _SIDE)
            for length in image.clean.shape[:2]
        )
        before = planted.Crop(*(one[part] for one in whole))
        after = planted.plant(before, kind, random)
        change = (after.restored - after.clean) - (before.restored - before.clean)
        region = np.zeros(image.clean.shape[:2], bool)
        region[part] = np.abs(change).max(axis=-1) > defects.INVENTED_ABOVE
        if np.count_nonzero(region) < defects.INVENTED_PIXELS:
            continue
        seen, restored = whole.degraded.copy(), whole.restored.copy()
        seen[part], restored[part] = after.degraded, after.restored
        flagged = coverage.flagged(predict(seen, restored))
        yield Region(kind, bool(flagged[region].any()), bool(flagged[::-1, ::-1][region].any()))
