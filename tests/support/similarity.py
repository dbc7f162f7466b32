"""The SSIM of scikit-image, computed as this project defines it."""

import numpy as np
from skimage.metrics import structural_similarity


def ssim_map(first, second):
    """SSIM over the valid region, float64 [H-10, W-10, C], of two images in [0, 1]."""
    _, similarity = structural_similarity(
        np.asarray(first, np.float64),
        np.asarray(second, np.float64),
        win_size=11,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1,
        full=True,
    )
    return similarity[5:-5, 5:-5]
