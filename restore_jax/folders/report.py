"""Writes the page of a restored folder beside its table."""

import pathlib
from collections.abc import Sequence

from restore_jax import files
from restore_jax.errors import RunError, UsageError
from restore_jax.folders import verdict
from restore_jax.folders.table import Table
from restore_jax.report import restoration_page


class Report:
    """The page of a run, `restore.html` beside `restore.csv`, whose rows it shows.

    Args:
        table: that of the run.

    Attributes:
        path: the file.
        pictures: for `run.restore_files`.

    Raises:
        UsageError: if the file exists and is no such page, before anything is restored.
    """

    def __init__(self, table: Table) -> None:
        self.path = table.path.with_suffix(".html")
        self.pictures = verdict.Pictures()
        self._table = table
        _check(self.path)

    def write(self, inputs: Sequence[str]) -> str:
        """Writes the page and returns a line that tells where it is.

        A page of an earlier run stays as it is if this one had nothing to do: its pictures
        cannot be made again.

        Args:
            inputs: what was restored, for the title.

        Raises:
            RunError: if it cannot be written.
        """
        if not self._table.rows:
            return f"nothing was restored; {self.path} is not written"
        page = restoration_page.render(
            ", ".join(inputs), self._table.columns(), self.pictures.by_name
        )
        try:
            with files.replacing(self.path) as temporary:
                temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror})") from error
        return f"the page of the folder: {self.path}"


def _check(path: pathlib.Path) -> None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            start = file.read(4096)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); move it") from error
    if restoration_page.MARK not in start:
        raise UsageError(
            f"{path}: exists and is not a page of restored files; move it, since one is "
            "written there"
        )
