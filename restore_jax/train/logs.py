"""The logs of a training: metrics.jsonl, TensorBoard events and the plot of the curves."""

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
    """Reads the records of metrics.jsonl; [] if there is no such file.

    Damaged lines are skipped, such as a last line truncated by a crash.
    """
    return [record for record in _read_lines(workdir) if record is not None]


def _read_lines(workdir: pathlib.Path) -> list[dict[str, Any] | None]:
    """Reads the lines of metrics.jsonl, with None for each damaged one."""
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
    """Counts the epochs since the best validation SSIM; a tie counts as a new best."""
    validations = [record for record in records if record["split"] == "val"]
    if not validations:
        return 0
    best = max(validations, key=lambda record: (record["ssim"], record["epoch"]))
    return validations[-1]["epoch"] - best["epoch"]


class _Events:
    """A TensorBoard event file, written synchronously.

    TensorBoard's own writer runs in a thread, which dies with a traceback when the disk is full
    and leaves the training waiting for it.

    Args:
        folder: holds the file; created if missing.
        purge_step: TensorBoard hides events from this step on in earlier files; None for none.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None) -> None:
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files in the order of their names. The usual name has only the
        # second, and a run may be killed and resumed within one: append the nanoseconds.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._file = RecordWriter((folder / name).open("wb"))
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        if purge_step is not None:
            # Makes TensorBoard hide the events from this step on in earlier files.
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
    """Writes the metrics of a training as they arrive; a context manager.

    Args:
        workdir: the run's folder.
        step: the step that the training starts or resumes from.
        epoch: epochs completed by then; lines of later epochs are removed, as these are
            trained again.
        steps_per_epoch: steps in one epoch. If it is 1, imported weights may count as the only
            step of the first epoch, which then has no line.
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
            print(f"{path}: {_set_aside_damaged(workdir, path, len(missing), epoch)}")
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

    def write(self, step: int, epoch: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl and the same scalars to the TensorBoard events.

        Args:
            step: number of steps taken.
            epoch: the epoch, from 1.
            split: "train" or "val".
            metrics: scalars by name; None if undefined.
        """
        record = {"step": step, "epoch": epoch, "split": split, **metrics}
        with (self._workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            # The checkpoint saved next counts this line as written.
            os.fsync(file.fileno())
        for name, value in metrics.items():
            if value is not None:
                self._events.add(step, f"{split}/{name}", value)

    def write_speed(self, step: int, images_per_second: float) -> None:
        """Records the speed in TensorBoard only, so that metrics.jsonl stays reproducible."""
        self._events.add(step, "train/images_per_second", images_per_second)

    def refresh(self) -> None:
        """Flushes the events and redraws the curves, at most every 30 seconds."""
        self._events.flush()
        # Drawing takes most of a second, which is longer than an epoch on a GPU.
        if time.monotonic() - self._drawn > 30:
            self._draw_curves()

    def _draw_curves(self) -> None:
        with replacing(self._workdir / "curves.png") as path:
            plots.draw_curves(read_records(self._workdir), path)
        self._drawn = time.monotonic()


def _set_aside_damaged(
    workdir: pathlib.Path, path: pathlib.Path, missing: int, epochs: int
) -> str:
    """Moves a damaged metrics.jsonl aside, if it exists, and returns what to tell the user."""
    if not path.exists():
        return f"missing; a new one starts without the {epochs} epochs trained so far"
    place = set_aside(workdir, path)
    return f"damaged, {missing} of {epochs} epochs are missing; the old file is now {place}"


class NoLogs(contextlib.AbstractContextManager["NoLogs", None]):
    """Has the methods of `Logs` and writes nothing, for all processes but the first."""

    def __exit__(self, *error: object) -> None:
        """Leaves errors to the caller."""

    def write(self, step: int, epoch: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def write_speed(self, step: int, images_per_second: float) -> None:
        """Records nothing."""

    def refresh(self) -> None:
        """Draws nothing."""
