"""The GAN of the Pexels deblurring report: a U-Net generator against a PatchGAN, at 128×128.

    python launch.py --config=configs/pexels_gan.py:pairs --config.data.root=DIR

The report gives about 2,075,928 parameters and no architecture; here the generator has
1,379,843 and the discriminator 696,225. The generator's loss is the weighted L1 error plus the
non-saturating adversarial loss.

    python launch.py --config=configs/pexels_gan.py:sample

trains on rendered images at 64×64 with a shorter schedule: fifteen epochs, about three minutes
on two CPU cores, from 22.94 dB / 0.438 to 23.1 dB / 0.526.
"""

from ml_collections import ConfigDict

from configs import pexels_unet


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = pexels_unet.get_config(data)  # trained like the U-Net, except for the loss
    config.name = "pexels_gan"
    config.model = ConfigDict()
    config.model.name = "pexels_generator"
    config.model.widths = (16, 32, 64, 128)  # full resolution first; the bottom has the last
    config.loss.mse = 0.0
    config.loss.l1 = 100.0  # not reported; the ratio of pix2pix (Isola et al., CVPR 2017)
    config.adversarial.weight = 0.0 if data == "shots" else 1.0  # it would learn their noise
    config.adversarial.discriminator = "pexels_discriminator"
    config.adversarial.learning_rate = 2e-4
    return config
