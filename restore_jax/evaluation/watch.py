"""Evaluation of each new checkpoint of a running training, in a separate process."""

import pathlib
import time
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from restore_jax import batches
from restore_jax.checkpoints import checkpoint
from restore_jax.config import workdir
from restore_jax.errors import RunError, UsageError
from restore_jax.evaluation import evaluate, trained
from restore_jax.evaluation.results import Summary, format_cell

POLL_SECONDS = 5.0


def watch(
    folder: pathlib.Path,
    make_data: Callable[[ConfigDict], batches.Data],
    override: ConfigDict | None = None,
    devices: Sequence[jax.Device] | None = None,
    write_tree: bool = False,
) -> list[int]:
    """Evaluates the newest checkpoint repeatedly until the training has ended.

    The results of each go to `evaluation/<data>-<step>`, as with `--checkpoint=STEP`, and a
    line on the terminal. Checkpoints saved while another one is being evaluated are skipped,
    except for the newest.

    Args:
        folder: the workdir.
        make_data: as for `evaluate.evaluate_checkpoint`; called once.
        override: as for `evaluate.evaluate_checkpoint`.
        devices: as for `evaluate.evaluate_checkpoint`.
        write_tree: as for `evaluate.evaluate_checkpoint`.

    Returns:
        The steps that were evaluated.

    Raises:
        UsageError: as `evaluate.evaluate_checkpoint`, or if there is neither a checkpoint nor a
            running training.
    """
    config = trained.with_override(workdir.read_config(folder), override)
    make_once = batches.cached(make_data)
    done: list[int] = []
    while True:
        # Checked first: between the two calls, training may save its last checkpoint and end.
        running = workdir.is_held(folder)
        step = checkpoint.latest_step(folder)
        if step and step not in done:
            summary = _evaluate_step(folder, step, make_once, override, devices, write_tree)
            if summary is not None:
                print(_format_line(summary, header=not done), flush=True)
                done.append(step)
            continue
        if not running:
            break
        time.sleep(POLL_SECONDS)
    if not done:
        raise UsageError(f"{folder}: no checkpoint in it and no training is running")
    epochs = checkpoint.epochs_done(folder)
    print(
        f"{folder}: no training is running; {epochs} of {config.train.epochs} epochs are done."
    )
    return done


def _evaluate_step(
    folder: pathlib.Path,
    step: int,
    make_data: Callable[[ConfigDict], batches.Data],
    override: ConfigDict | None,
    devices: Sequence[jax.Device] | None,
    write_tree: bool,
) -> Summary | None:
    """Evaluates a checkpoint; None if the training removed it before it could be read."""
    try:
        return evaluate.evaluate_checkpoint(
            folder, str(step), make_data, override, devices, write_tree
        )[0]
    except (UsageError, RunError):
        if checkpoint.exists(folder, step):
            raise
        return None


def _format_line(summary: Summary, header: bool) -> str:
    """Formats a summary as a line of a table, after the titles if `header`."""
    micro, found = summary["micro"], summary["checkpoint"]
    columns = (
        ("step", f"{found['step']:8d}"),
        ("epoch", f"{found['epoch']:6d}"),
        ("PSNR", f"{micro['psnr']:7.2f}"),
        ("SSIM", f"{micro['ssim']:7.4f}"),
        ("defect PSNR", format_cell(micro["defect_psnr"], ".2f")),
        ("contrast kept", format_cell(micro["defect_contrast"], ".2f")),
        ("erased", format_cell(micro["erasure_rate"], ".0%").rjust(7)),
    )
    widths = [max(len(title), len(text)) for title, text in columns]
    lines = zip(*columns, strict=True) if header else [[text for _, text in columns]]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )
