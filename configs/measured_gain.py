"""The gain U-Net's trunk, with the gain measured in the histogram instead of estimated.

    python launch.py --config=configs/measured_gain.py --config.data.root=DIR

A digital gain leaves a comb in the histogram of a photograph (see
restore_jax/degradation/digital_gain.py), so it does not have to be learned: each channel is
divided by its gain before the network, which only removes noise and blur. 822,332 parameters,
2.42 GMAC at 256×256.

    python launch.py --config=configs/measured_gain.py:sample

trains on rendered images at 64×64.
"""

from ml_collections import ConfigDict

from configs import gain_unet


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = gain_unet.get_config(data)
    config.name = "measured_gain"
    config.model.gain = False
    config.data.undo_gain = True
    return config
