"""The fixed parameters of the perceptual loss: VGG16 as trained on ImageNet by its authors.

They are downloaded once from Keras Applications, converted, and cached as a NumPy archive in
the user's cache folder. For a machine without a network, copy that archive or Keras's own file
to it.
"""

import contextlib
import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from restore_jax import files
from restore_jax.errors import UsageError, one_line
from restore_jax.losses.perceptual import BLOCKS

Params = dict[str, dict[str, np.ndarray]]

_KERAS_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
_REMEDY = (
    f"give Keras's file {_KERAS_FILE} as config.vgg16_weights, or set config.loss.perceptual=0"
)


class _BadFile(Exception):
    """A weights file cannot be used; the message says why, without the file's name."""


def load_loss_params(config: ConfigDict) -> dict[str, Params]:
    """Loads the parameters that loss terms need and that are not trained.

    Args:
        config: the whole configuration; `config.loss` and `config.vgg16_weights` are read.

    Returns:
        `{"perceptual": …}`, keyed by loss term, or `{}` if that term has no weight.

    Raises:
        UsageError: as `load`.
    """
    if not config.loss.get("perceptual", 0):
        return {}
    return {"perceptual": load(config.get("vgg16_weights", ""))}


def load(path: str = "") -> Params:
    """Loads the parameters of VGG16's thirteen convolutions.

    Args:
        path: `config.vgg16_weights`: a weights file of Keras's VGG16 without its top (`.h5` or
            `.weights.h5`), or an archive that this function wrote to the cache (`.npz`). ""
            selects the cached archive, `restore_jax/vgg16_imagenet.npz` in the user's cache
            folder (`$XDG_CACHE_HOME`, else `~/.cache`); if it does not exist, it is made from
            the weights that Keras downloads (59 MB).

    Returns:
        `{"block1_conv1": {"kernel": [3, 3, 3, 64], "bias": [64]}, …}` to `block5_conv3`,
        float32.

    Raises:
        UsageError: the file is missing or not a valid weights file, the download fails, or the
            cache is not writable.
    """
    if path:
        file = Path(path).expanduser()
        try:
            return _check(_read(file))
        except _BadFile as error:
            raise UsageError(f"config.vgg16_weights: {file}: {error}; {_REMEDY}") from error
    archive = _archive()
    if archive.exists():
        try:
            return _check(_read(archive))
        except _BadFile as error:
            raise UsageError(f"{archive}: {error}; delete it to have it made again") from error
    params = _check(_download())
    _write(archive, params)
    return params


def _layers() -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the shapes of kernel and bias of each convolution, in network order."""
    shapes, channels = {}, 3
    for block, (features, count) in enumerate(BLOCKS, start=1):
        for number in range(1, count + 1):
            shapes[f"block{block}_conv{number}"] = {
                "kernel": (3, 3, channels, features),
                "bias": (features,),
            }
            channels = features
    return shapes


def _archive() -> Path:
    return files.cache_folder() / "vgg16_imagenet.npz"


def _read(file: Path) -> Params:
    if not file.is_file():
        raise _BadFile("no such file")
    if file.suffix == ".npz":
        return _read_archive(file)
    if file.suffix == ".h5":
        return _read_keras(file)
    raise _BadFile("neither an .h5 nor an .npz file")


def _read_archive(file: Path) -> Params:
    try:
        # Opened here because NumPy does not close a file that looks like an archive but is not.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            flat = {name: arrays[name] for name in arrays.files}
    # Errors of zipfile and NumPy; TypeError for a single array with an archive's suffix.
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise _BadFile(f"not a NumPy archive ({one_line(error, 300)})") from error
    params: Params = {}
    for name, values in flat.items():
        layer, _, kind = name.partition("/")
        params.setdefault(layer, {})[kind] = values
    return params


def _read_keras(file: Path) -> Params:
    model = _keras_model(weights=None)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model.load_weights(file)
    except Exception as error:  # h5py and Keras raise all kinds on a wrong file
        raise _BadFile(
            f"not the weights of Keras's VGG16 without its top ({one_line(error, 300)})"
        ) from error
    return from_keras(model)


def _download() -> Params:
    print("downloading VGG16's ImageNet weights (59 MB) from Keras ...", file=sys.stderr)
    try:
        model = _keras_model(weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception if the URL is unreachable
        raise UsageError(
            "config.loss.perceptual: the ImageNet weights of VGG16 cannot be downloaded"
            f" ({one_line(error, 300)}); {_REMEDY}"
        ) from error
    return from_keras(model)


def _keras_model(weights: str | None) -> Any:
    # Imported here because only runs with the perceptual loss need Keras.
    import tensorflow as tf  # noqa: PLC0415

    with contextlib.suppress(RuntimeError):  # TensorFlow is already in use, as in a notebook
        tf.config.set_visible_devices([], "GPU")
    # Keras prints a progress bar.
    with contextlib.redirect_stdout(io.StringIO()):
        return tf.keras.applications.VGG16(weights=weights, include_top=False)


def from_keras(model: Any) -> Params:
    """Extracts the parameters of a Keras VGG16 in the form that `load` returns."""
    params = {}
    for name in _layers():
        layer = model.get_layer(name)
        params[name] = {"kernel": np.asarray(layer.kernel), "bias": np.asarray(layer.bias)}
    return params


def _check(params: Mapping[str, Mapping[str, np.ndarray]]) -> Params:
    """Returns the parameters of the thirteen layers as float32, or raises _BadFile.

    Every array must be floating-point, finite and of the expected shape.
    """
    checked: Params = {}
    for layer, shapes in _layers().items():
        checked[layer] = {}
        for kind, shape in shapes.items():
            values = params.get(layer, {}).get(kind)
            if values is None:
                raise _BadFile(f"has no {layer}/{kind}")
            if values.shape != shape or not np.issubdtype(values.dtype, np.floating):
                raise _BadFile(
                    f"{layer}/{kind} is {values.dtype} {values.shape}, not float32 {shape}"
                )
            if not np.isfinite(values).all():
                raise _BadFile(f"{layer}/{kind} holds values that are not finite")
            checked[layer][kind] = values.astype(np.float32)
    return checked


def _write(archive: Path, params: Params) -> None:
    """Writes the archive atomically: other processes see all of it or nothing."""
    flat = {
        f"{layer}/{kind}": values
        for layer, kinds in params.items()
        for kind, values in kinds.items()
    }
    try:
        with files.replacing(archive) as temporary:
            np.savez(temporary, **flat)
    except OSError as error:
        raise UsageError(
            f"{archive}: VGG16's weights cannot be saved there ({error.strerror}): choose"
            " another cache folder with XDG_CACHE_HOME"
        ) from error
