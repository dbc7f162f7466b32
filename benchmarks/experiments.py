"""What `benchmarks.train_all` trains, in its order, and the one protocol of it all.

Light: it needs ml-collections and no JAX.
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
"""What the reports' training of the SCA U-Net saw: 250 epochs of 932 photographs."""

VALIDATIONS = 10
"""Of a training, at most."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training; it travels to its process as JSON.

    Attributes:
        label: with the size, the name of the result and of its file.
        config: a name of configs/.
        size: side of the images, px; 0: crops of photographs of their native size.
        images: to be seen at most, over all epochs.
        share: of the time that is left, in relation to the shares of those that follow.
        fields: changes to the configuration, by path.
        bundled: whether its weights go into a common archive with others'.
        rendered: images of each type that are rendered to train on; 0: the pairs are carried.
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
        """The name of the result and of its file."""
        return f"{self.label}_{self.size}" if self.size else self.label


@dataclasses.dataclass(frozen=True)
class Task:
    """What a process is to do.

    Attributes:
        experiment: what to train.
        pairs: the compact file.
        dtype: of the arithmetic in training; "" is bfloat16, but float32 on a CPU.
        weights: the file to write them to.
    """

    experiment: Experiment
    pairs: str
    dtype: str
    weights: str

    def as_json(self) -> str:
        """Returns what `from_json` takes."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """Returns the task of a text."""
        fields = json.loads(text)
        return cls(**fields | {"experiment": Experiment(**fields["experiment"])})


def everything(size: int | None = None) -> list[Experiment]:
    """Lists all experiments, the most important first.

    Args:
        size: of the images of all that have one, for a rehearsal; None: each its own.
    """
    planned = [
        Experiment("sca_unet", "sca_unet", 256, share=5),
        Experiment("gain_unet", "gain_unet", 256, images=4 * REPORTED_IMAGES, share=8),
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
        # The report's 1e-4 is for many more steps than there is time for; so is the next one's.
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
            # The weights of VGG16 would have to be carried as well.
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
    """Lists a few of everything, so small that a CPU goes through them in a minute."""
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
    """Returns the configuration of an experiment under the protocol.

    That is: photographs of the split `all` under the law `kla`, noise and gain drawn in every
    step, flips; the experiment's own loss, optimizer, batch and highest learning rate, which a
    cosine leads to zero after an epoch of warm-up. Whatever a training needs that is asked for
    by `fields` has the last word.

    Args:
        experiment: which.
        epochs: of the training.
        dtype: of the arithmetic.

    Raises:
        UsageError: where there is no such configuration, or a field is none of it.
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
        # Locked, it takes no field that it has not.
        config.lock().update_from_flattened_dict(dict(experiment.fields))
        config.unlock()
    except (KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{experiment.name}: a field does not fit ({reason})") from error
    return config


def _start(experiment: Experiment) -> ConfigDict:
    """The experiment's fields as they are."""
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
    """Returns the command that trains the same where the photographs are."""
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
