"""Fits the degradation law to photographs of a material; writes it to a file, with a page."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from restore_jax import files
from restore_jax.degradation import (
    calibration,
    definition,
    estimate,
    fitted_law,
    law_file,
    native_size,
    shared_noise,
)
from restore_jax.errors import UsageError
from restore_jax.image_io import image_files, image_paths, limits
from restore_jax.image_io.photograph import to_dtype
from restore_jax.report import calibration_page
from restore_jax.report.forms import counted

MOST = 10
"""Maximum number of pairs or photographs that are used, spread over the folder."""

# Number of crops in the page, and their side in px, at which a page shows unscaled pixels.
_SHOWN, _CROP = 3, 128

_LAYOUT = "folders degraded and clean with files of the same names"


class Photographs(NamedTuple):
    """A pair in grey levels 0…255, float32 [H, W, 3]; `clean` is None if it is unknown."""

    name: str
    degraded: np.ndarray
    clean: np.ndarray | None


def calibrate(config: ConfigDict, output: pathlib.Path, overwrite: bool = False) -> str:
    """Fits a law to the pairs or the degraded photographs of `config.data.root`.

    Args:
        config: only `data` is used: `name` is "pairs" or, for degraded photographs without
            clean ones, "clean".
        output: the file of the law, .json; a page of the same name is written next to it.
        overwrite: whether existing files are replaced.

    Returns:
        The fitted law as text, several lines.

    Raises:
        UsageError: photographs cannot be read or fitted, or an output exists or cannot be
            written.
    """
    if config.data.name not in ("pairs", "clean"):
        raise UsageError(
            f"configs/….py:{config.data.name}: calibrating takes pairs, or clean for degraded "
            "photographs alone"
        )
    page = output.with_suffix(".html")
    if output.suffix != ".json":
        raise UsageError(f"--output={output}: give a file that ends in .json")
    for path in (output, page):
        if path.exists() and not overwrite:
            raise UsageError(f"--output={path}: exists; take another name, or give --overwrite")
    root = _root(config.data.root)
    max_pixels = config.data.get("max_megapixels", limits.MAX_MEGAPIXELS) * 1_000_000
    read = _read_pairs if config.data.name == "pairs" else _read_alone
    photographs = read(root, max_pixels, config.data.get("white", 0))
    fit = _fit_pairs if config.data.name == "pairs" else _fit_alone
    found = fit(photographs)
    content = {
        "law": dict(found.law),
        "intervals": dict(found.intervals),
        "unknown": dict(found.unknown),
        "residual": dict(found.residual),
        "images": len(photographs),
    }
    law_file.write(output, content)
    try:
        files.write_text(page, _page(root.name, output, content, photographs))
    except OSError as error:
        raise UsageError(f"--output={page}: cannot be written ({error.strerror})") from error
    return format_found(found, len(photographs), output, page)


def format_found(
    found: fitted_law.Found, count: int, output: pathlib.Path, page: pathlib.Path
) -> str:
    """Formats a fitted law for a terminal, one line per field."""
    lines = [counted(count, "photograph")]
    for name, value in found.law.items():
        if name in found.unknown:
            lines.append(f"  {name:15} unknown: {found.unknown[name]}")
        elif name in found.intervals:
            low, high = found.intervals[name]
            shown = " to ".join(f"{end:.4g}" for end in dict.fromkeys(value))
            lines.append(f"  {name:15} {shown} (90 %: {low:.4g} to {high:.4g})")
        elif name in ("blur", "noise", "quantise"):
            lines.append(f"  {name:15} {value if isinstance(value, str) else ', '.join(value)}")
    lines += [f"  residual {name}: {value:.3f}" for name, value in found.residual.items()]
    lines.append(f"law: {output} (--config.data.degradation.file={output}); page: {page}")
    return "\n".join(lines)


def _root(given: str) -> pathlib.Path:
    if not given.strip():
        raise UsageError("config.data.root: is empty; name the folder of the photographs")
    root = pathlib.Path(given).expanduser()
    if not root.is_dir():
        raise UsageError(f"config.data.root={given!r}: there is no such folder")
    return root


def _read_pairs(root: pathlib.Path, max_pixels: int, white: int) -> list[Photographs]:
    """Reads pairs from `{degraded,clean}` in the root, or in its folders train and val."""
    found: dict[str, tuple[pathlib.Path, pathlib.Path]] = {}
    for folder in (root, root / "train", root / "val"):
        both = [folder / name for name in ("degraded", "clean")]
        if all(path.is_dir() for path in both):
            degraded, clean = map(_listed, both)
            if lone := sorted(degraded.keys() ^ clean.keys()):
                raise UsageError(
                    f"config.data.root={str(root)!r}: {lone[0]} has no partner; there must be "
                    f"{_LAYOUT}"
                )
            prefix = "" if folder == root else f"{folder.name}/"
            found |= {prefix + key: (degraded[key], clean[key]) for key in degraded}
    if not found:
        raise UsageError(f"config.data.root={str(root)!r}: no pairs; there must be {_LAYOUT}")
    paths = [path for both in found.values() for path in both]
    white = white or image_files.find_white("pairs", paths, max_pixels)
    pairs = []
    for name in _spread(list(found)):
        degraded, clean = (_levels(path, max_pixels, white) for path in found[name])
        if degraded.shape != clean.shape:
            sizes = " and ".join(f"{i.shape[1]}x{i.shape[0]}" for i in (degraded, clean))
            raise UsageError(f"{found[name][0]}: the pair's sizes differ: {sizes} px")
        pairs.append(Photographs(name, degraded, clean))
    return pairs


def _read_alone(root: pathlib.Path, max_pixels: int, white: int) -> list[Photographs]:
    found = _listed(root)
    if not found:
        raise UsageError(f"config.data.root={str(root)!r}: there are no images; add some")
    white = white or image_files.find_white("clean", list(found.values()), max_pixels)
    return [
        Photographs(name, _levels(found[name], max_pixels, white), None)
        for name in _spread(list(found))
    ]


def _listed(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Lists the images in a folder and its subfolders, by `name_without_suffix`."""
    found: dict[str, pathlib.Path] = {}
    for path in image_paths.walk(folder):
        key = image_paths.name_without_suffix(path, folder)
        if key in found:
            raise UsageError(
                f"{path}: has the same name as {found[key].name}; remove one of them"
            )
        found[key] = path
    return found


