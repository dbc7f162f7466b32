"""The CNN baseline of the Pexels deblurring report, at 128×128.

    python launch.py --config=configs/pexels_cnn.py:pairs --config.data.root=DIR

83,715 parameters; reported 24.84 dB.

    python launch.py --config=configs/pexels_cnn.py:sample

trains on rendered images at 64×64 with a shorter schedule: twenty epochs, about three minutes
on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = default.get_config(data)
    config.name = "pexels_cnn"
    config.model.name = "pexels_cnn"
    config.model.widths = (32, 64, 64, 32)  # channels of the convolutions before the last
    config.loss.charbonnier = 0.0
    config.loss.mse = 1.0  # not reported, nor is the rest down to the batch size
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.train.epochs = 100
    config.train.batch_size = 16

    if data == "sample":
        config.train.epochs = 20
        config.train.batch_size = 4
        config.optimizer.warmup_epochs = 0.5
        config.eval.every_epochs = 2
    else:
        config.data.image_size = 128
    return config
