"""The trained models that come with the package, by name.

Their files are in `weights/` beside this module. To add a model, write its file with
`python launch.py --mode=export --output=NAME.safetensors --dtype=float16 --metadata=…`, which
prints the digest, put the file there, and add an entry below and a model card
docs/models/NAME.md. This module is light: it does not need JAX.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping

from restore_jax.errors import UsageError

FOLDER = pathlib.Path(__file__).parent / "weights"


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A trained model that comes with the package.

    Attributes:
        name: the name that `restore_jax.load` and `--workdir` accept.
        purpose: the kind of photographs it is for, in one line.
        config: the experiment that it was trained with, e.g. "configs/sca_unet.py".
        training_data: what it was trained on.
        licence: licence of the weights, as in the file's metadata.
        sha256: digest of the file, in hexadecimal.
        protocol: how `figures` were measured: data, split, image size, degradation.
        figures: metrics, e.g. {"psnr": 33.1, "ssim": 0.89}; PSNR in dB.
    """

    name: str
    purpose: str
    config: str
    training_data: str
    licence: str
    sha256: str
    protocol: str
    figures: Mapping[str, float]

    @property
    def file(self) -> str:
        """The name of its file in `FOLDER`."""
        return f"{self.name}.safetensors"

    @property
    def path(self) -> pathlib.Path:
        """The path where its file should be."""
        return FOLDER / self.file

    @property
    def card(self) -> str:
        """The path of its model card in the repository."""
        return f"docs/models/{self.name}.md"


_MVTEC_LICENCE = "CC BY-NC-SA 4.0 (non-commercial), as MVTec AD, on which it was trained"

_RENDERED = "rendered images (data sample, 512x512, split all)"
_MVTEC_PART = "281 photographs of MVTec AD (split all)"
_NATIVE_PROTOCOL = (
    "33 photographs of MVTec AD (part of it, split all, val) at native size: as they are, "
    "under the mild and under the kla law"
)
_SMALL_PROTOCOL = "33 photographs of MVTec AD (part of it, split all, val), kla law, 256x256"

# The first is the default.
MODELS: tuple[Shipped, ...] = (
    Shipped(
        name="general",
        purpose=(
            "photographs of any camera at their own size, noisy, blurred or JPEGs; leaves good "
            "ones alone"
        ),
        config="configs/general.py",
        training_data=_RENDERED,
        licence="Apache-2.0",
        sha256="03c80036f6ebeffd5ef0604ed50fc37afb781d94a0eced8890d3d138e5f85524",
        protocol=_NATIVE_PROTOCOL,
        figures={
            "psnr_of_clean": 63.58,
            "psnr_mild": 34.96,
            "input_psnr_mild": 27.88,
            "psnr_kla": 24.49,
            "input_psnr_kla": 13.28,
        },
    ),
    Shipped(
        name="general_small",
        purpose="as general in less than half of the time",
        config="configs/general.py",
        training_data=_RENDERED,
        licence="Apache-2.0",
        sha256="67bb45a58aab2badd6bfceae97639b55ac4c9ae4464f1642b5b7988b0c069841",
        protocol=_NATIVE_PROTOCOL,
        figures={
            "psnr_of_clean": 57.33,
            "psnr_mild": 34.09,
            "input_psnr_mild": 27.88,
            "psnr_kla": 23.47,
            "input_psnr_kla": 13.28,
        },
    ),
    Shipped(
        name="gain_unet_kla_native",
        purpose="photographs at their own size with blur, strong noise and wrong colours",
        config="configs/gain_unet_native.py",
        training_data=_MVTEC_PART,
        licence=_MVTEC_LICENCE,
        sha256="c4cec4072c1480369e626010814c39fe97fd9d9d3dbbd29be19ab0613506df7d",
        protocol="33 photographs of MVTec AD (part of it, split all, val), kla law",
        figures={"psnr": 31.63, "ssim": 0.846, "input_psnr": 13.28, "input_ssim": 0.031},
    ),
    Shipped(
        name="gain_unet_kla_256",
        purpose="photographs with blur, noise and wrong colours, shrunk to 256x256",
        config="configs/gain_unet.py",
        training_data=_MVTEC_PART,
        licence=_MVTEC_LICENCE,
        sha256="5668abff1a0ccc14a281a492b7c87b356f848fc07fa68d68d75d4447bab1097a",
        protocol=_SMALL_PROTOCOL,
        figures={"psnr": 32.76, "ssim": 0.902, "input_psnr": 22.77, "input_ssim": 0.505},
    ),
    Shipped(
        name="measured_gain_kla_256",
        purpose=(
            "as gain_unet_kla_256, where the gains of the colours can be measured in the file"
        ),
        config="configs/measured_gain.py",
        training_data=_MVTEC_PART,
        licence=_MVTEC_LICENCE,
        sha256="f7fffca77d9c51fd55a770517d4466fa4ffde795fc052863f4ddfbed1d9e55a3",
        protocol=_SMALL_PROTOCOL,
        figures={"psnr": 34.16, "ssim": 0.900, "input_psnr": 22.77, "input_ssim": 0.505},
    ),
    Shipped(
        name="sca_unet_kla_256",
        purpose="as gain_unet_kla_256, with the network of the reports",
        config="configs/sca_unet.py",
        training_data=_MVTEC_PART,
        licence=_MVTEC_LICENCE,
        sha256="0a4ec07f5b25c5d9d667028df870687e58f5f493eae4d57c5d061b5304c351ca",
        protocol=_SMALL_PROTOCOL,
        figures={"psnr": 33.04, "ssim": 0.898, "input_psnr": 22.77, "input_ssim": 0.505},
    ),
)


def models_available() -> list[str]:
    """Returns the names of the models that come with the package, the default first."""
    return [model.name for model in MODELS]


def is_name(text: str) -> bool:
    """Returns whether a model with this name is shipped."""
    return any(model.name == text for model in MODELS)


def default() -> Shipped:
    """Returns the model that is used where none is named.

    Raises:
        UsageError: if no model is shipped.
    """
    if not MODELS:
        raise UsageError(
            "--workdir: missing, and no models come with this version; give the workdir of a "
            "training or a .safetensors file"
        )
    return MODELS[0]


def verified(name: str) -> Shipped:
    """Returns the model with a given name after checking its file against its digest.

    Raises:
        UsageError: if there is no such model, or its file is missing or modified.
    """
    model = next((model for model in MODELS if model.name == name), None)
    if model is None:
        raise UsageError(f"{name}: no model of that name is shipped{known()}")
    try:
        found = hashlib.sha256(model.path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"{model.path}: the shipped model {name!r} cannot be read ({error.strerror}); "
            "reinstall restore_jax"
        ) from error
    if found != model.sha256:
        raise UsageError(
            f"{model.path}: not the file of the shipped model {name!r} (its SHA-256 is "
            f"{found[:12]}…, not {model.sha256[:12]}…); reinstall restore_jax"
        )
    return model


def known() -> str:
    """Returns the names of all models, as the end of an error message; "" if there are none."""
    return f"; there are {', '.join(models_available())}" if MODELS else ""


def one_line(model: Shipped) -> str:
    """Returns the model's name, purpose and licence in one line."""
    return f"{model.name}: {model.purpose} (licence: {model.licence})"
