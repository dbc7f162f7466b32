"""The GAN of the Pexels deblurring report: a U-Net generator against a PatchGAN, at 128×128.

    python launch.py --config=configs/pexels_gan.py:pairs --config.data.root=DIR

The report gives about 2,075,928 parameters and no layout; this one has 1,379,843 in the
generator and 696,225 in the discriminator. The generator's loss is the weighted L1 error plus
the non-saturating adversarial loss.

    python launch.py --config=configs/pexels_gan.py:sample

trains on rendered images at 64×64 with a shorter schedule.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = default.get_config(data)
    config.name = "pexels_gan"
    config.model.name = "pexels_generator"
    config.model.widths = (16, 32, 64, 128)  # full resolution first; the last at the bottom too
    config.loss.charbonnier = 0.0
    config.loss.l1 = 100.0  # not reported; the ratio of pix2pix (Isola et al., CVPR 2017)
    config.adversarial.weight = 1.0
    config.adversarial.discriminator = "pexels_discriminator"
    config.adversarial.learning_rate = 2e-4
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
