"""Which image files are restored, and where to."""

import collections
import dataclasses
import hashlib
import pathlib
import tempfile
from collections.abc import Iterable, Sequence

from restore_jax.errors import UsageError
from restore_jax.image_io import image_files, image_paths


@dataclasses.dataclass(frozen=True)
class Item:
    """One image to restore.

    Attributes:
        source: path of the image.
        target: path of its restoration.
        relative: `target`, relative to the output folder.
    """

    source: pathlib.Path
    target: pathlib.Path
    relative: pathlib.Path


def plan(
    inputs: Sequence[str],
    output: pathlib.Path,
    file_format: str | None = None,
    shard: str | None = None,
    passed_over: collections.Counter[str] | None = None,
) -> list[Item]:
    """Lists the images to restore.

    Args:
        inputs: files, folders (searched recursively) and globs.
        output: the output folder; files in it are not used as inputs.
        file_format: format of all restorations, e.g. "png"; None: that of each input.
        shard: "I/N" for the I-th of N parts; each image belongs to one part, by a hash of its
            output path. None: all images.
        passed_over: counter to which the files that are not images are added, by suffix.

    Raises:
        UsageError: as `image_paths.find`, or for an invalid shard.
    """
    part, parts = _parse_shard(shard)
    return [
        Item(source, output / relative, relative)
        for source, relative in image_paths.find(inputs, file_format, output, passed_over)
        if parts == 1 or _hash(relative) % parts == part - 1
    ]


def check_beside(items: Sequence[Item], files: Iterable[tuple[pathlib.Path, Item]]) -> None:
    """Checks that no restoration has the name of a file that is written beside another one.

    Args:
        items: from `plan`.
        files: the files beside restorations, with the item that each belongs to.

    Raises:
        UsageError: with both images.
    """
    targets = {item.target: item for item in items}
    for path, item in files:
        if (other := targets.get(path)) is not None:
            raise UsageError(
                f"{other.source}: would be restored to {path}, where a picture of "
                f"{item.source} is to be; leave out --trust and --side_by_side, or restore "
                "them one after the other into different folders"
            )


def check_output(output: pathlib.Path) -> None:
    """Creates the output folder and checks that it is writable.

    Raises:
        UsageError: if it is not, before any image has been restored in vain, or if it looks
            like the name of an image.
    """
    if image_paths.is_image(output) and not output.is_dir():
        raise UsageError(
            f"--output={output}: looks like an image, but is the folder for the restorations, "
            "which keep their names; name a folder"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise UsageError(
            f"--output={output}: cannot be written to: {error.strerror}; name another folder"
        ) from error


def pixel_limit(megapixels: int | None) -> int:
    """Returns the largest number of pixels of an image, from `--max_megapixels`.

    Raises:
        UsageError: if it is below 1.
    """
    if megapixels is None:
        return image_files.MAX_PIXELS
    if megapixels < 1:
        raise UsageError(f"--max_megapixels={megapixels}: must be at least 1")
    return megapixels * 1_000_000


def _parse_shard(shard: str | None) -> tuple[int, int]:
    if shard is None:
        return 1, 1
    first, _, second = shard.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UsageError(f"--shard={shard}: give I/N, the I-th of N parts, for example 1/4")
    return int(first), int(second)


def _hash(relative: pathlib.Path) -> int:
    return int.from_bytes(hashlib.sha256(relative.as_posix().encode()).digest()[:8])
