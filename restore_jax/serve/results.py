"""Restored photographs that the page shows and saves, until newer ones need their room."""

import collections
import dataclasses
import secrets
import shutil
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from PIL import Image

from restore_jax.image_io import image_files
from restore_jax.inference import white_level
from restore_jax.serve.worker import Restored


@dataclasses.dataclass(frozen=True)
class Result:
    """A restored photograph that is kept.

    Attributes:
        name: the photograph's name, a relative path.
        restored: its files.
        white: white level of 16-bit files that was asked for.
    """

    name: str
    restored: Restored
    white: int | None
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @property
    def folder(self) -> Path:
        """Returns the folder of its files, which it has for itself."""
        return self.restored.target.parent

    @property
    def size(self) -> int:
        """Returns the bytes of its files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def preview(self, side: str) -> Path:
        """Returns the first picture as browsers can show it, 8-bit PNG of the same size.

        Args:
            side: "before" or "after".
        """
        path = self.folder / f"{side}.png"
        with self._lock:
            if not path.exists():
                self._write_previews()
        return path

    def _write_previews(self) -> None:
        restored = self.restored
        # Both were accepted before; the restoration may have more bytes a pixel.
        before, after = (
            image_files.read(path, max_pixels=1 << 40)
            for path in (restored.source, restored.target)
        )
        white = white_level.with_white(before, self.white, restored.trained_white).white
        for side, shown in (("before", before), ("after", after)):
            image = Image.fromarray(white_level.to_bytes(shown.pixels, white))
            profile = {"icc_profile": shown.icc_profile} if shown.icc_profile else {}
            image.save(self.folder / f"{side}.png", compress_level=1, **profile)


class Results:
    """The results that are kept, by random ids.

    Args:
        folder: the folder for their files.
        most: largest number of results.
        most_bytes: largest size of their files; the newest is kept even if it alone is
            larger.
    """

    def __init__(self, folder: Path, most: int = 1000, most_bytes: int = 8 << 30) -> None:
        self.folder = folder
        self._most, self._most_bytes = most, most_bytes
        self._kept: collections.OrderedDict[str, Result] = collections.OrderedDict()

    def new_folder(self) -> Path:
        """Creates a folder for the files of a request."""
        folder = self.folder / secrets.token_urlsafe(16)
        folder.mkdir(mode=0o700)
        return folder

    def keep(self, result: Result) -> str:
        """Keeps a result instead of the oldest ones if need be; returns its id."""
        identity = secrets.token_urlsafe(16)
        self._kept[identity] = result
        sizes = {key: one.size for key, one in self._kept.items()}
        while len(self._kept) > 1 and (
            len(self._kept) > self._most or sum(sizes.values()) > self._most_bytes
        ):
            oldest = next(iter(self._kept))
            del sizes[oldest]
            self.drop(oldest)
        return identity

    def get(self, identity: str) -> Result | None:
        """Returns a result, or None if it is not kept."""
        return self._kept.get(identity)

    def drop(self, identity: str) -> None:
        """Removes a result, if it is kept, and its files."""
        if (result := self._kept.pop(identity, None)) is not None:
            shutil.rmtree(result.folder, ignore_errors=True)

    def write_zip(self, results: Iterable[Result]) -> Path:
        """Writes the restorations, which are compressed already, into one archive."""
        path = self.folder / f"{secrets.token_urlsafe(16)}.zip"
        taken: set[str] = set()
        try:
            with zipfile.ZipFile(path, "x") as archive:
                for result in results:
                    archive.write(result.restored.target, _unique(result.name, taken))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path


def _unique(name: str, taken: set[str]) -> str:
    """Returns a name that is not taken, ignoring case, and takes it."""
    path, count, found = PurePosixPath(name), 1, name
    while found.lower() in taken:
        count += 1
        found = str(path.with_name(f"{path.stem} ({count}){path.suffix}"))
    taken.add(found.lower())
    return found
