"""The CBAM U-Net with mask attention ("Image Restoration Model with Defect Preservation").

    python launch.py --config=configs/cbam_unet.py --config.data.root=DIR

27,949,319 parameters with two heads; with `--config.model.mask_attention=identity`, as in the
released code, 27,949,124. Reported 26.09 dB / 0.74. The network takes the true mask as input,
which is not available in practice: training hides it half of the time, and evaluation hides it
unless `--config.eval.oracle_mask` is set.

    python launch.py --config=configs/cbam_unet.py:sample

trains on rendered images at 64×64 with a shorter schedule: five epochs, about five minutes on
two CPU cores, too few for a network without skips: it ends at 15.7 dB. It leaves out the
perceptual term, whose VGG16 would have to be downloaded.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = default.get_config(data)
    config.name = "cbam_unet"
    config.model.name = "cbam_unet"
    config.model.widths = (64, 128, 256, 512, 1024)  # full resolution first, then bottleneck
    config.model.skips = (False, False, False, False)  # by stage, full resolution first
    config.model.dropout = 0.15  # probability of dropping a channel, per block
    config.model.mask_attention = "blend"  # blend (two heads) or identity (no effect)
    config.model.bottleneck_attention = False  # channel attention after the bottleneck too
    config.loss.charbonnier = 0.0
    config.loss.defect = 0.25
    config.loss.ssim = 0.30
    config.loss.perceptual = 0.20
    config.loss.sobel = 0.15
    config.loss.basic = 0.10
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.01  # not reported; PyTorch's default
    config.optimizer.schedule = "warm_restarts"
    config.optimizer.restart_epochs = 10.0
    config.optimizer.restart_factor = 2.0
    config.train.epochs = 150  # not reported; four cycles, of 10, 20, 40 and 80 epochs
    config.train.early_stopping_patience = 25
    config.train.batch_size = 8
    config.train.mask_dropout = 0.5  # not reported

    if data == "sample":
        config.loss.perceptual = 0.0
        config.train.epochs = 5
        config.train.batch_size = 4
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup_epochs = 0.5
        config.optimizer.schedule = "cosine"
    elif data == "shots":  # whose targets are noisy
        config.loss.ssim = 0.0
        config.loss.perceptual = 0.0
    return config
