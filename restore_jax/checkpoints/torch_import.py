"""Imports published PyTorch weights as parameters of this project's models.

Sources of the tensors' names: the releases of the SCA U-Net (Sarvesan and Mendhe, IIT Madras
2024) and of the RCAN-like network (Mahesh, Malapaka, Garimella and Singh, IIT Madras 2024).
Files are read without executing anything in them, since they may come from a stranger.
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from restore_jax.checkpoints import checkpoint
from restore_jax.config import workdir
from restore_jax.errors import UsageError
from restore_jax.learner import adversarial
from restore_jax.learner.state import TrainState, make_learner

Tensors = dict[str, np.ndarray]

# Keys under which training scripts store the tensors, beside the optimizer and the epoch.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "params", "net")
# Prefixes that DataParallel and torch.compile add to every name.
_PREFIXES = ("module.", "_orig_mod.")

# Names listed in an error, per kind of mismatch.
_MAX_LISTED = 3


def _sca_unet_name(path: tuple[str, ...]) -> str:
    """Returns the published name of an `SCAUNet` parameter, without its last part."""
    block = path[0]
    if block == "output":
        return "conv_last"
    if block == "non_local":
        return f"nl_block.{path[1]}"
    if block.startswith("attention"):
        layer = {
            "spatial": "spatial_attention",
            "squeeze": "channel_attention.1",
            "excite": "channel_attention.3",
        }[path[1]]
        return f"att{block.removeprefix('attention')}.{layer}"
    layer = {"conv1": "conv_block.0", "conv2": "conv_block.2", "shortcut": "residual_conv"}
    return f"dconv_{block}.{layer[path[1]]}"


def _rcan_name(path: tuple[str, ...]) -> str:
    """Returns the published name of an `RCAN` parameter, without its last part."""
    block = path[0]
    if block in ("input", "output"):
        return {"input": "initial_conv", "output": "final_conv"}[block]
    if path[1] == "attention":
        layer = {"squeeze": "channel_attention.1", "excite": "channel_attention.3"}[path[2]]
    else:
        layer = path[1]
    return f"res_blocks.{int(block.removeprefix('block')) - 1}.{layer}"


_NAMES: dict[str, Callable[[tuple[str, ...]], str]] = {
    "sca_unet": _sca_unet_name,
    "rcan": _rcan_name,
}


def read_tensors(path: pathlib.Path) -> Tensors:
    """Reads the tensors of a file by name.

    Unwraps what training scripts store ("state_dict", "model", …) and strips the prefixes of
    DataParallel and torch.compile.

    Args:
        path: `.pth` or `.pt` (needs PyTorch), `.safetensors` or `.npz`.

    Returns:
        Arrays by PyTorch's names; floating-point arrays as float32.

    Raises:
        UsageError: for a file that is missing, damaged, of an unsupported type, holds anything
            but tensors, or needs a package that is not installed.
    """
    readers = {
        ".pth": _read_pickle,
        ".pt": _read_pickle,
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
    }
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: unsupported file type; supported are {', '.join(readers)}")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        found = readers[path.suffix.lower()](path)
    except ImportError as error:
        raise UsageError(
            f"{path}: needs the package {error.name}; pip install {error.name}, or "
            "save the tensors as .npz"
        ) from error
    tensors = _unwrapped(found, path)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _refused(path: pathlib.Path, reader: str, error: Exception) -> UsageError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return UsageError(
        f"{path}: {reader} refuses it ({reason[:150]}); give an undamaged file of "
        "plain tensors (a state_dict)"
    )


def _read_pickle(path: pathlib.Path) -> Any:
    # Imported here: PyTorch takes seconds to import, and only these files need it.
    import torch  # noqa: PLC0415

    def as_arrays(found: Any) -> Any:
        if isinstance(found, torch.Tensor):
            found = found.detach()
            return (found.float() if found.is_floating_point() else found).numpy()
        if isinstance(found, Mapping):
            return {str(name): as_arrays(value) for name, value in found.items()}
        return found

    try:
        return as_arrays(torch.load(path, map_location="cpu", weights_only=True))
    # An arbitrary file can make the parser raise anything.
    except Exception as error:
        raise _refused(path, "torch.load(weights_only=True)", error) from error


def _read_safetensors(path: pathlib.Path) -> Any:
    import safetensors.numpy  # noqa: PLC0415

    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:
        raise _refused(path, "safetensors", error) from error


def _read_npz(path: pathlib.Path) -> Any:
    try:
        # Opened here, since NumPy does not close a file that it fails to parse.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:
        raise _refused(path, "numpy.load(allow_pickle=False)", error) from error


def _unwrapped(found: Any, path: pathlib.Path) -> Tensors:
    """Returns the mapping of tensors inside a file's content."""
    while isinstance(found, Mapping):
        inner = [key for key in _WRAPPERS if isinstance(found.get(key), Mapping)]
        if not inner:
            break
        found = found[inner[0]]
    if not isinstance(found, Mapping) or not found:
        raise UsageError(f"{path}: holds no named tensors; give a state_dict")
    for name, value in found.items():
        if not isinstance(value, np.ndarray):
            raise UsageError(
                f"{path}: {name!r} is not a tensor but {type(value).__name__}; give "
                "a state_dict"
            )
    return {
        name: value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for name, value in found.items()
    }


