"""The records of a training: metrics.jsonl, TensorBoard events, the picture of the curves."""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import tensorboardX

from restore_jax import figures
from restore_jax.workdir import write_text


def read_records(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl; none where there is no such file.

    A last line that was cut off by a crash is left out.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def epochs_without_gain(records: Sequence[Mapping[str, Any]]) -> int:
    """Counts the epochs since the validation SSIM last reached its best (a tie is a gain)."""
    validations = [record for record in records if record["split"] == "val"]
    if not validations:
        return 0
    best = max(validations, key=lambda record: (record["ssim"], record["epoch"]))
    return validations[-1]["epoch"] - best["epoch"]


class Logs:
    """Writes the figures of a training as they come; a context manager.

    Args:
        workdir: the run's folder.
        step: the step that the training goes on from; lines after it are taken back, since they
            come again.
    """

    def __init__(self, workdir: pathlib.Path, step: int) -> None:
        self._workdir = workdir
        kept = [record for record in read_records(workdir) if record["step"] <= step]
        write_text(workdir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))
        self._events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1 if step else None
        )
        self._drawn = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draw_curves()
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
        for name, value in figures.items():
            if value is not None:
                self._events.add_scalar(f"{split}/{name}", value, step)

    def write_speed(self, step: int, images_per_second: float) -> None:
        """Records the speed, for TensorBoard alone: metrics.jsonl is the same for every run."""
        self._events.add_scalar("train/images_per_second", images_per_second, step)

    def refresh(self) -> None:
        """Makes the events readable and, twice a minute at most, draws the curves anew."""
        self._events.flush()
        # A drawing takes most of a second, and an epoch on a GPU less than that.
        if time.monotonic() - self._drawn > 30:
            self._draw_curves()

    def _draw_curves(self) -> None:
        figures.draw_curves(read_records(self._workdir), self._workdir / "curves.png")
        self._drawn = time.monotonic()
