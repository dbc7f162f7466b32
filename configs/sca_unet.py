"""The SCA U-Net as Sarvesan and Mendhe report it (IIT Madras, 2024).

    python launch.py --config=configs/sca_unet.py --config.data.root=DIR

867,842 parameters; reported 30.55 dB / 0.8450 on 88 photographs at 256×256. The sample data
(`configs/sca_unet.py:sample`) train in under 5 minutes on two CPU cores; their schedule is
shorter and ends in a cosine, for want of time.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = default.get_config(data)
    config.name = "sca_unet"
    config.model.name = "sca_unet"
    config.model.variant = "report"  # report, or released for the published weights
    config.model.widths = (16, 32, 64, 128)  # channels per stage, full resolution first
    config.loss.charbonnier = 1.0
    config.loss.edge = 0.1
    config.loss.ssim = 0.3
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.train.epochs = 250
    config.train.batch_size = 8

    if data == "sample":
        config.train.epochs = 30
        config.optimizer.schedule = "cosine"
        config.eval.every_epochs = 2
    return config