def to_params(
    name: str, tensors: Mapping[str, np.ndarray], model: nn.Module, source: str = "weights"
) -> dict[str, Any]:
    """Converts published weights to the parameters of a model.

    Args:
        name: the model's name, "sca_unet" or "rcan".
        tensors: from `read_tensors`; convolution kernels are [O, I, kH, kW].
        model: the architecture, which determines the expected shapes.
        source: what error messages call the tensors.

    Returns:
        The "params" of `model.apply`, float32; convolution kernels are [kH, kW, I, O].

    Raises:
        UsageError: for tensors that are missing, unexpected, of the wrong shape or not finite.
    """
    if name not in _NAMES:
        raise UsageError(
            f"config.model.name: weights can only be imported for {' and '.join(_NAMES)}, not "
            f"for {name}"
        )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    flat = flax.traverse_util.flatten_dict(shapes["params"])
    released = {
        path: f"{_NAMES[name](path)}.{'weight' if path[-1] == 'kernel' else 'bias'}"
        for path in flat
    }
    missing = [torch_name for torch_name in released.values() if torch_name not in tensors]
    unexpected = [given for given in tensors if given not in released.values()]
    params, wrong = {}, []
    for path, leaf in flat.items():
        if released[path] in missing:
            continue
        tensor = tensors[released[path]]
        if len(leaf.shape) == 2 and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]  # their 1×1 convolution is a dense layer here
        value = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        if value.shape != leaf.shape:
            wrong.append(f"{released[path]} {list(tensors[released[path]].shape)}")
        params[path] = value
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_MAX_LISTED])}"
        f"{', …' * (len(names) > _MAX_LISTED)})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape", wrong),
        )
        if names
    ]
    if problems:
        raise UsageError(
            f"{source}: not the weights of this {name}, judging by its tensors: "
            f"{'; '.join(problems)}{_hint(tensors)}"
        )
    for path, value in params.items():
        if not np.isfinite(value).all():
            raise UsageError(
                f"{source}: {released[path]} holds values that are not finite; take another "
                "file"
            )
    return flax.traverse_util.unflatten_dict(
        {path: jnp.asarray(value, jnp.float32) for path, value in params.items()}
    )


def _hint(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns a hint at the model that the tensors seem to belong to, for an error message."""

    def channels(name: str) -> int:
        return int(tensors[name].shape[0]) if tensors[name].ndim else 0

    if "initial_conv.weight" in tensors:
        blocks = {m[1] for name in tensors if (m := re.match(r"res_blocks\.(\d+)\.", name))}
        return (
            f"; they look like those of rcan, with --config.model.width="
            f"{channels('initial_conv.weight')} --config.model.blocks={len(blocks)}"
        )
    if "nl_block.theta.weight" in tensors:
        firsts = sorted(
            name
            for name in tensors
            if re.fullmatch(r"dconv_down\d\.conv_block\.0\.weight", name)
        )
        widths = tuple(channels(name) for name in firsts)
        return f'; they look like those of sca_unet, with --config.model.widths="{widths}"'
    return "; they look like those of no known model"


def import_weights(config: ConfigDict, path: pathlib.Path, folder: pathlib.Path) -> str:
    """Makes a workdir from published weights, for evaluation, restoration or fine-tuning.

    Its checkpoint is that of step 1, within the first epoch, because step 0 stands for no
    checkpoint: a training in the workdir fine-tunes the weights and skips the first batch.

    Args:
        config: all fields; `config.model` is the model.
        path: the weights, see `read_tensors`.
        folder: the workdir to make.

    Returns:
        A line for the user on what was made.

    Raises:
        UsageError: for an invalid file or field, or a workdir that has a checkpoint.
    """
    workdir.check_finite(config)
    learner = make_learner(config)
    params = to_params(config.model.name, read_tensors(path), learner.model, str(path))
    if workdir.is_claimed(folder, config) and checkpoint.latest_step(folder):
        raise UsageError(f"{folder}: has a checkpoint already; take another workdir")
    adversary = None
    if learner.adversary is not None:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)  # as `create_state` does
        adversary = adversarial.create(learner.adversary, key)
    state = TrainState(
        step=jnp.ones((), jnp.int32),
        params=params,
        batch_stats={},
        opt_state=learner.optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if learner.ema_decay else None,
        adversary=adversary,
    )
    with workdir.held(folder):
        workdir.claim(folder, config)
        with checkpoint.open_manager(folder) as manager:
            # Not validated yet, so with the lowest possible SSIM.
            checkpoint.save(manager, state, {"epoch": 0, "ssim": -1.0, "weights": path.name})
    line = f"{folder}: {path.name} imported as {config.model.name}"
    if config.model.name != "sca_unet":
        return line
    # Both variants have the same tensors, so the file does not show which one it belongs to.
    note = (
        "; the published file needs --config.model.variant=released"
        if config.model.variant == "report"
        else ""
    )
    return f"{line}, variant {config.model.variant}{note}"