def _spread(names: list[str]) -> list[str]:
    """Selects at most `MOST` names, evenly spaced."""
    places = np.unique(np.linspace(0, len(names) - 1, MOST).round().astype(int))
    return [names[place] for place in places]


def _levels(path: pathlib.Path, max_pixels: int, white: int) -> np.ndarray:
    """Reads a photograph as integer grey levels 0…255, float32 [H, W, 3]."""
    try:
        photograph = image_files.read(path, max_pixels)
    except image_files.ImageFileError as error:
        # The limit has another name here than in restoring.
        line = str(error).replace("--max_megapixels", "config.data.max_megapixels")
        raise UsageError(line) from error
    pixels, level = photograph.pixels, photograph.white
    if pixels.dtype == np.uint16:
        level = white
        if (highest := int(pixels.max())) > white:
            raise UsageError(f"config.data.white: {white:,}, but {path} reaches {highest:,}")
    levels = to_dtype(pixels, np.dtype(np.uint8), level).astype(np.float32)
    if min(levels.shape[:2]) < calibration.MIN_SIZE:
        raise UsageError(
            f"{path}: {levels.shape[1]}x{levels.shape[0]} px is too small; at least "
            f"{calibration.MIN_SIZE} px are needed each way"
        )
    return levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=-1)


def _fit_pairs(pairs: Sequence[Photographs]) -> fitted_law.Found:
    fits = []
    for number, pair in enumerate(pairs, 1):
        print(f"{number}/{len(pairs)} {pair.name}", flush=True)
        assert pair.clean is not None
        try:
            fits.append(calibration.fit_pair(pair.clean, pair.degraded))
        except ValueError as error:
            raise UsageError(
                f"{pair.name}: {error}; take a pair that shows something"
            ) from error
    return fitted_law.of_pairs(fits)


def _fit_alone(photographs: Sequence[Photographs]) -> fitted_law.Found:
    noise, blur, shared = [], [], []
    for number, photograph in enumerate(photographs, 1):
        print(f"{number}/{len(photographs)} {photograph.name}", flush=True)
        shared.append(shared_noise.of_photograph(photograph.degraded))
        try:
            levels = estimate.noise(photograph.degraded)
        except ValueError as error:
            raise UsageError(f"{photograph.name}: {error}; leave it out") from error
        noise += [levels.channel(c) for c in range(3)]
        blur.append(estimate.blur(photograph.degraded, levels))
    return fitted_law.of_photographs(noise, blur, shared)


def _page(
    source: str,
    output: pathlib.Path,
    content: Mapping[str, Any],
    photographs: Sequence[Photographs],
) -> str:
    """Renders the page of a law: its noise, its blur, and examples of it."""
    known = {name: value for name, value in content["law"].items() if value is not None}
    law = definition.law_from_config({"preset": "none"} | known)
    middle = definition.law_from_config(
        {"preset": "none", "blur": law.blur[0]}
        | {
            name: (sum(getattr(law, name)) / 2,) * 2
            for names in calibration.PARAMETERS.values()
            for name in names
        }
    )
    levels = np.linspace(0, 255, 52)
    noise = levels, *fitted_law.noise_curve(known, levels)
    kernel = np.asarray(native_size.draw_kernel(jax.random.key(0), middle))
    return calibration_page.render(
        source, str(output), content, noise, kernel,
        [_crop(one, law, number) for number, one in enumerate(photographs[:_SHOWN])],
    )  # fmt: skip


def _crop(photographs: Photographs, law: definition.Law, number: int) -> calibration_page.Crop:
    """Crops the centre of a pair, and degrades the clean crop by the law."""
    shape = photographs.degraded.shape[:2]
    length = min(_CROP, *shape)
    top, left = ((whole - length) // 2 for whole in shape)
    side = slice(top, top + length), slice(left, left + length)
    degraded, clean = photographs.degraded[side], photographs.clean
    if clean is None:
        return calibration_page.Crop(photographs.name, degraded)
    reach = native_size.margin(law)
    window = np.pad(clean, [(reach, reach), (reach, reach), (0, 0)], mode="reflect")
    around = tuple(slice(part.start, part.stop + 2 * reach) for part in side)
    simulated = native_size.degrade(jax.random.key(number), window[around], law)
    return calibration_page.Crop(photographs.name, degraded, clean[side], np.asarray(simulated))
