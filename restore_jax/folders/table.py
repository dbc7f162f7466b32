"""The table of the files of a folder: what was found in each, and what was done with it."""

import csv
import dataclasses
import io
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from restore_jax import files
from restore_jax.errors import RunError, UsageError
from restore_jax.folders.verdict import Verdict
from restore_jax.inference.assessment import Assessment

# A table is written again at most so often, in seconds.
_EVERY = 10.0

RESTORED, COPIED, FAILED = "restored", "copied unchanged", "failed"
"""What was done with a file, in its row."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What a table tells of a file.

    Attributes:
        file: its path relative to the output folder.
        source: the path of the photograph.
        action: `RESTORED`, `COPIED` or `FAILED`.
        assessment: None if it could not be read.
        change_db: PSNR of the output against the input, dB; None without an output.
        error: why it failed, in one line.
        verdict: what `verdict.judge` found; None if it was not asked, or could not tell.
    """

    file: str
    source: str
    action: str
    assessment: Assessment | None = None
    change_db: float | None = None
    error: str = ""
    verdict: Verdict | None = None

    def _reasons(self) -> tuple[str, ...]:
        found = self.assessment
        doubt = found.doubt(self.change_db) if found else ""
        return (*(found.reasons if found else ()), *filter(None, [doubt]))

    def as_columns(self) -> dict[str, str]:
        """The row as texts by column; unknown values are empty."""
        found = self.assessment
        inside = None if found is None else found.inside
        blur = (None, None) if found is None else found.blur
        seen = self.verdict
        return {
            "file": self.file,
            "source": self.source,
            "noise": _number(None if found is None else found.overall_noise),
            "blur_x": _number(None if blur[0] is None else blur[0].value),
            "blur_y": _number(None if blur[1] is None else blur[1].value),
            "range": {True: "inside", False: "outside", None: "unknown"}[inside],
            "reason": "; ".join(self._reasons()),
            "action": self.action,
            "change_db": _number(self.change_db),
            "expected_psnr": _number(seen and seen.expected_psnr),
            "noise_after": _number(seen and seen.noise_after),
            "residual_correlation": _number(seen and seen.correlation, 3),
            "residual_structure": _number(seen and seen.structure, 4),
            "trust": _number(seen and seen.trust),
            "error": self.error,
        }


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


COLUMNS = tuple(Row("", "", "").as_columns())


class Table:
    """The table of the files of a folder, `restore.csv`, which is kept up to date.

    Rows of other files, from an earlier run into the folder, are kept.

    As a context, it is written at the end, also of a run that fails.

    Args:
        path: the file.

    Attributes:
        rows: those of this run, in the order in which the files were done.

    Raises:
        UsageError: if the file exists and is no such table, or cannot be read.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._earlier = _read(path)
        self._written = time.monotonic()

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_: object) -> None:
        self.write()

    def add(self, row: Row) -> None:
        """Adds a row, and writes the table if it has not been for a while.

        Raises:
            RunError: if it cannot be written.
        """
        self.rows.append(row)
        if time.monotonic() - self._written > _EVERY:
            self.write()

    def columns(self) -> list[Mapping[str, str]]:
        """The rows of this run and of earlier ones, in the order of the files' names."""
        rows = self._earlier | {row.file: row.as_columns() for row in self.rows}
        return [rows[name] for name in sorted(rows)]

    def write(self) -> None:
        """Writes the table, if there are rows to write, in the order of the files' names.

        Raises:
            RunError: if it cannot be written.
        """
        if not self.rows:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(self.columns())
        try:
            with files.replacing(self.path) as temporary:
                # With a byte order mark, by which spreadsheets know UTF-8.
                temporary.write_text(
                    text.getvalue(), encoding="utf-8-sig", errors="backslashreplace", newline=""
                )
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._written = time.monotonic()


def table(
    inputs: Sequence[str], output: pathlib.Path, shard: str | None = None, always: bool = False
) -> Table | None:
    """Returns the table of a run, with the rows of earlier ones; None for a single file.

    Args:
        inputs: files, folders and globs.
        output: the output folder, where the table is.
        shard: "I/N" for a part of the images, which has a table of its own.
        always: whether a single file has one, too.

    Raises:
        UsageError: if another file has its place.
    """
    if not always and len(inputs) == 1 and pathlib.Path(inputs[0]).expanduser().is_file():
        return None
    part = "" if shard in (None, "1/1") else f"-{shard.replace('/', '-of-')}"
    return Table(output / f"restore{part}.csv")


def _read(path: pathlib.Path) -> dict[str, Mapping[str, Any]]:
    """Returns the rows of a table by file; {} if there is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UsageError(
                    f"{path}: exists and is not a table of restored files; move it, since one "
                    "is written there"
                )
            rows = list(reader)
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row has another number of fields")
        return {row["file"]: row for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); move it") from error
