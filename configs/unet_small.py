"""The plain U-Net of Mahesh, Malapaka, Garimella and Singh (IIT Madras, 2024).

    python launch.py --config=configs/unet_small.py --config.data.root=DIR

430,339 parameters; reported under 29 dB.

    python launch.py --config=configs/unet_small.py:sample

trains on rendered images at 64×64 with a shorter schedule: ten epochs, about three minutes on
two CPU cores, from 22.94 dB / 0.438 to 26.3 dB / 0.623.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = default.get_config(data)
    config.name = "unet_small"
    config.model.name = "unet_small"
    config.model.widths = (128, 256)  # channels of the two convolutions
    config.loss.charbonnier = 0.0
    config.loss.masked_mse = 1.0
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.train.epochs = 350
    config.train.batch_size = 8  # not reported

    if data == "sample":
        config.train.epochs = 10
        config.train.batch_size = 4
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup_epochs = 0.5
        config.optimizer.schedule = "cosine"
        config.eval.every_epochs = 2
    return config
