"""The gain U-Net: this project's own network, see restore_jax/models/gain_unet.py.

    python launch.py --config=configs/gain_unet.py --config.data.root=DIR

854,367 parameters, 2.4 GMAC at 256×256.

    python launch.py --config=configs/gain_unet.py:sample

trains on rendered images at 64×64.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = default.get_config(data)
    config.name = "gain_unet"
    config.model.name = "gain_unet"
    config.model.widths = (32, 48, 64, 80)  # channels per stage, finest first
    config.model.blocks = 2  # residual blocks per stage and direction
    config.model.stem = 2  # side of the pixel blocks rearranged into channels (space-to-depth)
    config.model.gain = True  # estimate and correct the gain of each colour channel
    config.model.tell = False  # also add the gain branch's features to the coarser stages
    config.model.shortcut = "image"  # global residual: image, or average over pixel blocks
    config.loss.charbonnier = 1.0
    config.loss.edge = 0.1
    config.loss.ssim = 0.3
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.998
    config.train.epochs = 250
    config.train.batch_size = 8
    config.data.realisations = 0
    config.data.augment = "flips"

    if data == "sample":
        config.train.epochs = 15
        config.train.batch_size = 4
        config.optimizer.learning_rate = 2e-3
        config.optimizer.ema_decay = 0.99
        config.eval.every_epochs = 2
    elif data == "shots":  # whose targets are noisy
        config.loss.edge = 0.0
        config.loss.ssim = 0.0
    return config
