import itertools

import numpy as np
from PIL import Image

from restore_jax.report import plots


def test_the_picture_shows_the_images_side_by_side(tmp_path):
    black = np.zeros((16, 16, 3), np.uint8)
    mask = np.zeros((16, 16, 1), np.float32)
    mask[4:8, 4:8] = 1
    picture = plots.Triplet("a", "scratch", black + 51, black + 102, black + 153, mask, 1, 2)
    plots.draw_triplets([picture, picture], tmp_path / "out" / "triplets.png")
    pixels = np.asarray(Image.open(tmp_path / "out" / "triplets.png"))
    # A panel fills most of its columns; between the panels the sheet is white.
    commonest = [int(np.bincount(column).argmax()) for column in pixels[..., 0].T]
    levels = [level for level, _ in itertools.groupby(commonest)]
    assert levels == [255, 51, 255, 102, 255, 153, 255, 153, 255]
    assert (pixels == plots.OUTLINE).all(-1).sum() > 100


def test_pictures_are_spread_over_the_categories():
    def picture(category, number):
        image = np.zeros((8, 8, 3), np.uint8)
        return plots.Triplet(category, str(number), image, image, image, image[..., :1], 0, 0)

    selection = plots.Selection(3)
    for number in range(5):
        for category in "ab":
            if selection.wants(category):
                selection.add(picture(category, number))
    chosen = [(p.category, p.defect_type) for p in selection.pictures()]
    assert chosen == [("a", "0"), ("a", "1"), ("b", "0")]
