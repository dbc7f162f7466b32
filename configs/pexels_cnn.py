"""The CNN baseline of the Pexels deblurring report, at 128×128.

    python launch.py --config=configs/pexels_cnn.py:pairs --config.data.root=DIR

83,715 parameters; reported 24.84 dB.

    python launch.py --config=configs/pexels_cnn.py:sample

trains on rendered images at 64×64 with a shorter schedule: twenty epochs, about three minutes
on two CPU cores, from 22.94 dB / 0.438 to 24.7 dB / 0.585.
"""

from ml_collections import ConfigDict

from configs import pexels_unet


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = pexels_unet.get_config(data)  # trained like the U-Net
    config.name = "pexels_cnn"
    config.model = ConfigDict()
    config.model.name = "pexels_cnn"
    config.model.widths = (32, 64, 64, 32)  # channels of the convolutions before the last
    if data == "sample":
        config.train.epochs = 20
    return config
