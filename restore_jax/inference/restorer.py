"""Restores users' images with a trained model: arrays in, arrays of the same kind out."""

import collections
import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from restore_jax import batches, models
from restore_jax.checkpoints import trust_file, weights_file
from restore_jax.config import schema
from restore_jax.degradation import digital_gain, known_range
from restore_jax.degradation.known_range import KnownRange
from restore_jax.errors import UsageError
from restore_jax.inference import assessment, ensemble, pixels, sharded, tiling
from restore_jax.inference.assessment import Assessment
from restore_jax.trust.network import Trust, WithErrorBar

_FALLBACK_TILE = 256
# Networks that correct the colour of a tile by its global means see too little of a plain
# surface in smaller tiles: tiles of 64 px differed visibly from their neighbours, tiles of
# 128 px did not.
_MIN_DEFAULT_TILE = 128
_LOCAL_TILE = 512
# A batch has at most the pixels of eight images of the reports' size, for any tile. It has at
# most 32 tiles, to limit the number of batch sizes, each of which is compiled.
_MAX_PIXELS = 8 * 256 * 256
_MAX_TILES = 32


@dataclasses.dataclass(frozen=True)
class Options:
    """How images are restored; see `Restorer` for the fields.

    Raises:
        UsageError: for an invalid value.
    """

    tile: int
    overlap: int | None = None
    batch_size: int | None = None
    strength: float = 1.0
    self_ensemble: str = "none"
    white: int | None = None
    undo_gain: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, least in (
            ("tile", tiling.MIN_TILE), ("overlap", 0), ("batch_size", 1), ("white", 1)
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and name != "tile":
                continue
            if not isinstance(value, int | np.integer) or isinstance(value, bool):
                raise UsageError(f"{name}: {value!r} is not a whole number")
            if value < least:
                raise UsageError(f"{name}: {value} is too small; it must be at least {least}")
        if self.overlap is not None and self.overlap > self.tile // 2:
            raise UsageError(
                f"overlap: {self.overlap} is more than half a tile; make it at most "
                f"{self.tile // 2}"
            )
        strength = self.strength
        number = isinstance(strength, int | float | np.number) and not isinstance(
            strength, bool
        )
        if not number or not 0.0 <= strength <= 1.0:
            raise UsageError(f"strength: {strength!r} must lie in [0, 1]")
        if self.self_ensemble not in ensemble.ENSEMBLES:
            known = ", ".join(ensemble.ENSEMBLES)
            raise UsageError(f"self_ensemble: {self.self_ensemble!r} is not one of {known}")
        if not isinstance(self.undo_gain, bool):
            raise UsageError(f"undo_gain: {self.undo_gain!r} is not True or False")

    @property
    def cut(self) -> tuple[int, int, int]:
        """Tile, overlap and batch size; by default, the last two follow from the tile."""
        overlap = self.tile // 4 if self.overlap is None else self.overlap
        batch_size = self.batch_size or min(_MAX_TILES, max(1, _MAX_PIXELS // self.tile**2))
        return self.tile, overlap, batch_size


class Restorer:
    """A trained model, callable on images.

    Images are NumPy or JAX arrays:

    | shape | meaning |
    |---|---|
    | [H, W], [H, W, 1] | greyscale: restored as RGB with equal channels, then averaged |
    | [H, W, 3] | RGB |
    | [H, W, 4] | RGB and alpha, which is kept unchanged |
    | [B, H, W, C] | a batch of any of them, C as above |

    of dtype uint8 (0 to 255), uint16 (0 to 65535), or float16, float32 or float64 in [0, 1]. A
    list or tuple of images may mix sizes and dtypes. The result has the shape and dtype of the
    input, clipped to its range. H and W may be any number from 1.

    Images larger than `tile` are restored in overlapping tiles, see `tiling`. The pooling and
    attention of a model see only their tile, so that the result depends slightly on the tiling;
    a tile of the training size covers as much as the model was trained on. A side shorter than
    the tile is padded by reflection to a multiple of 32 and cropped afterwards. Measured with
    an SCA U-Net trained at 256×256, on six degraded photographs of MVTec AD:

    | image | tiles or padding | PSNR | whole image, unpadded | PSNR between the two |
    |---|---|---|---|---|
    | 512×512 | tiles of 256 | 25.22 dB | 25.23 dB | 55.8 dB |
    | 512×512 | tiles of 128 | 25.18 dB | 25.23 dB | 50.0 dB |
    | 225×225 | padded to 256×256 | 26.02 dB | 26.02 dB | 58.7 dB |
    | 200×200 | padded to 224×224 | 26.01 dB | 25.98 dB | 45.9 dB |

    Images are never resized here: for a model that was trained on downscaled photographs, the
    blur in photographs at their native size differs from that of its training.

    Args:
        model: an architecture of `restore_jax.models` that restores images.
        variables: variables for its `apply`.
        config: the configuration it was trained with; missing fields have their defaults.
        tile: side of the tiles in px, at least 32. None: the training's
            `config.data.image_size` or, if it was trained at native size,
            `config.data.crop_size`, but at least 128; 512 for a gain U-Net, whose tiles need
            not have the training's size.
        overlap: overlap of neighbouring tiles in px, at most half a tile. None: a quarter of
            the tile.
        batch_size: tiles restored at once. None: as many as have the pixels of eight 256×256
            images, at most 32. When memory runs out, this and then the tile are halved until it
            suffices.
        strength: weight of the restoration in a blend with the input: 1 is the restored image,
            0 the input.
        self_ensemble: "none"; "flips" averages the restorations of the image's flips that are
            consistent with the degradation of the training (up to four times the time); "all8"
            those of all flips and rotations by 90° (eight times).
        white: the white level of integer images, such as 4095 for 12 bits in uint16; the result
            keeps that range. None: the highest level of their dtype.
        undo_gain: divides the channels of uint8 images by their digital gain, as measured in
            their histograms (see `degradation.digital_gain`), so that their colours become
            those from before it. It only finds gains in photographs that have neither been
            resized nor compressed with loss since. None: as in the training.
        trust: whether each result is a pair: the restored image, and the half-width of the
            interval around each of its pixels that holds the true value with 90 %, float32
            [H, W], where 1 is white (see docs/trust.md).
        known: the noise and blur of the photographs of its training, for `assess`. None: the
            limits that follow from the degradation law of the configuration, if it has one.
        trust_map: the trained error bar that `trust` needs, as `load` finds it.

    Attributes:
        model, variables, config, trust_map: as given; the variables are on the default device.
        known: as given, or from the law.
        options: default options of a call.

    Raises:
        UsageError: for an invalid option.

    Examples:
        >>> import jax, numpy as np
        >>> from ml_collections import ConfigDict
        >>> from restore_jax import Restorer, models
        >>> config = ConfigDict({"model": {"name": "pexels_cnn", "widths": (2,)}})
        >>> model = models.create("pexels_cnn", widths=(2,))
        >>> variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))
        >>> restorer = Restorer(model, variables, config, tile=32)
        >>> grey = np.linspace(0, 65535, 40 * 50).reshape(40, 50).astype(np.uint16)
        >>> restored = restorer(grey)
        >>> restored.shape, restored.dtype
        ((40, 50), dtype('uint16'))
        >>> bool((restorer(grey, strength=0) == grey).all())
        True
        >>> restorer(np.full((8, 8, 3), 255.0))
        Traceback (most recent call last):
        ...
        ValueError: image: floats must lie in [0, 1], these range from 255 to 255; scale them

        A generator of images, restored in batches as they arrive:

        >>> images = (np.full((20, 16 + i), i, np.uint8) for i in range(3))
        >>> [restored.shape for restored in restorer.restore_many(images)]
        [(20, 16), (20, 17), (20, 18)]
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        config: ConfigDict,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
        strength: float = 1.0,
        self_ensemble: str = "none",
        white: int | None = None,
        undo_gain: bool | None = None,
        trust: bool = False,
        known: KnownRange | None = None,
        trust_map: Trust | None = None,
    ) -> None:
        self.model = model
        self.variables = jax.device_put(dict(variables))
        self.config = config
        self.known = known or known_range.of_config(config.get("data") or {})
        self.options = Options(
            _default_tile(model, config) if tile is None else tile,
            overlap,
            batch_size,
            strength,
            self_ensemble,
            white,
            schema.undoes_gain(config) if undo_gain is None else undo_gain,
            trust,
        )
        self.trust_map = trust_map
        self._restore = sharded.make_apply(model, self.variables)
        if trust_map is not None:
            bar = WithErrorBar(trust_map.model)
            self._add_bar = sharded.make_apply(bar, bar.wrapped(trust_map.variables))
        self._check_trust(self.options)
        # Kept between calls: if memory ran out for some sizes once, it would again.
        self._sizes: dict[tuple[int, int, int], tiling.Sizes] = {}
        self._before_batch: Callable[[float], None] | None = None

    def __repr__(self) -> str:
        """Returns the architecture, its number of parameters and the options."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.variables.get("params", {})))
        name = type(self.model).__name__
        return f"Restorer({name}, {count:,} parameters, {self.options})"

    def with_options(
        self, before_batch: Callable[[float], None] | None = None, **options: Any
    ) -> "Restorer":
        """Returns a restorer of the same model, and the same compiled programs.

        Args:
            before_batch: called before each batch of tiles with the share of the image that is
                restored, from 0 to 1; what it raises ends the call.
            **options: other defaults, as for a call.

        Raises:
            UsageError: for an unknown or invalid option.
        """
        other = copy.copy(self)
        other.options = self._chosen(options)
        other._before_batch = before_batch
        return other

    def __call__(self, image: Any, **options: Any) -> Any:
        """Restores an image, a batch of images, or a list of images.

        Args:
            image: an array as described above, or a list or tuple of them (without batches).
            **options: `tile`, `overlap`, `batch_size`, `strength`, `self_ensemble`,
                `white`, `undo_gain`, `trust`, only for this call.

        Returns:
            A NumPy array of the same shape and dtype; a list of them for a list or tuple. With
            `trust`, the pair of it and the half-widths; for a batch these are [B, H, W].

        Raises:
            ValueError: for anything else: a wrong number of axes or channels, another dtype,
                no pixels, floats outside [0, 1] or not finite.
            UsageError: for an unknown or invalid option.
            RunError: if memory runs out even for the smallest tile, or the model gives values
                that are not finite.
        """
        if isinstance(image, list | tuple):
            return list(self.restore_many(image, **options))
        white = options.get("white") or self.options.white
        array = pixels.checked(image, "image", batch=True, white=white)
        if array.ndim < 4:
            return next(self.restore_many([array], **options))
        restored, half_widths = np.empty_like(array), []
        for i, one in enumerate(self.restore_many(array, **options)):
            if isinstance(one, tuple):
                one, half_width = one
                half_widths.append(half_width)
            restored[i] = one
        return (restored, np.stack(half_widths)) if half_widths else restored

    def assess(self, image: Any, white: int | None = None) -> Assessment:
        """Compares an image with those that the model was trained for.

        Its noise and blur are estimated from the image alone; of a large one, from a window of
        1024 px each way. A model of a `config.data.image_size` knows images shrunk to it.

        Args:
            image: an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
            white: its white level; None: as for the restorer.

        Raises:
            ValueError: for anything else, as for a call.
        """
        white = white or self.options.white
        array = pixels.checked(image, "image", white=white)
        is_resized = bool((self.config.get("data") or {}).get("image_size"))
        return assessment.assess(array, white, self.known, is_resized)

    def restore_many(self, images: Iterable[Any], **options: Any) -> Iterator[Any]:
        """Restores images in order, with batches that span several images.

        Images are taken only as needed to fill a batch, so that the first results come early.

        Args:
            images: arrays [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of any sizes and dtypes;
                or `pixels.Levels`, to give each its own white level or to overwrite it.
            **options: as for a call.

        Yields:
            For each image, in order, an array of its shape and dtype; with `trust`, the pair of
            it and the half-widths.

        Raises:
            ValueError, UsageError, RunError: as for a call.
        """
        chosen = self._chosen(options)
        sizes = self._sizes.setdefault(chosen.cut, tiling.Sizes(*chosen.cut))
        data = self.config.get("data") or {}
        views = ensemble.symmetries(chosen.self_ensemble, data.get("degradation") or {})

        def apply(batch: np.ndarray, context: np.ndarray | None) -> np.ndarray | jax.Array:
            if self._before_batch is not None:
                while len(taken) > 1 and taken[0].share == 1.0:
                    taken.popleft()
                self._before_batch(taken[0].share)
            restored = ensemble.mean_over(views, self._restore, batch, context)
            return self._add_bar(batch, restored=restored) if chosen.trust else restored

        side = batches.CONTEXT_SIZE if models.takes_context(self.model) else None

        arrays = (_levels(image, i, chosen.white) for i, image in enumerate(images))
        if chosen.strength == 0.0 and not chosen.trust:
            return (array.copy() for array, *_ in arrays)
        taken: collections.deque[pixels.TiledImage] = collections.deque()

        def pictures() -> Iterator[pixels.TiledImage]:
            for array, white, in_place, gain in arrays:
                gain = _gain(array, gain) if chosen.undo_gain else None
                picture = pixels.TiledImage(array, chosen.strength, side, white, in_place, gain)
                if self._before_batch is not None:
                    taken.append(picture)
                yield picture

        done = tiling.restore(pictures(), apply, sizes)
        if chosen.trust:
            return ((picture.result, picture.half_width) for picture in done)
        return (picture.result for picture in done)

    def _chosen(self, options: Mapping[str, Any]) -> Options:
        _check_names(options)
        given = {name: value for name, value in options.items() if value is not None}
        chosen = dataclasses.replace(self.options, **given)
        self._check_trust(chosen)
        return chosen

    def _check_trust(self, options: Options) -> None:
        if options.trust and self.trust_map is None:
            raise UsageError(
                "trust: this model has no trust map, or that of another checkpoint or an "
                "earlier version; make one with restore-jax trust"
            )


def _gain(image: np.ndarray, measured: np.ndarray | None) -> np.ndarray:
    return digital_gain.of_photograph(image) if measured is None else measured


def _levels(image: Any, number: int, white: int | None) -> pixels.Levels:
    given = image if isinstance(image, pixels.Levels) else pixels.Levels(image, None)
    white = white if given.white is None else given.white
    array = pixels.checked(given.pixels, f"images[{number}]", white=white)
    return given._replace(pixels=array, white=white)


def load(
    path: str | os.PathLike[str], checkpoint: str | int = "best", **options: Any
) -> Restorer:
    """Loads a trained model.

    Nothing in the files is executed, and TensorFlow is not needed.

    Args:
        path: the workdir of a training; the folder of one of its checkpoints,
            `checkpoints/STEP`; a `.safetensors` file of `restore_jax.save_weights`; or, if
            there is no such path, a name from `restore_jax.models_available`.
        checkpoint: the checkpoint of a workdir: "best" (by validation SSIM), "latest" or a
            step.
        **options: those of `Restorer`: `tile`, `overlap`, `batch_size`, `strength`,
            `self_ensemble`, `white`, `undo_gain`, `trust`.

    Returns:
        The model, with its averaged parameters if the training kept an average.

    Raises:
        UsageError: for any other path, a file that is damaged or from another program, a
            checkpoint that does not exist, or an invalid option.

    Examples:
        >>> import pathlib, tempfile
        >>> import jax, numpy as np
        >>> from ml_collections import ConfigDict
        >>> import restore_jax
        >>> from restore_jax import models
        >>> config = ConfigDict({"model": {"name": "pexels_cnn", "widths": (2,)}})
        >>> model = models.create("pexels_cnn", widths=(2,))
        >>> variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = pathlib.Path(folder.name, "tiny.safetensors")
        >>> _ = restore_jax.save_weights(path, variables, config)
        >>> restorer = restore_jax.load(path, tile=32, strength=0.5)
        >>> restorer(np.zeros((9, 7, 3), np.float32)).shape
        (9, 7, 3)
        >>> folder.cleanup()
    """
    _check_names(options)
    model, variables, config = weights_file.read_model(path, checkpoint)
    text = weights_file.read_source_notes(path).get("known_range")
    known = known_range.read(text, str(path)) if text else None
    trust_map = trust_file.of_model(path, variables)
    return Restorer(model, variables, config, known=known, trust_map=trust_map, **options)


def _check_names(options: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(Options)]
    for name in options:
        if name not in known:
            raise UsageError(f"{name}: no such option; there are {', '.join(known)}")


def _default_tile(model: nn.Module, config: ConfigDict) -> int:
    """Returns the side of the images that a model was trained on, but at least 128 px.

    A model with a context input is otherwise purely convolutional and can use larger tiles, of
    which the overlaps are a smaller part.
    """
    if getattr(model, "takes_context", False):
        return _LOCAL_TILE
    data = config.get("data") or {}
    size = data.get("image_size") or data.get("crop_size") or _FALLBACK_TILE
    return max(_MIN_DEFAULT_TILE, size)
