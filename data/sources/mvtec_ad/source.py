"""Finds MVTec AD's photographs in a folder or in its archives and reads them; no TensorFlow.

The layout is MVTec AD's own, at the top of the folder or archive or one folder deeper:

    <category>/train/good/NNN.png
    <category>/test/<defect type or good>/NNN.png
    <category>/ground_truth/<defect type>/NNN_mask.png
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from data.sources.mvtec_ad import archive
from restore_jax.errors import RunError, UsageError
from restore_jax.files import is_passing, retried
from restore_jax.image_io import image_paths, limits

HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
MAX_MASK_BYTES = 1 << 30  # all masks of an archive; MVTec AD's take a few MB

_WHOLE_ARCHIVE = "mvtec_anomaly_detection."
_SECTIONS = ("train", "test", "ground_truth")
_OTHER_IMAGES = (".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One photograph of the set.

    Attributes:
        id: `<category>/<train|test>/<defect type>/<file name without .png>`.
        file: name of the file within the folder or archive.
        mask_file: name of the mask file; None if there is none.
    """

    id: str
    file: str
    mask_file: str | None

    @property
    def category(self) -> str:
        """The category, such as `bottle`."""
        return self.id.split("/")[0]

    @property
    def split(self) -> str:
        """MVTec AD's own split: `train` or `test`."""
        return self.id.split("/")[1]

    @property
    def defect_type(self) -> str:
        """The defect type, such as `broken_large`, or `good`."""
        return self.id.split("/")[2]


class FileBytes(NamedTuple):
    """The contents of a file.

    Attributes:
        where: location of the file, for error messages.
        data: the encoded bytes.
        problem: why the file could not be read; "" if it was.
    """

    where: str
    data: bytes
    problem: str = ""


Record = tuple[Entry, FileBytes, FileBytes | None]


def find(
    root: str | os.PathLike[str], max_pixels: int = limits.MAX_MEGAPIXELS * 1_000_000
) -> Tree | Archives:
    """Finds MVTec AD at `root`; archives are listed but not opened.

    Args:
        root: the extracted data set, a folder with archives (the complete one, one per
            category, or both; ignored if there is an extracted data set), or a single archive.
        max_pixels: maximum number of pixels of a photograph, which limits the members of
            archives.

    Raises:
        UsageError: there is no MVTec AD at `root`.
    """
    if not os.fspath(root).strip():
        raise _not_found(root, "is empty: give the data set's folder or archive")
    path = Path(root)
    try:
        path = path.expanduser()
        if path.is_file():
            if not archive.is_archive(path):
                wanted = ", ".join(archive.SUFFIXES)
                raise _not_found(path, f"is neither a folder nor an archive ({wanted})")
            return Archives([path], max_pixels)
        if not path.is_dir():
            raise _not_found(path, "there is no such file or folder")
        if files := _list_tree(path):
            return Tree(path, files)
        if archives := [p for p in path.iterdir() if archive.is_archive(p) and p.is_file()]:
            # The complete archive takes precedence for categories that are in two archives.
            whole_first = sorted(archives, key=lambda p: (_WHOLE_ARCHIVE not in p.name, p.name))
            return Archives(whole_first, max_pixels)
        if not any(path.iterdir()):
            raise _not_found(path, "the folder is empty")
        if (path / "test").is_dir() or (path / "train").is_dir():
            raise _not_found(path, "this is a single category: name the folder above it")
    except (OSError, RuntimeError) as error:  # RuntimeError: unknown user in ~user
        raise UsageError(f"config.data.root={str(path)!r}: cannot be read: {error}") from error
    raise _not_found(
        path,
        "the folder holds neither <category>/test/<defect type>/NNN.png nor archives of it",
    )


class Tree:
    """MVTec AD extracted into a folder."""

    def __init__(self, root: Path, files: dict[str, os.stat_result]) -> None:
        self._root = root
        self._files = files
        self.photographs = parse_layout(files, str(root))
        if not self.photographs:
            raise _not_found(root, "the folders are there but hold no PNG photographs")
        self.bytes = sum(files[p.file].st_size for p in self.photographs)
        self.summary = f"{len(self.photographs)} photographs"

    def fingerprint(self) -> str:
        """Returns a hash of every file's relative name, size and modification time."""
        return _fingerprint(self._files)

    def read(self, split: Split) -> Iterator[Record]:
        """Yields the photographs of a split with their masks, in the order of their ids."""
        for photograph in self.photographs:
            if photograph.split == split:
                mask = photograph.mask_file
                yield photograph, self._picture(photograph.file), mask and self._picture(mask)

    def _picture(self, name: str) -> FileBytes:
        path = self._root / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # reading a named pipe would block
                return FileBytes(str(path), b"", "cannot be read: not a plain file")
            return FileBytes(str(path), retried(path.read_bytes))
        except OSError as error:
            if is_passing(error):
                raise RunError(f"{path}: cannot be read: {error.strerror}") from error
            return FileBytes(str(path), b"", f"cannot be read: {error.strerror}")


