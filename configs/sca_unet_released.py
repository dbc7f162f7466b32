"""The SCA U-Net of the released code, with which the published weights were trained.

    python launch.py --config=configs/sca_unet_released.py --config.data.root=DIR

It differs from the report in the non-local block (no softmax), the upsampling (aligned
corners), the edge loss (Gaussian-pyramid Laplacian) and the size (512×512).
"""

from ml_collections import ConfigDict

from configs import sca_unet


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the experiment's fields for the given data."""
    config = sca_unet.get_config(data)
    config.name = "sca_unet_released"
    config.model.variant = "released"
    config.loss.edge = 0.0
    config.loss.edge_pyramid = 0.0 if data == "shots" else 0.1
    if data in ("mvtec_ad", "kla"):
        config.data.image_size = 512
    return config
