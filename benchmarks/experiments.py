"""The experiments of `benchmarks.train_all`, in order, and their common training protocol.

Lightweight: requires ml-collections but not JAX.
"""

import dataclasses
import importlib
import json
import math
import shlex
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from restore_jax.errors import UsageError

REPORTED_IMAGES = 250 * 932
"""Images seen in the reports' training of the SCA U-Net: 250 epochs of 932 photographs."""

VALIDATIONS = 10
"""Maximum number of validations per training."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run; sent to its process as JSON.

    Attributes:
        label: together with the size, the name of the result and of its file.
        config: name of a module in configs/.
        size: side length of the images in px; 0: crops of native photographs.
        images: maximum number of images to train on, over all epochs.
        share: share of the remaining time, relative to the shares of the runs that follow.
        fields: changes to the configuration, by path.
        bundled: whether the weights go into the common archive.
        rendered: number of images per type to render for training; 0: pairs come from a file.
    """

    label: str
    config: str
    size: int
    images: int = REPORTED_IMAGES
    share: float = 2.0
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bundled: bool = False
    rendered: int = 0

    @property
    def name(self) -> str:
        """Name of the result and of its file."""
        return f"{self.label}_{self.size}" if self.size else self.label


@dataclasses.dataclass(frozen=True)
class Task:
    """The job of one process.

    Attributes:
        experiment: what to train.
        pairs: path of the compact file of pairs.
        dtype: precision of training; "" is bfloat16, but float32 on a CPU.
        weights: path of the weights file to write.
    """

    experiment: Experiment
    pairs: str
    dtype: str
    weights: str

    def as_json(self) -> str:
        """Returns the task as JSON, for `from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """Returns the task that `as_json` has encoded."""
        fields = json.loads(text)
        return cls(**fields | {"experiment": Experiment(**fields["experiment"])})


def everything(size: int | None = None) -> list[Experiment]:
    """Lists all experiments, the most important first.

    Args:
        size: image size for all experiments with a fixed size, for a trial run; None: their
            own sizes.
    """
    planned = [
        Experiment("sca_unet", "sca_unet", 256, share=5),
        Experiment("measured_gain", "measured_gain", 256, images=4 * REPORTED_IMAGES, share=8),
        Experiment(
            "gain_unet",
            "gain_unet",
            256,
            images=4 * REPORTED_IMAGES,
            share=4,
            bundled=True,
        ),
        Experiment(
            "gain_unet_native", "gain_unet_native", 0, share=6, fields={"eval.batch_size": 8}
        ),
        Experiment(
            "general",
            "general",
            0,
            images=4 * REPORTED_IMAGES,
            share=6,
            fields={"eval.batch_size": 8},
            rendered=24,
        ),
        Experiment(
            "general_small",
            "general",
            0,
            images=4 * REPORTED_IMAGES,
            share=3,
            fields={
                "model.widths": (24, 32, 48, 64),
                "model.blocks": 1,
                "optimizer.learning_rate": 2e-3,
                "eval.batch_size": 8,
            },
            bundled=True,
            rendered=24,
        ),
        Experiment("sca_unet", "sca_unet", 512, share=4, bundled=True),
        # The report's 1e-4 suits many more steps than there is time for; likewise unet_small's.
        Experiment(
            "rcan",
            "rcan",
            256,
            share=3,
            fields={"optimizer.learning_rate": 5e-4},
            bundled=True,
        ),
        Experiment("pexels_unet", "pexels_unet", 256),
        Experiment(
            "unet_small",
            "unet_small",
            256,
            fields={"optimizer.learning_rate": 5e-4},
            bundled=True,
        ),
        Experiment("pexels_cnn", "pexels_cnn", 256, bundled=True),
        Experiment(
            "cbam_unet_skips",
            "cbam_unet",
            256,
            share=3,
            # No perceptual loss, for which the weights of VGG16 would have to be supplied.
            fields={
                "model.skips": (True, True, True, True),
                "loss.perceptual": 0.0,
                "optimizer.learning_rate": 3e-4,
            },
            bundled=True,
        ),
        Experiment("pexels_gan", "pexels_gan", 256, bundled=True),
    ]
    if size is None:
        return planned
    resized = [dataclasses.replace(e, size=size) if e.size else e for e in planned]
    return list({experiment.name: experiment for experiment in resized}.values())


def tiny() -> list[Experiment]:
    """Lists a few experiments of each kind, so small that a CPU runs them in a minute."""
    narrow = {"model.widths": (2, 4), "train.batch_size": 4, "eval.batch_size": 4}
    return [
        Experiment("sca_unet", "sca_unet", 32, images=60, fields=narrow),
        Experiment("pexels_gan", "pexels_gan", 32, 60, fields=narrow, bundled=True),
        Experiment(
            "general",
            "general",
            0,
            images=60,
            fields=narrow
            | {"data.sample_size": 64, "data.crop_size": 32, "data.crops_per_image": 1},
            rendered=2,
        ),
    ]


def make_config(experiment: Experiment, epochs: int, dtype: str) -> ConfigDict:
    """Returns the configuration of an experiment under the common protocol.

    The protocol: photographs of the split `all` under the law `kla`, noise and gain drawn at
    every step, flips; the experiment's own loss, optimizer, batch size and peak learning rate,
    which decays to zero along a cosine after one epoch of warm-up. `experiment.fields` takes
    precedence over all of this.

    Args:
        experiment: the experiment.
        epochs: number of epochs.
        dtype: precision of the arithmetic.

    Raises:
        UsageError: there is no such configuration, or it does not have one of the fields.
    """
    config = _start(experiment)
    config.dtype = dtype
    config.data.image_size = experiment.size
    config.data.split = "all"
    config.data.realisations = 0
    config.data.augment = "all8" if experiment.rendered else "flips"
    config.data.references = 0
    config.data.resident = True
    config.optimizer.schedule = "cosine"
    config.optimizer.final_fraction = 0.0
    config.optimizer.warmup_epochs = 1.0 if epochs > 4 else 0.0
    config.train.epochs = epochs
    config.train.early_stopping_patience = 0
    config.eval.every_epochs = max(1, math.ceil(epochs / VALIDATIONS))
    try:
        # A locked configuration refuses unknown fields.
        config.lock().update_from_flattened_dict(dict(experiment.fields))
        config.unlock()
    except (KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{experiment.name}: a field does not fit ({reason})") from error
    return config


def _start(experiment: Experiment) -> ConfigDict:
    """Returns the experiment's configuration without changes."""
    name = f"configs.{experiment.config}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UsageError(
            f"{experiment.name}: there is no configs/{experiment.config}.py"
        ) from None
    return module.get_config("sample" if experiment.rendered else "mvtec_ad")


def command(experiment: Experiment, config: ConfigDict) -> str:
    """Returns the launch.py command for the same training, given the photographs."""
    before, after = (_flat(c.to_dict()) for c in (_start(experiment), config))
    changed = [
        f"--config.{path}={value}"
        for path, value in after.items()
        if value != before.get(path) and path != "data.resident_file"
    ]
    return shlex.join(
        [
            "python",
            "launch.py",
            f"--config=configs/{experiment.config}.py{':sample' * bool(experiment.rendered)}",
            *([] if experiment.rendered else ["--config.data.root=DIR"]),
            *changed,
        ]
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        path = prefix + name
        flat.update(_flat(value, f"{path}.") if isinstance(value, dict) else {path: value})
    return flat
