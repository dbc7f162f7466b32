"""Makes pairs of rendered images on demand, for training on native crops.

They need neither TensorFlow nor data files, and have no licence restrictions.
"""

import concurrent.futures
import dataclasses
import functools
import pathlib

import numpy as np

from benchmarks import compact_pairs
from data.rendered import sample
from restore_jax.degradation import definition
from restore_jax.train.on_device import pairs_file


def make_pairs(preset: str, clean_share: float, side: int, count: int) -> pairs_file.Pairs:
    """Renders the images of the data `sample` and splits them.

    Args:
        preset: preset of the degradation law.
        clean_share: fraction of the images that are not degraded.
        side: side length of the images in px.
        count: images per defect type, and per category without defects; a tenth, but at least
            one, is held out for validation.
    """
    held_out = max(1, count // 10)
    listed = sample.listing(count)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        render = functools.partial(_render, side=side)
        images = list(pool.map(render, listed))
    fields = {"preset": preset, "clean_share": clean_share}
    law = definition.law_from_config(fields)
    splits = {}
    for name in ("train", "val"):
        chosen = [
            (entry, image)
            for entry, image in zip(listed, images, strict=True)
            if (entry[2] < held_out) == (name == "val")
        ]
        arrays = {
            "clean": np.stack([image for _, (image, _) in chosen]),
            "mask": np.stack([mask for _, (_, mask) in chosen]),
            "has_mask": np.ones(len(chosen), np.uint8),
            "native": np.full((len(chosen), 2), side, np.int32),
        }
        ids = [f"{category}/{kind}/{index:03d}" for (category, kind, index), _ in chosen]
        categories, kinds = ([entry[place] for entry, _ in chosen] for place in (0, 1))
        splits[name] = pairs_file.Split(ids, categories, kinds, arrays)
    splits["val"] = compact_pairs.cropped(splits["val"], dataclasses.asdict(law))
    return pairs_file.Pairs(
        path=pathlib.Path("rendered"),
        settings={"config.data.image_size": 0},
        images="",
        law=dataclasses.asdict(law),
        symmetries=definition.symmetries(law),
        draws=0,
        splits=splits,
    )


def _render(entry: tuple[str, str, int], side: int) -> tuple[np.ndarray, np.ndarray]:
    return sample.render(*entry, side)
