"""Finds the image files that a user names, and determines the paths of their restorations."""

import collections
import functools
import glob
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from restore_jax.errors import UsageError

# The formats that every command reads, as in `Photograph.format`. New names get the first
# suffix.
SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "PNM": (".pnm", ".pgm", ".ppm", ".pbm"),
    "JP2": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
    "AVIF": (".avif",),
}
_KNOWN = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
# Folders that systems create among a user's: for snapshots, thumbnails and deleted files.
_SYSTEM_FOLDERS = frozenset(
    (
        "__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot",
        "$recycle.bin", "system volume information", "lost+found",
    )
)  # fmt: skip


def format_name(format: str) -> str:
    """Returns the format for a name or suffix such as "png", "JPEG", "jpg" or ".tif".

    Raises:
        UsageError: the format is unknown.
    """
    suffix = "." + format.lower().removeprefix(".")
    for name, suffixes in SUFFIXES.items():
        if suffix[1:] == name.lower() or suffix in suffixes:
            return name
    known = ", ".join(name.lower() for name in SUFFIXES)
    raise UsageError(f"--format={format}: not one of {known}")


def find(
    inputs: Sequence[str | os.PathLike[str]],
    format: str | None = None,
    exclude: str | os.PathLike[str] | None = None,
    passed_over: collections.Counter[str] | None = None,
) -> list[tuple[Path, Path]]:
    """Finds image files and names their outputs.

    An input that is a file is accepted whatever its suffix. A folder is searched recursively
    for files with the suffix of an image, except hidden ones and those in folders that systems
    create (thumbnails and recycle bins of network storage); links are followed. A glob pattern
    (`*`, `?`, `[ ]`, `**`) that is not itself an existing name stands for the files and
    folders it matches, filtered in the same way; quote it for the shell, so that any number of
    matches is possible.

    Outputs keep the path of their source relative to the input folder, or to the folder before
    the first wildcard of the pattern. If a format is given, they get its suffix. If two sources
    in a folder would then get the same name, those of another format keep their own suffix
    before it (`a.jpg.png` beside `a.png`).

    Args:
        inputs: files, folders and patterns.
        format: format of the outputs, in a form that `format_name` accepts; None for that of
            each source.
        exclude: the output folder; files in it are skipped where it lies below a folder or
            pattern of the inputs.
        passed_over: counter to which the files without the suffix of an image are added, by
            suffix.

    Returns:
        Pairs of a source and the relative path of its output, each source once, sorted by
        output. A folder that cannot be listed is included, so that `image_files.read` reports
        it.

    Raises:
        UsageError: an input does not exist or has no images, or an output would overwrite
            another one or an input.
    """
    name = None if format is None else format_name(format)
    output = None if exclude is None else os.path.realpath(exclude)
    found: dict[str, tuple[Path, Path]] = {}
    skipped: dict[str, str] = {}
    for given in inputs:
        has_images, others = False, dict[str, str]()
        for path, relative in _expand(os.fspath(given), output, others):
            has_images = True
            # Not resolved: two links to one file are two inputs.
            found.setdefault(os.path.abspath(path), (path, relative))  # noqa: PTH100
        if not has_images:
            besides = f", but {format_passed_over(_count_suffixes(others))}" if others else ""
            raise UsageError(f"{os.fspath(given)!r}: there are no images in it{besides}")
        skipped |= others
    if passed_over is not None:
        passed_over.update(_count_suffixes(skipped))
    return _name_outputs(list(found.values()), name, output)


def _count_suffixes(others: dict[str, str]) -> collections.Counter[str]:
    return collections.Counter(others.values())


def format_passed_over(suffixes: collections.Counter[str]) -> str:
    """Formats the number of files passed over by suffix: `3 .heic, 1 .txt`."""
    counted = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in counted)


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is hidden or was created by a system, by its name."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def is_image(path: Path) -> bool:
    """Returns whether a file has the suffix of a supported format."""
    return path.suffix.lower() in _KNOWN


def walk(folder: Path) -> Iterator[Path]:
    """Yields the images in a folder, recursively and sorted; selected as `find` does.

    A folder that cannot be listed is yielded itself, so that reading it reports the error.
    """
    return _walk(folder, None, {})


def name_without_suffix(path: Path, folder: Path) -> str:
    """Returns the path of an image below a folder, without its suffix, to match it by.

    The name is in Unicode's composed form (NFC), whatever the file system uses: a folder that
    was copied from macOS may have the same names in decomposed form.
    """
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


def _expand(
    given: str, output: str | None, others: dict[str, str]
) -> Iterator[tuple[Path, Path]]:
    """Yields the image files of one input, with their paths relative to its folder.

    Args:
        given: a file, folder or pattern.
        output: the resolved path of the output folder, if any.
        others: receives the suffixes of the files that are not images, by absolute path.

    Raises:
        UsageError: nothing matches the input, or it is the output folder.
    """
    try:
        path = Path(given).expanduser()
        exists = bool(given) and os.path.lexists(path)
        base, wildcards = (path, ()) if exists or not given else _before_wildcards(path)
        matches = _matches(base, wildcards) if wildcards else []
        is_folder = exists and path.is_dir()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # RuntimeError: unknown home of `~user`
        raise UsageError(f"{given!r}: cannot be read: {error}") from error
    if exists and not is_folder:
        yield path, Path(path.name)
        return
    if not exists and not matches:
        raise UsageError(f"{given!r}: no such file or folder, and no match as a pattern")
    if output is not None:
        real = os.path.realpath(base)
        if real == output:
            raise UsageError(
                f"--output: is the folder of the input {given!r}; choose another one"
            )
        if not _inside(output, real):
            output = None
    resolve = _cached_realpath()
    for match in [path] if exists else sorted(matches, key=lambda path: path.parts):
        relative = match.relative_to(base)
        if any(map(is_hidden, relative.parts)):
            continue
        if match.is_dir():
            yield from ((file, file.relative_to(base)) for file in _walk(match, output, others))
        elif output and _inside(resolve(os.fspath(match)), output):
            continue
        elif is_image(match):
            yield match, relative
        else:
            _add(others, match)