class Archives:
    """MVTec AD in one or several tar archives, read in place."""

    def __init__(self, paths: list[Path], max_pixels: int) -> None:
        self._paths = paths
        self._max_pixels = max_pixels
        self._stats = {path.name: path.stat() for path in paths}
        self.bytes = sum(stat.st_size for stat in self._stats.values())
        plural = "" if len(paths) == 1 else "s"
        self.summary = f"{len(paths)} archive{plural}, {self.bytes / 1e9:.1f} GB"

    def fingerprint(self) -> str:
        """Returns a hash of every archive's name, size and modification time."""
        return _fingerprint(self._stats)

    @property
    def photographs(self) -> list[Entry]:
        """All photographs, sorted by id. The first access reads every archive completely.

        Raises:
            UsageError: an archive is damaged or unsafe, or has no photographs of MVTec AD.
        """
        listed = [p for _, photographs, _ in self._index for p in photographs.values()]
        return sorted(listed, key=lambda photograph: photograph.id)

    def read(self, split: Split) -> Iterator[Record]:
        """Yields the photographs of a split with their masks, in the order of the archives.

        Raises:
            UsageError: an archive is damaged or unsafe, or has changed since it was indexed.
        """
        for path, photographs, masks in self._index:
            wanted = {name for name, p in photographs.items() if p.split == split}
            if not wanted:
                continue
            members = archive.members(path, wanted.__contains__, self._max_pixels)
            for name, data in members:
                if data is None:
                    continue
                photograph, mask = photographs[name], photographs[name].mask_file
                yield (
                    photograph,
                    FileBytes(f"{path}: {name}", data),
                    mask and FileBytes(f"{path}: {mask}", masks[mask]),
                )
                wanted.remove(name)
                if not wanted:
                    break
            if wanted:
                raise archive.refused(path, f"{min(wanted)!r} is no longer in it")

    @functools.cached_property
    def _index(self) -> list[tuple[Path, dict[str, Entry], dict[str, bytes]]]:
        """Each archive with its photographs and the contents of its masks, by member name."""
        index = []
        taken: set[str] = set()
        for path in self._paths:
            names: list[str] = []
            # Kept in memory from this first pass, so that each mask is available when its
            # photograph is read, whatever their order in the archive.
            masks: dict[str, bytes] = {}
            held = 0
            for name, data in archive.members(path, _is_mask, self._max_pixels):
                names.append(name)
                if data is not None:
                    masks[name] = data
                    held += len(data)
                    if held > MAX_MASK_BYTES:
                        raise archive.refused(path, "its masks take more than 1 GB")
            found = parse_layout(names, str(path))
            if not found:
                raise _not_found(
                    path, "the archive has no <category>/test/<defect type>/NNN.png in it"
                )
            index.append((path, {p.file: p for p in found if p.category not in taken}, masks))
            taken.update(p.category for p in found)
        return index


class Readable:
    """MVTec AD without the photographs that have an unreadable file.

    Args:
        found: the complete data set.
        left_out: the unreadable file and what is wrong with it, by the id of each photograph
            to leave out.
    """

    def __init__(self, found: Tree | Archives, left_out: Mapping[str, str]) -> None:
        self._found = found
        self.left_out = left_out
        self.photographs = [p for p in found.photographs if p.id not in left_out]
        self.bytes = found.bytes
        self.summary = found.summary

    def read(self, split: Split) -> Iterator[Record]:
        """Yields the remaining photographs of a split in the order of the complete data set."""
        return (record for record in self._found.read(split) if self._has(record[0]))

    def _has(self, photograph: Entry) -> bool:
        return photograph.id not in self.left_out


Source = Tree | Archives | Readable


