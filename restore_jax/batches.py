"""What the training loop and the evaluation take as data, and its way onto the devices.

A batch is a dict of NumPy arrays:
  degraded, clean: float32 [B, H, W, 3] in [0, 1];
  mask: float32 [B, H, W, 1] in {0, 1}, 1 on the defect, all zeros where it is not known;
  has_mask: bool [B], false where the mask is not known;
  valid: bool [B], false on the rows that fill up a last batch; no figure counts them;
  category, defect_type, id: strings [B], which stay on the host.
Where the images are crops of photographs, there is also
  context: float32 [B, 64, 64, 3] in [0, 1], the thumbnails of the whole degraded photographs.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from restore_jax.errors import UsageError

Batch = Mapping[str, np.ndarray]

GOOD = "good"
"""The defect type of images without a defect."""

ARRAYS = ("degraded", "clean", "mask", "has_mask", "valid")

CONTEXT = "context"
CONTEXT_SIZE = 64
"""Side of the thumbnails in px."""

MIN_SIZE = 11
"""Sides are at least so many px: the SSIM of training and evaluation has a window of that."""

# Each has all that stands before it.
_AUGMENTATIONS = ("none", "flips", "all8")


class Share(NamedTuple):
    """The part of the data that one of several processes reads.

    Attributes:
        index: of the process, from 0.
        count: of the processes; 1: all of the data are its part.
    """

    index: int = 0
    count: int = 1

    def of(self, batch_size: int) -> slice:
        """Returns which rows of a batch are its own."""
        own = batch_size // self.count
        return slice(self.index * own, (self.index + 1) * own)


ALL = Share()


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set, ready to be read.

    Attributes:
        name: as it stands in the results, e.g. "mvtec_ad".
        counts: number of images by split: "train" and "val"; where there are any, "good",
            photographs without defects that are in neither, and "reference", clean photographs
            without defects to fit a detector on, whose degraded image is the clean one.
        train_images: images of one training epoch; each fixed draw of an image counts.
        train_batches: from a step (0 = the start) on, the batches of training without end.
            Every epoch has ceil(train_images / batch size) of them, its last one filled up with
            rows that are not valid. The same step always yields the same batch. Of several
            processes, each gets the rows of its share.
        eval_batches: the batches of a split, once; the images of a batch are of one size. Of
            several processes, each gets images of its own.
        load_fixed: loads the parameters that terms of the loss take and that are not trained,
            by the name of the term (see `losses`); only a training asks for them.
        identity: digests that tell the images of "train" and "val" from others, by what they
            are digests of; {} where nothing tells.
        pairs: the file of pairs that the batches come from, a `pairs_file.Pairs`; None where
            they come from the host's pipeline.
    """

    name: str
    counts: Mapping[str, int]
    train_images: int
    train_batches: Callable[[int], Iterator[Batch]]
    eval_batches: Callable[[str], Iterator[Batch]]
    load_fixed: Callable[[], Mapping[str, Any]] = dict
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pairs: Any = None


def remembering(make_data: Callable[[ConfigDict], Data]) -> Callable[[ConfigDict], Data]:
    """Makes the same data only once: their images stay in memory from one use to the next."""
    made: dict[str, Data] = {}

    def make_once(config: ConfigDict) -> Data:
        fields = config.to_dict()
        key = json.dumps([fields["data"], fields["eval"], fields["seed"]], sort_keys=True)
        if key not in made:
            made[key] = make_data(config)
        return made[key]

    return make_once


def check_augmentation(augment: str, allowed: str) -> None:
    """Checks `config.data.augment`.

    Args:
        augment: "none", "flips" or "all8".
        allowed: the most that the degradation's symmetries allow, one of these as well.

    Raises:
        UsageError: for an unknown one, or one that would show pairs which the law never makes.
    """
    if augment not in _AUGMENTATIONS:
        raise UsageError(
            f"config.data.augment: {augment!r} is not one of {list(_AUGMENTATIONS)}"
        )
    if _AUGMENTATIONS.index(augment) > _AUGMENTATIONS.index(allowed):
        raise UsageError(
            f"config.data.augment: {augment!r} would show pairs that the degradation never "
            f"makes (its blur is directed); take {allowed}"
        )


def mean_of_valid(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of a figure over the valid images, a scalar; 0 where there is none.

    Args:
        values: [B]; what rows of padding hold does not matter, NaN included.
        valid: bool [B].
    """
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of one axis, "data", over the devices (all there are, if None)."""
    devices = jax.devices() if devices is None else devices
    # Some releases of JAX default to explicit axes, others to automatic ones.
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def fitting_devices(*batch_sizes: int) -> list[jax.Device]:
    """Returns the devices that batches of some sizes are divided among.

    All there are, but of the cores of a CPU only as many as divide the batches: how many cores
    a machine has is no reason to refuse a batch.
    """
    devices = jax.devices()
    if devices[0].platform != "cpu" or jax.process_count() > 1:
        return devices
    fitting = [
        count
        for count in range(1, len(devices) + 1)
        if all(size % count == 0 for size in batch_sizes)
    ]
    return devices[: max(fitting)]


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_over(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Checks that every device gets as many images.

    Args:
        batch_size: images of a batch over all devices.
        mesh: the devices.
        field: the config field to name.

    Raises:
        UsageError: with the nearest sizes that divide.
    """
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below, above = batch_size // devices * devices, (batch_size // devices + 1) * devices
        fitting = f"{below} or {above}" if below > 0 else f"{above}"
        raise UsageError(
            f"{field}: {batch_size} images do not divide among {devices} devices"
            f"{_of_processes()}; take {fitting}"
        )


def _of_processes() -> str:
    return f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""


def to_devices(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch's arrays on the devices, the images divided among them.

    Those that are on the devices already stay as they are.
    Of several processes, each puts its own rows on its own devices.
    """
    sharding = split_over(mesh)
    return {
        name: batch[name]
        if isinstance(batch[name], jax.Array)
        else jax.make_array_from_process_local_data(sharding, batch[name])
        for name in (*ARRAYS, *([CONTEXT] if CONTEXT in batch else []))
    }
