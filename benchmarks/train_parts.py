"""The child processes of `benchmarks.train_all`, and the folder of their results."""

import contextlib
import json
import pathlib
import queue
import subprocess
import threading
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import ROOT
from restore_jax.errors import UsageError
from restore_jax.files import replacing


class Failed(Exception):
    """A process has ended or does not respond; the message is the reason."""


class Process:
    """A child process that communicates in lines of JSON; a context manager that kills it.

    Args:
        command: command line.
        environment: environment variables.
        log: file for its standard error.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path
    ) -> None:
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=dict(environment),
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def hear(self, seconds: float) -> dict[str, Any]:
        """Waits for a record.

        Raises:
            Failed: the process ends without one, or none arrives in time.
        """
        try:
            line = self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise Failed(f"nothing came of it in {max(0.0, seconds):.0f} s") from None
        if line is None:
            raise Failed(self._reason())
        try:
            return json.loads(line)
        except ValueError:
            raise Failed(f"it said {line.strip()[:200]!r}") from None

    def tell(self, record: Mapping[str, Any]) -> None:
        """Sends a record.

        Raises:
            Failed: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(record) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise Failed(self._reason()) from None

    def _reason(self) -> str:
        """Returns the last line of its log and its exit status."""
        status = self._process.wait()
        said = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next(
            (line.strip() for line in reversed(said) if line.strip()), "it said nothing"
        )
        return f"{last.removeprefix('error: ')[-300:]} (exit status {status})"

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        """Calls `close`."""
        self.close()

    def close(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            # Closing flushes unsent data, which fails now.
            with contextlib.suppress(OSError):
                stream.close()


class Store:
    """The output folder: `results.jsonl`, `log.txt`, weights files and `others.zip`.

    Args:
        folder: the folder, created if it does not exist.
        largest: maximum size of a weights file in bytes; larger files are not kept.

    Raises:
        UsageError: the folder already holds results, or is not writable.
    """

    def __init__(self, folder: pathlib.Path, largest: float) -> None:
        self._folder, self._largest = folder, largest
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._results.open("x"):
                pass
        except FileExistsError:
            raise UsageError(
                f"--output={folder}: holds results already; take another folder"
            ) from None
        except OSError as error:
            raise UsageError(
                f"--output={folder}: cannot be written ({error.strerror})"
            ) from error

    @property
    def _results(self) -> pathlib.Path:
        return self._folder / "results.jsonl"

    def emit(self, record: Mapping[str, Any]) -> None:
        """Writes a record as a line, and prints it."""
        line = json.dumps(dict(record), allow_nan=False)
        with self._results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def keep(self, weights: pathlib.Path, bundled: bool) -> dict[str, Any]:
        """Stores a weights file; returns its place, or None with the reason."""
        size = weights.stat().st_size
        if size > self._largest:
            largest = f"{self._largest / 2**20:g} MiB"
            return {"file": None, "reason": f"{size} bytes are more than {largest}"}
        if not bundled:
            with replacing(self._folder / weights.name) as temporary:
                temporary.write_bytes(weights.read_bytes())
            return {"file": weights.name}
        archive = self._folder / "others.zip"
        with replacing(archive) as temporary:
            # A complete new archive each time, so that it is valid whenever this is killed.
            if archive.exists():
                temporary.write_bytes(archive.read_bytes())
            with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as file:
                file.write(weights, weights.name)
        return {"file": f"{archive.name}/{weights.name}"}

    def log(self, name: str, log: pathlib.Path) -> None:
        """Appends what a process wrote to its standard error."""
        with (self._folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"== {name}\n{log.read_text(encoding='utf-8', errors='replace')}\n")