def parse_layout(names: Iterable[str], where: str) -> list[Entry]:
    """Infers MVTec AD's photographs from file names and returns them sorted by id.

    Files outside `train`, `test` and `ground_truth` are skipped, and so are files that are not
    images, hidden files and those that network storage adds (`@eaDir`). A photograph without a
    mask file and a mask without a photograph are accepted, since subsets of the data set have
    them.

    Args:
        names: file names relative to the folder or archive, with forward slashes.
        where: the folder or archive, for messages.

    Raises:
        UsageError: the place of an image is not part of the layout.
    """
    placed: dict[tuple[str, ...], list[tuple[str, list[str]]]] = collections.defaultdict(list)
    for name in names:
        parts = name.split("/")
        if any(map(image_paths.is_hidden, parts)):
            continue
        if not name.isprintable():
            raise UsageError(f"{where}: the file name {name!r} has unprintable characters")
        if len(parts) in (4, 5) and parts[-3] in _SECTIONS and _is_image(name, where):
            placed[tuple(parts[:-4])].append((name, parts[-4:]))
        elif len(parts) in (3, 4) and parts[-2] in _SECTIONS and _is_image(name, where):
            raise UsageError(
                f"{where}: {name!r} lies outside a folder of its defect type"
                f" (<category>/{parts[-2]}/<defect type or good>/NNN.png)"
            )
    if () not in placed and len(placed) > 1:
        found = ", ".join(repr("/".join(prefix)) for prefix in sorted(placed)[:3])
        raise UsageError(
            f"config.data.root={where!r}: there is more than one data set ({found}):"
            " give the folder of one"
        )
    placed_here = placed.get((), next(iter(placed.values()), []))

    masks: dict[tuple[str, ...], str] = {}
    for name, (category, section, kind, file) in placed_here:
        if section == "ground_truth":
            stem = file[: -len(".png")]
            if not stem.endswith("_mask"):
                raise UsageError(f"{where}: the mask {name!r} is not named NNN_mask.png")
            masks[_composed(category, kind, stem.removesuffix("_mask"))] = name
    photographs: dict[str, Entry] = {}
    for name, (category, section, kind, file) in placed_here:
        if section == "ground_truth":
            continue
        if section == "train" and kind != "good":
            raise UsageError(f"{where}: {name!r}: MVTec AD trains on train/good alone")
        stem = file[: -len(".png")]
        example = f"{category}/{section}/{kind}/{stem}"
        if example in photographs:
            raise UsageError(f"{where}: there are two photographs {example!r}")
        mask = None if kind == "good" else masks.get(_composed(category, kind, stem))
        photographs[example] = Entry(example, name, mask)
    return [photographs[example] for example in sorted(photographs)]


def _composed(*names: str) -> tuple[str, ...]:
    """Returns names in composed form (NFC), in which those of a mask and its image agree."""
    return tuple(unicodedata.normalize("NFC", name) for name in names)


def _is_image(name: str, where: str) -> bool:
    if name.lower().endswith(_OTHER_IMAGES):
        raise UsageError(f"{where}: {name!r} is not a PNG file, as all images of MVTec AD are")
    return name.lower().endswith(".png")


def _is_mask(name: str) -> bool:
    return "ground_truth" in name.split("/") and name.lower().endswith(".png")


def _not_found(path: str | os.PathLike[str], problem: str) -> UsageError:
    return UsageError(
        f"config.data.root={os.fspath(path)!r}: {problem}; MVTec AD (CC BY-NC-SA 4.0,"
        f" non-commercial) is at {HOMEPAGE}; this command needs no download:"
        " python launch.py --config=configs/sca_unet.py:sample"
    )


def _fingerprint(files: dict[str, os.stat_result]) -> str:
    lines = sorted(f"{name}\n{s.st_size} {s.st_mtime_ns}\n" for name, s in files.items())
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _list_tree(root: Path) -> dict[str, os.stat_result]:
    """Lists the image files of all categories in `root`, or else one folder deeper.

    Only folders of the layout are searched, since `root` may be somebody's home folder.

    Returns:
        The files by name relative to `root`.
    """
    for above in ([root], _folders(root)):
        files = [
            Path(entry.path)
            for category in (c for folder in above for c in _folders(folder))
            for section in _SECTIONS
            for folder in [category / section, *_folders(category / section)]
            for entry in _entries(folder)
            if not entry.is_dir()
        ]
        images = [p for p in files if p.suffix.lower() in (".png", *_OTHER_IMAGES)]
        if images:
            return {path.relative_to(root).as_posix(): _stat(path) for path in images}
    return {}


def _stat(path: Path) -> os.stat_result:
    """Returns the status of a file, or of a broken link, which is reported when it is read."""
    try:
        return path.stat()
    except OSError:
        return path.lstat()


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns a folder's entries, sorted by name; none if it is missing or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not image_paths.is_hidden(entry.name)]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return sorted(shown, key=lambda entry: entry.name)
