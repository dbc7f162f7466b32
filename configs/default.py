"""Every field there is, with its meaning. The experiments import this and change it.

Any field can be changed on the command line: `--config.train.epochs=20`,
`--config.data.degradation.sigma_x="(5.0, 5.0)"`. A run keeps its fields in `config.json`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from restore_jax.errors import UsageError

DATA = ("mvtec_ad", "inspection", "sample", "kla", "pairs", "clean")


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns the fields that all experiments share.

    Args:
        data: which images, the part of `--config=FILE.py:DATA` after the colon.

    Raises:
        UsageError: for data that does not exist.
    """
    config = ConfigDict()
    config.name = "default"  # names the default workdir, together with the data
    config.seed = 0  # initial parameters, order of the images, noise and blur, dropout
    config.dtype = "float32"  # arithmetic of the model: float32 or bfloat16
    # Parameters to start from, of the same architecture: a workdir or a .safetensors file.
    config.init_from = ""

    config.model = ConfigDict()
    config.model.name = "sca_unet"  # a name of restore_jax.models.MODELS; options follow it

    # Weight of each loss term; a term of weight 0 is not computed.
    config.loss = ConfigDict()
    config.loss.charbonnier = 1.0  # mean of sqrt(error² + 1e-6)
    config.loss.ssim = 0.0  # 1 − SSIM
    config.loss.edge = 0.0  # Charbonnier of the Laplacians
    config.loss.edge_pyramid = 0.0  # the same with the Gaussian-pyramid Laplacian
    config.loss.mse = 0.0  # mean of error²
    config.loss.psnr = 0.0  # what the PSNR lacks of 60 dB
    config.loss.l1 = 0.0  # mean of |error|
    config.loss.basic = 0.0  # mean of |error| + error²
    config.loss.masked_mse = 0.0  # 0.3 · mean(error²) + 0.7 · mean(mask · error²)
    config.loss.defect = 0.0  # mean of |error| + error² over the defect's pixels
    config.loss.sobel = 0.0  # mean |error| of the Sobel gradients
    config.loss.perceptual = 0.0  # relative squared distance of VGG16 features
    config.vgg16_weights = ""  # file for perceptual, .h5 or .npz; "" = Keras downloads it

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # adam or adamw
    config.optimizer.learning_rate = 1e-3  # the highest of the schedule
    config.optimizer.weight_decay = 0.0  # adamw only
    config.optimizer.schedule = "constant"  # constant, cosine or warm_restarts
    config.optimizer.warmup_epochs = 0.0  # linear rise from 0 before the schedule
    config.optimizer.final_fraction = 0.0  # of the learning rate, at a cosine's end
    config.optimizer.restart_epochs = 10.0  # warm_restarts: length of the first cycle
    config.optimizer.restart_factor = 2.0  # warm_restarts: each cycle is so much longer
    config.optimizer.clip_norm = 0.0  # largest global gradient norm; 0 = no clipping
    config.optimizer.ema_decay = 0.0  # average of the parameters, used to restore; 0 = off

    # A discriminator trained along, and the weight of what it adds to the loss.
    config.adversarial = ConfigDict()
    config.adversarial.weight = 0.0  # 0 = off
    config.adversarial.discriminator = "pexels_discriminator"
    config.adversarial.learning_rate = 2e-4  # with the schedule of config.optimizer

    config.train = ConfigDict()
    config.train.epochs = 250
    config.train.batch_size = 8  # over all devices together
    config.train.early_stopping_patience = 0  # epochs without a better SSIM; 0 = never stop
    config.train.mask_dropout = 0.0  # share of the images whose mask the model is not shown
    config.train.log_every_steps = 20  # how often the loss is fetched, shown and checked
    # With config.data.resident: steps that the devices take without the host; the loss is
    # fetched, and a signal obeyed, so often. 0 = those of train.log_every_steps; 1 on a CPU.
    config.train.steps_per_dispatch = 0

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 0  # save so often within an epoch; 0 = at validations only

    config.eval = ConfigDict()
    config.eval.every_epochs = 1  # validate and save a checkpoint so often
    config.eval.batch_size = 8  # over all devices together
    config.eval.split = "val"  # of --mode=evaluate: val, train or all
    config.eval.protocol = "standard"  # kla adds the figures of the KLA set's own protocol
    config.eval.oracle_mask = False  # shows the model the true masks; every figure says so
    config.eval.pictures = 8  # rows in the picture of degraded, restored and clean images

    config.data = ConfigDict()
    config.data.name = data
    config.data.root = ""  # the data's folder; for mvtec_ad also the folder of its archives
    # mvtec_ad, inspection, sample: defects (the reports'), good or all; kla: defects, or test
    # for its hidden test; pairs and clean have only one division, under the default's name.
    config.data.split = "defects"
    config.data.image_size = 256  # both sides, after degrading; 0 = native size
    config.data.crop_size = 256  # training crops, only with image_size=0
    config.data.crops_per_image = 1  # of each degraded photograph, with image_size=0
    config.data.resize = "bilinear"  # bilinear (antialiased, as Pillow's) or area
    config.data.realisations = 1  # fixed draws of noise and blur per image; 0 = new every epoch
    config.data.references = 40  # evaluation: clean images per category to fit a detector on
    config.data.augment = "none"  # none, flips, or all8 (with rotations)
    config.data.recolour = False  # trains on photographs in other colours, too
    config.data.skip_bad = False  # leave out images that cannot be read, instead of stopping
    config.data.max_megapixels = 200  # larger images are refused, before they fill the memory
    config.data.cache_dir = ""  # prepared data; "" = restore_jax/tfds in the user's cache
    # Keep all pairs in the memory of each device; draw batches, flips and fresh noise there.
    config.data.resident = False
    # The file of those pairs: made where there is none, and all that a machine without
    # TensorFlow needs; "" = one in data.cache_dir, or in restore_jax/pairs of the user's cache.
    config.data.resident_file = ""

    # The law that turns clean photographs into degraded ones, at native size, in this order.
    # None keeps the preset's value. Ranges are (low, high), drawn anew for every image.
    config.data.degradation = ConfigDict()
    config.data.degradation.preset = "kla"  # kla (the reports'), mild, blind, wide or none
    # A law that --mode=calibrate has fitted, in the preset's place; its fields are copied here.
    config.data.degradation.file = ""
    config.data.degradation.blur = placeholder(tuple)  # kinds to draw from: none, gaussian, …
    config.data.degradation.sigma_x = placeholder(tuple)  # gaussian: px along the columns
    config.data.degradation.sigma_y = placeholder(tuple)  # gaussian: px along the rows
    config.data.degradation.motion_length = placeholder(tuple)  # motion: px
    config.data.degradation.motion_angle = placeholder(tuple)  # motion: degrees
    config.data.degradation.defocus_radius = placeholder(tuple)  # defocus: px
    config.data.degradation.noise_sigma = placeholder(tuple)  # grey levels, per channel
    config.data.degradation.poisson_peak = placeholder(tuple)  # photons at white; (0, 0) = off
    config.data.degradation.gain = placeholder(tuple)  # per channel
    config.data.degradation.clean_share = placeholder(float)  # of images left as they are
    config.data.degradation.skew = placeholder(float)  # above 1: little blur and noise is usual
    config.data.degradation.quantise = placeholder(str)  # truncate, round or none

    if data == "sample":
        config.data.image_size = 64
        config.data.sample_size = 256  # native side of the rendered images
        config.data.sample_count = 8  # images per defect type, and per category without defect
    elif data not in DATA:
        raise UsageError(f"--config=…:{data}: no such data; there are {', '.join(DATA)}")
    return config
