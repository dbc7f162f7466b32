"""Export of the evaluated images in the layout of MVTec AD, for any anomaly detector."""

import os
import pathlib
import shutil

import numpy as np
from PIL import Image

from restore_jax import batches
from restore_jax.errors import UsageError
from restore_jax.evaluation.per_image import Restored
from restore_jax.report import image_panels

VERSIONS = ("clean", "degraded", "restored")


class TreeWriter:
    """Writes three data sets of the same photographs: clean, degraded and restored.

    In all three, `<folder>/<version>/<category>/train/good/NNN.png` are the clean photographs
    without defects, so that one fitted detector serves for all. `test/<defect type>/NNN.png`
    hold the respective version of the test photographs, and
    `ground_truth/<defect type>/NNN_mask.png` their masks, 255 on the defect.

    Detectors need the mask of every defective photograph: one whose mask is not known is
    omitted, and counted in `left_out`. Photographs in train/good are omitted from test.

    Args:
        folder: the output folder; the tree of an earlier evaluation is replaced.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.left_out = 0
        self._references: set[str] = set()
        self._partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)

    def add_reference(self, image_id: str, category: str, clean: np.ndarray) -> None:
        """Adds a clean photograph without defects, float [H, W, 3] in [0, 1], to train/good."""
        self._references.add(image_id)
        first = self._partial / VERSIONS[0] / category / "train" / batches.GOOD
        path = first / f"{_name(image_id, category, batches.GOOD, 'train')}.png"
        _save(path, image_panels.to_uint8(clean))
        for version in VERSIONS[1:]:
            other = self._partial / version / path.relative_to(self._partial / VERSIONS[0])
            other.parent.mkdir(parents=True, exist_ok=True)
            _link(path, other)

    def add_test(self, image: Restored) -> None:
        """Adds the three versions of a test image, and its mask if it has a defect.

        Raises:
            UsageError: if another image of the same category and defect type has its name.
        """
        row = image.row
        if row["id"] in self._references:
            return
        if not image.is_good and not (image.has_mask and image.mask.any()):
            self.left_out += 1
            return
        name = _name(row["id"], row["category"], row["defect_type"], "test")
        defect_type = row["defect_type"] or "defect"
        for version in VERSIONS:
            category = self._partial / version / row["category"]
            path = category / "test" / defect_type / f"{name}.png"
            if path.exists():
                raise UsageError(
                    f"--write_tree: two images of {row['category']}/{defect_type} are called "
                    f"{name}; rename one, or write the tree of another split"
                )
            _save(path, image_panels.to_uint8(getattr(image, version)))
            if not image.is_good:
                mask = (image.mask[..., 0] > 0).astype(np.uint8) * 255
                _save(category / "ground_truth" / defect_type / f"{name}_mask.png", mask)

    def close(self) -> None:
        """Moves the finished tree to its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._partial.is_dir():
            self._partial.rename(self.folder)


def _name(image_id: str, *folders: str) -> str:
    """Returns the name of an image, prefixed with the parts of its id not in `folders`."""
    *path, name = image_id.split("/")
    return "_".join([*(part for part in path if part not in folders), name])


def _save(path: pathlib.Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _link(path: pathlib.Path, other: pathlib.Path) -> None:
    """Creates a hard link to a file, or a copy if the file system has no hard links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copy2(path, other)
