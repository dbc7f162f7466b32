"""The data of a configuration: its fields are checked, its records loaded and made batches.

A source yields *records*: encoded photographs with their masks. The pipeline degrades each
photograph at its native size (unless the record has its own degraded version), resizes the
pair and keeps its 8-bit pixels in memory. Every random draw is stateless, keyed on the seed,
the image's id and the number of the draw, so that a given step of a run always sees the same
batch, also after a restart.
"""

import contextlib
import functools
from collections.abc import Iterator

import tensorflow as tf
from ml_collections import ConfigDict

from data import batching, pairs, process_rows, records, training, vgg16
from data.sources import shot_pairs
from restore_jax import batches
from restore_jax.batches import ALL, Batch, Data, Share
from restore_jax.degradation import definition
from restore_jax.errors import UsageError

# Seed of the draws for evaluation, independent of the run's seed, so that runs with different
# seeds are measured on the same degraded images.
EVAL_SEED = 20_240_613


def make_data(config: ConfigDict, share: Share = ALL) -> Data:
    """Makes the data of a configuration; nothing is decoded yet.

    Args:
        config: the whole configuration; `config.data`, `config.seed` and the batch sizes are
            used.
        share: the part of the data that this process reads: its rows of each global training
            batch, and every `share.count`-th image of an evaluation.

    Returns:
        The data; `restore_jax.batches` documents its batches.

    Raises:
        UsageError: a field is invalid, or the root has no data.
    """
    config, law, sources = load(config)
    settings, train = config.data, sources["train"]
    if settings.crops_per_image > 1 and share.count > 1:
        raise UsageError(
            f"config.data.crops_per_image: {settings.crops_per_image} needs a single process; "
            "use 1 with several processes"
        )
    make_pair = for_training = pairs.pair_maker(settings, law)
    has_shots = "shots" in train.dataset.element_spec
    if has_shots:
        make_pair = pairs.pair_maker(settings, law, averages=True)
    elif pairs.changes_photographs(settings):
        for_training = pairs.pair_maker(settings, law, trains=True)
    training_batches = training.TrainingBatches(config, for_training, train, share)

    @functools.cache
    def eval_pairs(split: str) -> tf.data.Dataset:
        own = process_rows.eval_records(sources[split], share)
        if split == "reference":
            return pairs.clean_pairs(own, settings).map(pairs.as_floats)
        # With fixed draws, evaluating "train" uses exactly the pairs that were trained on.
        seed = config.seed if split == "train" and settings.realisations else EVAL_SEED
        realised = pairs.realise(own, make_pair, seed, draw=0)
        # Cached after the first pass, except at native size, where the images are too large.
        return (realised.cache() if settings.image_size else realised).map(pairs.as_floats)

    def train_batches(step: int) -> Iterator[Batch]:
        if not train.count:
            raise UsageError(
                f"config.data.root={settings.root!r}: holds no images to train on; it can be "
                "evaluated with restore-jax evaluate"
            )
        return training_batches.from_step(step)

    def eval_batches(split: str) -> Iterator[Batch]:
        found = batching.as_numpy(eval_pairs(split))
        return batching.group_by_size(found, config.eval.batch_size // share.count)

    return Data(
        name=settings.name,
        counts={split: source.count for split, source in sources.items()},
        train_images=train.count * max(1, settings.realisations) * settings.crops_per_image,
        train_batches=train_batches,
        eval_batches=eval_batches,
        load_loss_params=functools.partial(vgg16.load_loss_params, config),
        identity=records.identity(sources),
        white=sources["train"].white,
        target=shot_pairs.TARGET if has_shots else "",
    )


def load(config: ConfigDict) -> tuple[ConfigDict, definition.Law, dict[str, records.Records]]:
    """Checks the data fields of a configuration and loads its records.

    Returns:
        The configuration, with `data.realisations` set to 1 if the records have their own
        degraded photographs, and to 0 if they have several; the degradation law; the records
        by split.

    Raises:
        UsageError: as `make_data`.
    """
    # TensorFlow only reads and degrades on the CPU; the GPU's memory is left to JAX.
    with contextlib.suppress(RuntimeError):  # TensorFlow is already in use, as in a notebook
        tf.config.set_visible_devices([], "GPU")
    law = definition.law_from_config(config.data.degradation)
    _check_fields(config.data, law)
    sources = records.load(config.data)
    if "degraded" in sources["train"].dataset.element_spec:
        # There is one degraded version of each photograph, and the law is not applied.
        config = config.copy_and_resolve_references()
        config.data.realisations = 1
    elif "shots" in sources["train"].dataset.element_spec:
        # Two shots are drawn in every epoch, and the law is not applied.
        config = config.copy_and_resolve_references()
        config.data.realisations = 0
    return config, law, sources


def _check_fields(settings: ConfigDict, law: definition.Law) -> None:
    field = "image_size" if settings.image_size else "crop_size"
    if settings[field] < batches.MIN_SIZE:
        raise UsageError(
            f"config.data.{field}: {settings[field]} is too small; SSIM needs "
            f"{batches.MIN_SIZE} px"
        )
    if settings.resize not in ("bilinear", "area"):
        raise UsageError(f"config.data.resize: {settings.resize!r} is not bilinear or area")
    if settings.references < 0:
        raise UsageError(
            f"config.data.references: {settings.references} is negative; 0 switches the "
            "detectability off"
        )
    if settings.crops_per_image < 1 or (settings.crops_per_image > 1 and settings.image_size):
        raise UsageError(
            f"config.data.crops_per_image: {settings.crops_per_image} must be at least 1, and "
            "exactly 1 unless config.data.image_size is 0"
        )
    if settings.realisations < 0:
        raise UsageError(
            f"config.data.realisations: {settings.realisations} is negative; 0 means a new "
            "draw every epoch"
        )
    # Also checked for ready-made pairs: the direction of their blur is known only from the
    # configuration, whose default law allows flips but no rotations.
    definition.check_augmentation(settings.augment, definition.symmetries(law))