def _before_wildcards(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """Splits a pattern into the folder before its first wildcard and the remaining parts."""
    base = Path()
    for i, part in enumerate(pattern.parts):
        if glob.has_magic(part) and not os.path.lexists(base / part):
            return base, pattern.parts[i:]
        base /= part
    return base, ()


def _matches(base: Path, parts: Sequence[str]) -> set[Path]:
    """Returns the paths below a folder that match a pattern.

    The pattern is matched part by part, so that an existing name with brackets stands for
    itself: `scans [2024]/*.png`.
    """
    found = {base}
    for i, part in enumerate(parts):
        below: set[Path] = set()
        for folder in found:
            if part != "**" and os.path.lexists(folder / part):
                below.add(folder / part)
            elif glob.has_magic(part):
                # Parts before the last can only match folders.
                tail = "" if i == len(parts) - 1 else os.sep
                pattern = f"{glob.escape(str(folder))}{os.sep}{part}{tail}"
                below.update(map(Path, glob.iglob(pattern, recursive=True)))  # noqa: PTH207
        found = below
    return found


def _add(others: dict[str, str], path: Path) -> None:
    """Adds the suffix of a file that is not an image to `others`, by absolute path."""
    others[os.path.abspath(path)] = path.suffix.lower()  # noqa: PTH100


def _inside(real: str, folder: str) -> bool:
    """Returns whether a resolved path is a folder or lies below it."""
    return real == folder or real.startswith(folder.rstrip(os.sep) + os.sep)


def _walk(
    folder: Path,
    output: str | None,
    others: dict[str, str],
    above: frozenset[str] = frozenset(),
) -> Iterator[Path]:
    """Yields the images in a folder, recursively; `above` are the resolved folders it is in."""
    real = os.path.realpath(folder)
    if real in above or (
        output and _inside(real, output)
    ):  # a link to a folder above, or the output folder
        return
    try:
        shown = (entry for entry in folder.iterdir() if not is_hidden(entry.name))
        entries = [
            (entry, entry.is_dir()) for entry in sorted(shown, key=lambda entry: entry.name)
        ]
    except OSError:
        yield folder
        return
    for entry, is_folder in entries:
        if is_folder:
            yield from _walk(entry, output, others, above | {real})
        elif is_image(entry):
            yield entry
        else:
            _add(others, entry)


def _name_outputs(
    found: list[tuple[Path, Path]], name: str | None, output: str | None
) -> list[tuple[Path, Path]]:
    """Names the outputs of the sources that were found, see `find`.

    Args:
        found: pairs of a source and its relative path.
        name: format of the outputs; None for that of each source.
        output: the resolved path of the output folder, if any.
    """
    plain = [_renamed(relative, name, keep=False) for _, relative in found]
    shared: dict[Path, set[Path]] = {}
    for wanted, (_, relative) in zip(plain, found, strict=True):
        shared.setdefault(wanted, set()).add(relative)
    resolve = _cached_realpath()
    sources = {resolve(os.fspath(path)) for path, _ in found}
    taken: dict[Path, Path] = {}
    for wanted, (path, relative) in zip(plain, found, strict=True):
        if len(shared[wanted]) > 1:
            wanted = _renamed(relative, name, keep=True)
        if wanted in taken:
            raise UsageError(
                f"{taken[wanted]} and {path} would both become {wanted}; "
                "give the folder that they share as the input, or restore them in separate runs"
            )
        if output is not None and resolve(f"{output}{os.sep}{wanted}") in sources:
            raise UsageError(f"--output: {wanted} in it is an input; choose another folder")
        taken[wanted] = path
    return [(taken[wanted], wanted) for wanted in sorted(taken, key=lambda path: path.parts)]


def _cached_realpath() -> Callable[[str], str]:
    """Returns a variant of `os.path.realpath` that resolves each folder only once."""
    folder_realpath = functools.cache(os.path.realpath)

    def resolve(path: str) -> str:
        folder, name = os.path.split(path)
        if name in ("", os.curdir, os.pardir) or os.path.islink(path):  # noqa: PTH114
            return os.path.realpath(path)
        return os.path.join(folder_realpath(folder), name)  # noqa: PTH118

    return resolve


def _renamed(relative: Path, name: str | None, keep: bool) -> Path:
    """Gives a path the suffix of a format, instead of the suffix of another or after it."""
    if name is None or relative.suffix.lower() in SUFFIXES[name]:
        return relative
    if keep or not is_image(relative):
        return relative.with_name(relative.name + SUFFIXES[name][0])
    return relative.with_suffix(SUFFIXES[name][0])
