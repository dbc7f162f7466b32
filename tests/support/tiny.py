"""A run small enough to train in tests: 16×16 NumPy images, a few hundred parameters."""

import numpy as np
from ml_collections import ConfigDict

from configs import sca_unet
from restore_jax import batches


def config(**train):
    fields = sca_unet.get_config("sample")
    # Compiles in a third of the time of a network with attention.
    fields.model = ConfigDict({"name": "unet_small", "widths": (2, 4)})
    fields.train.epochs = 2
    fields.train.batch_size = 4
    fields.eval.batch_size = 4
    fields.eval.every_epochs = 1
    fields.eval.pictures = 2
    fields.optimizer.schedule = "constant"
    fields.optimizer.warmup_epochs = 0.0
    fields.train.update(train)
    return fields


def images(count, seed=0, size=16, kind="scratch", section="test"):
    rng = np.random.default_rng(seed)
    clean = rng.uniform(0.2, 0.8, (count, size, size, 3)).astype(np.float32)
    clean = (clean + np.roll(clean, 1, 1) + np.roll(clean, 1, 2)) / 3
    noise = rng.normal(0, 0.1, clean.shape).astype(np.float32)
    mask = np.zeros((count, size, size, 1), np.float32)
    if kind != "good":
        mask[:, 6:10, 5:11] = 1
        clean = np.where(mask > 0, 0.5 * clean, clean)
    names = np.array([f"{'ab'[i % 2]}/{section}/{kind}/{i:03d}" for i in range(count)])
    return {
        "degraded": np.clip(clean + noise, 0, 1),
        "clean": clean,
        "mask": mask,
        "has_mask": np.ones(count, bool),
        "valid": np.ones(count, bool),
        "category": np.array([name[0] for name in names]),
        "defect_type": np.full(count, kind),
        "id": names,
    }


def batch_rows(pairs, rows, size):
    """Returns a batch of rows, padded to `size` by repeating the last one."""
    chosen = np.array([*rows, *[rows[-1]] * (size - len(rows))])
    return {name: value[chosen] for name, value in pairs.items()} | {
        "valid": np.arange(size) < len(rows)
    }


def data(
    settings,
    count=10,
    held_out=6,
    spoil_at=None,
    image_size=16,
    good=0,
    share=batches.ALL,
):
    """Returns data made of NumPy arrays.

    Args:
        settings: the configuration of the run.
        count: number of training images.
        held_out: number of validation images.
        spoil_at: the step, counted from 1, whose degraded images are NaN; None for no step.
        image_size: side of the images in px.
        good: number of defect-free test images, and of reference images.
        share: the share of the rows that this process reads.
    """
    pairs = {
        "train": images(count, size=image_size),
        "val": images(held_out, seed=1, size=image_size),
    }
    if good:
        pairs["good"] = images(good, 2, image_size, "good")
        pairs["reference"] = images(good, 3, image_size, "good", "train")
        pairs["reference"]["degraded"] = pairs["reference"]["clean"]
    size = settings.train.batch_size
    steps = -(-count // size)

    def train_batches(step):
        while True:
            epoch, position = divmod(step, steps)
            order = np.random.default_rng(epoch).permutation(count)
            batch = batch_rows(
                pairs["train"], order[position * size : (position + 1) * size], size
            )
            step += 1
            if step == spoil_at:
                batch["degraded"] = np.full_like(batch["degraded"], np.nan)
            yield {name: value[share.rows(size)] for name, value in batch.items()}

    def eval_batches(split):
        rows = np.arange(len(pairs[split]["id"]))[share.index :: share.count]
        chunk = settings.eval.batch_size // share.count
        for start in range(0, len(rows), chunk):
            yield batch_rows(pairs[split], rows[start : start + chunk], chunk)

    return batches.Data(
        name="tiny",
        counts={split: len(part["id"]) for split, part in pairs.items()},
        train_images=count,
        train_batches=train_batches,
        eval_batches=eval_batches,
    )
