"""One network for photographs of any camera, which leaves good ones unchanged; the default.

    python launch.py --config=configs/general.py:sample

trains at native size on crops of rendered images with the `camera` degradation: weak to strong
blur of any kind and noise, also that of monochrome cameras and of interpolated colours, some
stored as JPEG, and a quarter of the images not degraded. Colours are preserved (see
restore_jax/degradation/definition.py): it is a gain U-Net without the gain, trained on surfaces
of any colour and, shrunk at random, of any fineness.
"""

from ml_collections import ConfigDict

from configs import gain_unet
from restore_jax import batches


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = gain_unet.get_config(data)
    config.name = "general"
    config.model.gain = False
    config.loss.ssim = 0.0
    config.loss.psnr = 0.005  # weights good photographs as much as badly degraded ones
    config.train.epochs = 4
    config.train.batch_size = 8
    config.eval.every_epochs = 2
    config.eval.batch_size = 2
    if data in ("mvtec_ad", "inspection", "sample"):  # the others have no such split
        config.data.split = "all"
    config.data.image_size = 0
    config.data.crop_size = 192
    config.data.crops_per_image = 8
    config.data.augment = "all8"
    config.data.recolour = True
    if data not in batches.DEGRADED_FILES:
        config.data.shrink = (1.0, 2.5)
    config.data.degradation.preset = "camera"
    config.data.degradation.clean_share = 0.25
    if data == "sample":
        config.data.sample_size = 512
        config.data.sample_count = 12
    elif data == "shots":  # there are few parts
        config.train.epochs = 100
        config.eval.every_epochs = 10
    return config
