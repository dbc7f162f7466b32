"""The data of a run that keeps its pairs in device memory: reads or makes the pairs file."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from restore_jax import batches, files
from restore_jax.config import schema
from restore_jax.degradation import definition, working_size
from restore_jax.errors import UsageError
from restore_jax.train.on_device import pairs_file, sampler
from restore_jax.train.on_device.pairs_file import Pairs, Split


class Realised(Protocol):
    """Photographs from which pairs can be made, see data/export_pairs.py."""

    images: str
    law: Mapping[str, Any]
    symmetries: str
    draws: int
    white: int
    realise: Callable[[], Mapping[str, Mapping[str, Any]]]


class Source(Protocol):
    """The functions that need TensorFlow, see data/export_pairs.py."""

    load: Callable[[ConfigDict], Realised]
    load_loss_params: Callable[[ConfigDict], Mapping[str, Any]]
    whole: Callable[[ConfigDict], batches.Data]


def make_data(config: ConfigDict, import_source: Callable[[], Source]) -> batches.Data:
    """Makes the data of a configuration from a pairs file.

    The file is `config.data.resident_file`, or one in the user's cache if that is empty; it is
    made if it does not exist. A cached file is remade if it is damaged or the photographs or
    the degradation have changed; a file named by the user is not, and raises an error if it is
    damaged or made with other settings.

    Args:
        config: all fields. With photographs at native size, validation during training uses
            centre crops, and evaluation uses whole photographs if TensorFlow is installed.
        import_source: imports the module that reads photographs; raises ImportError without
            TensorFlow. If the user named a file that exists, called only at native size and to
            load loss parameters.

    Raises:
        UsageError: for an invalid field, data that cannot be stored as pairs, or a file that
            is damaged or made with other settings.
    """
    settings = pairs_file.settings_of(config)
    named = config.data.get("resident_file", "")
    path = pathlib.Path(named).expanduser() if named else _cached(config, settings)
    if named and path.exists():
        pairs = pairs_file.read(path)
        different = pairs_file.difference(pairs.settings, settings)
        given = config.data.get("white", 0)
        if given and pairs.white not in (0, given):
            different = (
                f"config.data.white is {given}, but the file was made with {pairs.white}"
            )
        if different:
            raise UsageError(
                f"config.data.resident_file={named}: {different}; take the file's settings or "
                "another file"
            )
    else:
        try:
            source = import_source()
        except ImportError as error:
            raise UsageError(
                f"config.data.resident_file={named or repr('')}: making {path} needs "
                f"TensorFlow ({error}); copy the file from a machine that has it"
            ) from error
        realised = source.load(config)
        if not realised.draws and config.data.image_size:
            # Refuses a degradation that cannot be drawn on the device, before making the file.
            working_size.from_fields(realised.law, blurred=False)
        pairs = _kept(path, settings, realised)
    data = as_data(pairs, config, lambda: import_source().load_loss_params(config))
    if config.data.image_size:
        return data
    try:
        host = import_source().whole(config)
    except ImportError:
        return data  # evaluates on the centre crops of the file
    return dataclasses.replace(data, counts=host.counts, eval_batches=host.eval_batches)


def _cached(config: ConfigDict, settings: Mapping[str, Any]) -> pathlib.Path:
    """Returns the path of a pairs file in the cache, by its settings and `config.data.root`."""
    given = config.data.cache_dir
    folder = pathlib.Path(given).expanduser() if given else files.cache_folder() / "pairs"
    text = json.dumps([settings, config.data.root], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return folder / f"{config.data.name}-{name}.safetensors"


def _kept(path: pathlib.Path, settings: Mapping[str, Any], realised: Realised) -> Pairs:
    """Reads the pairs of these photographs; makes the file if missing, damaged or outdated."""
    if path.exists():
        try:
            pairs = pairs_file.read(path)
        except UsageError as error:
            print(f"{error}. It is a cached file and is made again now")
        else:
            now = (realised.images, json.loads(json.dumps(realised.law)))
            if (pairs.images, pairs.law) == now and pairs.settings == settings:
                return pairs
            print(f"{path}: made from other photographs or by another law; it is made again")
    splits = {split: pairs_file.as_split(found) for split, found in realised.realise().items()}
    pairs_file.write(
        path,
        splits,
        settings=settings,
        images=realised.images,
        law=realised.law,
        symmetries=realised.symmetries,
        draws=realised.draws,
        white=realised.white,
    )
    print(f"{path}: pairs written; any machine can use a copy as config.data.resident_file")
    return pairs_file.read(path)


def as_data(
    pairs: Pairs, config: ConfigDict, load_loss_params: Callable[[], Mapping[str, Any]] = dict
) -> batches.Data:
    """Returns the data of a pairs file.

    Args:
        pairs: the pairs file.
        config: all fields.
        load_loss_params: as in `batches.Data`; may raise ImportError without TensorFlow.

    Raises:
        UsageError: for flips that the degradation does not allow, or images too small for SSIM.
    """
    definition.check_augmentation(config.data.augment, pairs.symmetries)
    if not schema.undoes_gain(config):
        pairs = pairs_file.without_gain(pairs)
    elif batches.GAIN not in pairs.splits["val"].arrays:
        raise UsageError(
            f"{pairs.path}: holds no gains, which config.data.undo_gain needs; make the file "
            "again"
        )
    train = pairs.splits["train"]
    if train.arrays["clean"].shape[1] < batches.MIN_SIZE:
        raise UsageError(f"{pairs.path}: images too small, SSIM needs {batches.MIN_SIZE} px")

    def load_all_loss_params() -> Mapping[str, Any]:
        if not config.loss.get("perceptual", 0):
            return {}
        try:
            return load_loss_params()
        except ImportError as error:
            raise UsageError(
                f"config.loss.perceptual: reading VGG16's weights needs TensorFlow ({error}); "
                "set config.loss.perceptual=0"
            ) from error

    return batches.Data(
        name=config.data.name,
        counts={name: len(split) for name, split in pairs.splits.items()},
        train_images=sampler.make_plan(pairs, config).rows,
        train_batches=functools.partial(sampler.host_batches, pairs, config),
        eval_batches=lambda split: eval_batches(pairs.splits[split], config.eval.batch_size),
        load_loss_params=load_all_loss_params,
        identity={"pixels": _digest(pairs)},
        white=pairs.white,
        pairs=pairs,
    )


def _digest(pairs: Pairs) -> str:
    """Returns a digest of the training and validation images, the same on every machine.

    Degraded images are left out: the last bit of a blur may differ between machines.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in ("train", "val"):
        split = pairs.splits[name]
        digest.update(json.dumps([name, list(split.ids)]).encode())
        for array in ("clean", "mask", "has_mask"):
            digest.update(np.ascontiguousarray(split.arrays[array]).data.cast("B"))
    return digest.hexdigest()


def eval_batches(split: Split, batch_size: int) -> Iterator[batches.Batch]:
    """Yields the batches of a split as `batches` describes them, in float32."""
    for start in range(0, len(split), batch_size):
        batch = pairs_file.batch_at(split, start, batch_size)
        floats = {
            name: batch[name].astype(np.float32) / np.float32(255)
            for name in ("degraded", "clean", batches.CONTEXT)
            if name in batch
        }
        yield batch | floats | {"mask": batch["mask"].astype(np.float32)}
