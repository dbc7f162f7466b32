"""Which image files a person means, and what their restored ones are called."""

import collections
import functools
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from restore_jax.errors import UsageError

# The formats that every command reads, as in `Photograph.format`. The first suffix is what a
# new name gets.
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
# Folders that systems keep beside a user's: of copies, thumbnails and what was deleted.
_OF_SYSTEMS = frozenset(
    (
        "__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot",
        "$recycle.bin", "system volume information", "lost+found",
    )
)  # fmt: skip


def format_name(format: str) -> str:
    """Returns the format of a name such as "png", "JPEG", "jpg" or ".tif".

    Raises:
        UsageError: there is none of that name.
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

    A file that is named is taken whatever its name. In a folder and below it are all those with
    the suffix of an image, but no hidden ones and none in folders that systems make (thumbnails
    and recycle bins of network storage); links are followed. A pattern (`*`, `?`, `[ ]`,
    `**`) that names nothing by itself stands for the files and folders it matches, with the
    same choice; quote it, and it is no matter how many there are. Outputs lie as their sources
    do below the folder, or below where the pattern's first wildcard is. Where a format is asked
    for, they have its suffix; of two sources in one folder that would then have one name, those
    of another format keep their own suffix before it (`a.jpg.png` beside `a.png`).

    Args:
        inputs: files, folders and patterns.
        format: that of the outputs, as `format_name` takes it; that of each source if None.
        exclude: the folder of the outputs: what is in it is not read where it lies below a
            folder or pattern of the inputs.
        passed_over: gains the number of files without the suffix of an image, by suffix.

    Returns:
        Paths and relative paths of their outputs, each path once, sorted by output. A folder
        that cannot be listed is there, too, for `image_files.read` to tell.

    Raises:
        UsageError: an input is not there, has no images, or an output would take the place of
            another one or of an input.
    """
    name = None if format is None else format_name(format)
    output = None if exclude is None else os.path.realpath(exclude)
    found: dict[str, tuple[Path, Path]] = {}
    all_others: dict[str, str] = {}
    for given in inputs:
        some, others = False, dict[str, str]()
        for path, relative in _expand(os.fspath(given), output, others):
            some = True
            # Not resolved: two links to one file are two inputs.
            found.setdefault(os.path.abspath(path), (path, relative))  # noqa: PTH100
        if not some:
            besides = f", but {format_passed_over(_count(others))}" if others else ""
            raise UsageError(
                f"--input={os.fspath(given)!r}: there are no images in it{besides}"
            )
        all_others |= others
    if passed_over is not None:
        passed_over.update(_count(all_others))
    return _name_outputs(list(found.values()), name, output)


def _count(others: dict[str, str]) -> collections.Counter[str]:
    return collections.Counter(others.values())


def format_passed_over(suffixes: collections.Counter[str]) -> str:
    """Formats how many files of which suffixes were passed over: `3 .heic, 1 .txt`."""
    counted = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in counted)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, or kept by a system."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def is_image(path: Path) -> bool:
    """Whether a file has the suffix of a format that is read."""
    return path.suffix.lower() in _KNOWN


def _expand(
    given: str, output: str | None, others: dict[str, str]
) -> Iterator[tuple[Path, Path]]:
    """Yields the files of one input with their paths below its folder; `others` gains the rest.

    That is the suffixes of those that are no images, by absolute path.
    """
    try:
        path = Path(given).expanduser()
        exists = bool(given) and os.path.lexists(path)
        base, wildcards = (path, ()) if exists or not given else _before_wildcards(path)
        matches = _matches(base, wildcards) if wildcards else []
        is_folder = exists and path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home of that user
        raise UsageError(f"--input={given!r}: cannot be read: {error}") from error
    if exists and not is_folder:
        yield path, Path(path.name)
        return
    if not exists and not matches:
        raise UsageError(f"--input={given!r}: there is no such file or folder, nor a match")
    if output is not None:
        real = os.path.realpath(base)
        if real == output:
            raise UsageError(f"--output: is the folder of --input={given!r}; name another one")
        if not _inside(output, real):
            output = None
    resolve = _resolver()
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
    """Divides a pattern into the folder before its first wildcard, and the rest."""
    base = Path()
    for i, part in enumerate(pattern.parts):
        if glob.has_magic(part) and not os.path.lexists(base / part):
            return base, pattern.parts[i:]
        base /= part
    return base, ()


def _matches(base: Path, parts: Sequence[str]) -> set[Path]:
    """Returns what matches a pattern below a folder.

    It is matched part by part, so that a name with brackets in it, wherever it exists, stands
    for itself: `scans [2024]/*.png`.
    """
    found = {base}
    for i, part in enumerate(parts):
        below: set[Path] = set()
        for folder in found:
            if part != "**" and os.path.lexists(folder / part):
                below.add(folder / part)
            elif glob.has_magic(part):
                # Of the parts before the last, only folders lead on.
                tail = "" if i == len(parts) - 1 else os.sep
                pattern = f"{glob.escape(str(folder))}{os.sep}{part}{tail}"
                below.update(map(Path, glob.iglob(pattern, recursive=True)))  # noqa: PTH207
        found = below
    return found


def _add(others: dict[str, str], path: Path) -> None:
    others[os.path.abspath(path)] = path.suffix.lower()  # noqa: PTH100


def _inside(real: str, folder: str) -> bool:
    return real == folder or real.startswith(folder.rstrip(os.sep) + os.sep)


def _walk(
    folder: Path,
    output: str | None,
    others: dict[str, str],
    above: frozenset[str] = frozenset(),
) -> Iterator[Path]:
    """The images in a folder and below; `above` are the folders it is in."""
    real = os.path.realpath(folder)
    if real in above or (output and _inside(real, output)):  # a link back up
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
    plain = [_renamed(relative, name, keep=False) for _, relative in found]
    shared: dict[Path, set[Path]] = {}
    for wanted, (_, relative) in zip(plain, found, strict=True):
        shared.setdefault(wanted, set()).add(relative)
    resolve = _resolver()
    sources = {resolve(os.fspath(path)) for path, _ in found}
    taken: dict[Path, Path] = {}
    for wanted, (path, relative) in zip(plain, found, strict=True):
        if len(shared[wanted]) > 1:
            wanted = _renamed(relative, name, keep=True)
        if wanted in taken:
            raise UsageError(
                f"--input: {taken[wanted]} and {path} would both become {wanted}; "
                "name the folder that they share, or restore them one after the other"
            )
        if output is not None and resolve(f"{output}{os.sep}{wanted}") in sources:
            raise UsageError(f"--output: {wanted} in it is an input; name another folder")
        taken[wanted] = path
    return [(taken[wanted], wanted) for wanted in sorted(taken, key=lambda path: path.parts)]


def _resolver() -> Callable[[str], str]:
    """Returns `os.path.realpath` for a great many files: it resolves each folder once."""
    of_folder = functools.cache(os.path.realpath)

    def resolve(path: str) -> str:
        folder, name = os.path.split(path)
        if name in ("", os.curdir, os.pardir) or os.path.islink(path):  # noqa: PTH114
            return os.path.realpath(path)
        return os.path.join(of_folder(folder), name)  # noqa: PTH118

    return resolve


def _renamed(relative: Path, name: str | None, keep: bool) -> Path:
    """Gives a path a format's suffix, in place of that of another one or after it."""
    if name is None or relative.suffix.lower() in SUFFIXES[name]:
        return relative
    if keep or not is_image(relative):
        return relative.with_name(relative.name + SUFFIXES[name][0])
    return relative.with_suffix(SUFFIXES[name][0])
