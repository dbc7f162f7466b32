"""The records of a training: metrics.jsonl, TensorBoard events, the picture of the curves."""

import contextlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from restore_jax.config.workdir import set_aside
from restore_jax.files import replacing, write_text
from restore_jax.report import plots


def read_records(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl; none where there is no such file.

    A line that is damaged is left out, such as a last one that was cut off by a crash.
    """
    return [record for record in _read_lines(workdir) if record is not None]


def _read_lines(workdir: pathlib.Path) -> list[dict[str, Any] | None]:
    """Reads the lines of metrics.jsonl; None for one that is damaged."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [_read_line(line) for line in lines]


def _read_line(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    known = isinstance(record, dict) and record.keys() >= {"step", "epoch", "split"}
    return record if known else None


def epochs_without_gain(records: Sequence[Mapping[str, Any]]) -> int:
    """Counts the epochs since the validation SSIM last reached its best (a tie is a gain)."""
    validations = [record for record in records if record["split"] == "val"]
    if not validations:
        return 0
    best = max(validations, key=lambda record: (record["ssim"], record["epoch"]))
    return validations[-1]["epoch"] - best["epoch"]


class _Events:
    """A file of TensorBoard events.

    Written here and now: a writer in a thread of its own would end with a traceback where the
    disk is full, and leave the training to wait for it.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None) -> None:
        folder.mkdir(exist_ok=True)
        # Its name holds the second alone, and a run may be killed and gone on with within one;
        # TensorBoard reads the files in the order of their names.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._file = RecordWriter((folder / name).open("wb"))
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        if purge_step is not None:
            # TensorBoard then hides what the same steps have in earlier files.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=purge_step, session_log=start))

    def add(self, step: int, name: str, value: float) -> None:
        scalar = summary_pb2.Summary.Value(tag=name, simple_value=value)
        self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[scalar])))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())


class Logs:
    """Writes the figures of a training as they come; a context manager.

    Args:
        workdir: the run's folder.
        step: the step that the training goes on from.
        epoch: the epochs that are over by then; lines of later ones are taken back, since they
            come again.
        steps_per_epoch: of the training. Where there is one, an import stands in for that of
            the first epoch, which then has no line.
    """

    def __init__(
        self, workdir: pathlib.Path, step: int, epoch: int, steps_per_epoch: int
    ) -> None:
        self._workdir = workdir
        path = workdir / "metrics.jsonl"
        lines = _read_lines(workdir)
        kept = [r for r in lines if r is not None and r["epoch"] <= epoch]
        trained = {record["epoch"] for record in kept if record["split"] == "train"}
        missing = set(range(1, epoch + 1)) - trained
        if missing == {1} and steps_per_epoch == 1 and lines and None not in lines:
            missing.clear()
        if missing:
            print(f"{path}: {_said_of(workdir, path, len(missing), epoch)}")
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._events = _Events(workdir / "tensorboard", purge_step=step + 1 if step else None)
        self._drawn = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._draw_curves()
        finally:
            self._events.close()

    def write(self, step: int, epoch: int, split: str, figures: Mapping[str, Any]) -> None:
        """Appends one line and the same scalars for TensorBoard.

        Args:
            step: steps done.
            epoch: epochs done.
            split: "train" or "val".
            figures: scalars by name; None where one is not defined.
        """
        record = {"step": step, "epoch": epoch, "split": split, **figures}
        with (self._workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            # Before the checkpoint that says it is written.
            os.fsync(file.fileno())
        for name, value in figures.items():
            if value is not None:
                self._events.add(step, f"{split}/{name}", value)

    def write_speed(self, step: int, images_per_second: float) -> None:
        """Records the speed, for TensorBoard alone: metrics.jsonl is the same for every run."""
        self._events.add(step, "train/images_per_second", images_per_second)

    def refresh(self) -> None:
        """Makes the events readable and, twice a minute at most, draws the curves anew."""
        self._events.flush()
        # A drawing takes most of a second, and an epoch on a GPU less than that.
        if time.monotonic() - self._drawn > 30:
            self._draw_curves()

    def _draw_curves(self) -> None:
        with replacing(self._workdir / "curves.png") as path:
            plots.draw_curves(read_records(self._workdir), path)
        self._drawn = time.monotonic()


def _said_of(workdir: pathlib.Path, path: pathlib.Path, missing: int, epochs: int) -> str:
    """Says which records are missing, and keeps what is left of a damaged file."""
    if not path.exists():
        return f"is not there; it begins anew, without the {epochs} epochs that are done"
    place = set_aside(workdir, path)
    return f"damaged, {missing} of {epochs} epochs are missing; what there was lies in {place}"


class NoLogs(contextlib.AbstractContextManager["NoLogs", None]):
    """Takes what `Logs` does and writes nothing: of several processes the first one does."""

    def __exit__(self, *error: object) -> None:
        """Leaves errors to the caller."""

    def write(self, step: int, epoch: int, split: str, figures: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def write_speed(self, step: int, images_per_second: float) -> None:
        """Records nothing."""

    def refresh(self) -> None:
        """Draws nothing."""
