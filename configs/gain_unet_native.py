"""The gain U-Net for native-size photographs with the `kla` degradation.

    python launch.py --config=configs/gain_unet_native.py --config.data.root=DIR

trains on crops of native-size photographs, each with a thumbnail of its whole photograph. The
gain of each channel is measured and undone before; the thumbnail tells the trunk about the
noise that was clipped. A blur of 10 px leaves no detail in single pixels, so the network works
on blocks of 4×4 pixels.
"""

from ml_collections import ConfigDict

from configs import gain_unet


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = gain_unet.get_config(data)
    config.name = "gain_unet_native"
    config.model.stem = 4
    config.model.widths = (36, 52, 64, 64)
    config.model.tell = True
    config.model.shortcut = "average"
    config.loss.psnr = 0.005
    config.train.epochs = 60
    config.eval.every_epochs = 2
    config.eval.batch_size = 2
    config.data.undo_gain = True
    config.data.image_size = 0
    config.data.crop_size = 256
    config.data.crops_per_image = 8
    return config
