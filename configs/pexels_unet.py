"""The U-Net of the Pexels deblurring report, at 128×128.

    python launch.py --config=configs/pexels_unet.py:pairs --config.data.root=DIR

7,766,051 parameters; reported 30.85 dB / 0.9229. With `--config.model.bottleneck=1024`
31,043,651 parameters; reported 30.90 dB / 0.9261.

    python launch.py --config=configs/pexels_unet.py:sample

trains on rendered images at 64×64 with a shorter schedule: fifteen epochs, about four minutes
on two CPU cores, from 22.94 dB / 0.438 to 23.9 dB / 0.569.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = default.get_config(data)
    config.name = "pexels_unet"
    config.model.name = "pexels_unet"
    config.model.bottleneck = 512  # channels of the bottleneck; 512 or 1024 in the report
    config.loss.charbonnier = 0.0
    config.loss.mse = 1.0  # not reported, nor are the fields below down to the batch size
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.train.epochs = 100
    config.train.batch_size = 16

    if data == "sample":
        config.train.epochs = 15
        config.train.batch_size = 4
        config.optimizer.warmup_epochs = 0.5
        config.eval.every_epochs = 2
    else:
        config.data.image_size = 128
    return config
