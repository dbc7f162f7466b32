"""The RCAN-like network of Mahesh, Malapaka, Garimella and Singh (IIT Madras, 2024).

    python launch.py --config=configs/rcan.py --config.data.root=DIR

763,243 parameters; reported 29.94 dB / 0.805 in validation.

    python launch.py --config=configs/rcan.py:sample

trains on rendered images at 64×64 with a shorter schedule: five epochs, about five minutes on
two CPU cores, from 22.94 dB / 0.438 to 24.1 dB / 0.466.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = default.get_config(data)
    config.name = "rcan"
    config.model.name = "rcan"
    config.model.width = 64  # channels throughout
    config.model.blocks = 10  # residual blocks
    config.model.global_residual = False  # adds the input to the output
    config.loss.charbonnier = 0.0
    config.loss.masked_mse = 1.0
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.train.epochs = 350
    config.train.batch_size = 8  # not reported

    if data == "sample":
        config.train.epochs = 5
        config.train.batch_size = 4
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup_epochs = 0.5
        config.optimizer.schedule = "cosine"
    return config
