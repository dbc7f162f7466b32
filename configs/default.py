"""All fields and their meaning. The experiments import this file and change some of them.

Any field can be set on the command line: `--config.train.epochs=20`,
`--config.data.degradation.sigma_x="(5.0, 5.0)"`. A run stores its fields in `config.json`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from restore_jax.errors import UsageError

DATA = ("mvtec_ad", "inspection", "sample", "kla", "pairs", "clean", "shots")


def get_config(data: str = "mvtec_ad") -> ConfigDict:
    """Returns all fields with their default values.

    Args:
        data: the data set, the part of `--config=FILE.py:DATA` after the colon.

    Raises:
        UsageError: for an unknown data set.
    """
    config = ConfigDict()
    config.name = "default"  # with the data's name, gives the default workdir
    config.seed = 0  # of initial parameters, order of the images, noise and blur, dropout
    config.dtype = "float32"  # of the model's arithmetic: float32 or bfloat16
    # Where to start from: a workdir, a weights file or the name of a shipped model.
    config.init_from = ""

    config.model = ConfigDict()
    config.model.name = "sca_unet"  # a key of restore_jax.models.MODELS; its options follow

    # Weight of each loss term; a term of weight 0 is not computed.
    config.loss = ConfigDict()
    config.loss.charbonnier = 1.0  # mean of sqrt(error² + 1e-6)
    config.loss.ssim = 0.0  # 1 − SSIM
    config.loss.edge = 0.0  # Charbonnier of the Laplacians
    config.loss.edge_pyramid = 0.0  # the same with the Gaussian-pyramid Laplacian
    config.loss.mse = 0.0  # mean of error²
    config.loss.psnr = 0.0  # how far the PSNR is below 60 dB
    config.loss.l1 = 0.0  # mean of |error|
    config.loss.basic = 0.0  # mean of |error| + error²
    config.loss.masked_mse = 0.0  # 0.3 · mean(error²) + 0.7 · mean(mask · error²)
    config.loss.defect = 0.0  # mean of |error| + error² over the defect pixels
    config.loss.sobel = 0.0  # mean |error| of the Sobel gradients
    config.loss.perceptual = 0.0  # relative squared distance of VGG16 features
    config.vgg16_weights = ""  # file for perceptual, .h5 or .npz; "" = Keras downloads it

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # adam or adamw
    config.optimizer.learning_rate = 1e-3  # peak of the schedule
    config.optimizer.weight_decay = 0.0  # adamw only
    config.optimizer.schedule = "constant"  # constant, cosine or warm_restarts
    config.optimizer.warmup_epochs = 0.0  # linear warm-up from 0 before the schedule
    config.optimizer.final_fraction = 0.0  # final learning rate of a cosine / learning_rate
    config.optimizer.restart_epochs = 10.0  # warm_restarts: length of the first cycle
    config.optimizer.restart_factor = 2.0  # warm_restarts: length of a cycle / previous cycle
    config.optimizer.clip_norm = 0.0  # largest global gradient norm; 0 = no clipping
    config.optimizer.ema_decay = 0.0  # moving average of the parameters, for inference; 0 = off

    # A discriminator trained alongside the model.
    config.adversarial = ConfigDict()
    config.adversarial.weight = 0.0  # of the adversarial term in the loss; 0 = off
    config.adversarial.discriminator = "pexels_discriminator"
    config.adversarial.learning_rate = 2e-4  # peak; the schedule is that of config.optimizer

    config.train = ConfigDict()
    config.train.epochs = 250
    config.train.batch_size = 8  # over all devices together
    config.train.early_stopping_patience = 0  # epochs without a better SSIM; 0 = never stop
    config.train.mask_dropout = 0.0  # probability of hiding an image's mask from the model
    config.train.log_every_steps = 20  # interval of fetching, showing and checking the loss
    # With config.data.resident: steps per dispatch to the devices, after which the loss is
    # fetched and signals are handled. 0 = train.log_every_steps, or 1 on a CPU.
    config.train.steps_per_dispatch = 0

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 0  # interval of saves besides validations; 0 = none

    config.eval = ConfigDict()
    config.eval.every_epochs = 1  # interval at which to validate and save a checkpoint
    config.eval.batch_size = 8  # over all devices together
    config.eval.split = "val"  # split for --mode=evaluate: val, train or all
    config.eval.protocol = "standard"  # kla adds the metrics of the KLA set's own protocol
    config.eval.oracle_mask = False  # gives the model the true masks; the results are marked
    config.eval.pictures = 8  # rows in the picture of degraded, restored and clean images

    config.data = ConfigDict()
    config.data.name = data
    config.data.root = ""  # the data's folder; for mvtec_ad also the folder of its archives
    # mvtec_ad, inspection, sample: defects (as in the reports), good or all; kla: defects, or
    # test for its hidden test set; pairs, clean and shots have one split, named as the default.
    config.data.split = "defects"
    config.data.image_size = 256  # px of both sides, after degrading; 0 = native size
    config.data.crop_size = 256  # px of training crops, only with image_size=0
    config.data.crops_per_image = 1  # per degraded photograph, only with image_size=0
    config.data.resize = "bilinear"  # bilinear (antialiased, as in Pillow) or area
    config.data.realisations = 1  # fixed noise and blur draws per image; 0 = new every epoch
    config.data.references = 40  # evaluation: clean images per category to fit a detector on
    config.data.augment = "none"  # none, flips, or all8 (with rotations)
    config.data.recolour = False  # also train on photographs in other colours
    # Factor by which a training photograph is shrunk before it is degraded, drawn for each;
    # only with image_size=0.
    config.data.shrink = (1.0, 1.0)
    # Measure the digital gain of each channel in the histogram of the degraded photograph, at
    # its native size, and divide by it before the network.
    config.data.undo_gain = False
    config.data.skip_bad = False  # skip images that cannot be read, instead of stopping
    config.data.max_megapixels = 200  # larger images are refused, to protect the memory
    # White level of 16-bit images, such as 4095 for 12 bits. 0 = as they state, or found from
    # all of them; config.json records it.
    config.data.white = 0
    config.data.cache_dir = ""  # prepared data; "" = restore_jax/tfds in the user's cache
    # Keep all pairs in the memory of each device; draw batches, flips and new noise there.
    config.data.resident = False
    # The file of those pairs, made if missing; a machine without TensorFlow needs nothing else.
    # "" = a file in data.cache_dir, or in restore_jax/pairs of the user's cache.
    config.data.resident_file = ""

    # The degradation of clean photographs, at native size, in this order. None keeps the
    # preset's value. Ranges are (low, high), drawn for every image.
    config.data.degradation = ConfigDict()
    config.data.degradation.preset = "kla"  # or mild, blind, wide, camera, none
    # A law fitted by --mode=calibrate, used instead of the preset; its fields are copied here.
    config.data.degradation.file = ""
    config.data.degradation.blur = placeholder(tuple)  # kinds to draw from: none, gaussian, …
    config.data.degradation.sigma_x = placeholder(tuple)  # gaussian: px along the columns
    config.data.degradation.sigma_y = placeholder(tuple)  # gaussian: px along the rows
    config.data.degradation.motion_length = placeholder(tuple)  # motion: px
    config.data.degradation.motion_angle = placeholder(tuple)  # motion: degrees
    config.data.degradation.defocus_radius = placeholder(tuple)  # defocus: px
    # Kinds of noise to draw from: independent, grey (of all channels alike) or demosaiced.
    config.data.degradation.noise = placeholder(tuple)
    config.data.degradation.noise_sigma = placeholder(tuple)  # grey levels, per channel
    config.data.degradation.poisson_peak = placeholder(tuple)  # photons at white; (0, 0) = off
    config.data.degradation.gain = placeholder(tuple)  # per channel
    config.data.degradation.clean_share = placeholder(float)  # share of images not degraded
    config.data.degradation.skew = placeholder(float)  # above 1 favours weak blur and noise
    config.data.degradation.quantise = placeholder(str)  # truncate, round or none
    config.data.degradation.jpeg_quality = placeholder(tuple)  # 1 to 100; (0, 0) = no JPEG
    config.data.degradation.jpeg_share = placeholder(float)  # share of images stored as JPEG

    if data == "sample":
        config.data.image_size = 64
        config.data.sample_size = 256  # px of the rendered images' sides
        config.data.sample_count = 8  # images per defect type, and good images per category
    elif data not in DATA:
        raise UsageError(f"configs/….py:{data}: unknown data set; use one of {', '.join(DATA)}")
    return config
