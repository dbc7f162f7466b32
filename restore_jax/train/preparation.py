"""What a training prepares: the state that it starts from, saved or new, and its images."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from restore_jax import batches
from restore_jax.checkpoints import checkpoint
from restore_jax.config import workdir
from restore_jax.learner.state import (
    Learner,
    TrainState,
    abstract_state,
    create_state,
    start_from,
)
from restore_jax.losses import loss_terms
from restore_jax.parallel import device_mesh, processes
from restore_jax.report.forms import counted
from restore_jax.train import setup


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a workdir holds of an earlier start of the run.

    Attributes:
        newest: step of its latest checkpoint, damaged or not; 0 if there is none.
        state: the state of the newest intact checkpoint; None if there is none.
        record: its record; of a new run, that no epoch is completed.
        damaged: checkpoints to move aside.
    """

    newest: int
    state: TrainState | None
    record: Mapping[str, Any]
    damaged: Sequence[checkpoint.Damaged]

    @property
    def step(self) -> int:
        """Number of steps taken; 0 for a new run."""
        return 0 if self.state is None else int(self.state.step)


def read_saved(config: ConfigDict, folder: pathlib.Path, learner: Learner, mesh: Mesh) -> Saved:
    """Checks that the workdir is free and the run's own, and reads its newest checkpoint."""
    newest = processes.on_first(lambda: setup.check_workdir(folder, config))
    if not newest:
        return Saved(0, None, {"epoch": 0}, [])
    template = abstract_state(learner, device_mesh.replicated(mesh))
    return Saved(newest, *checkpoint.newest_intact(folder, template))


def leave_finished(folder: pathlib.Path, saved: Saved, reason: str) -> None:
    """Says why there is nothing to train, and moves damaged checkpoints aside."""
    if saved.damaged and processes.is_first():
        with workdir.held(folder):
            setup.set_aside(folder, saved.damaged)
    print(f"{folder}: finished, {reason}; nothing to train.")


class NewState:
    """The state that a new run starts from, drawn in the background.

    It is compiled and run while the data are prepared, as it is independent of them.

    Args:
        config: all fields.
        learner: the run's.

    Raises:
        UsageError: as `setup.initial_variables`.
    """

    def __init__(self, config: ConfigDict, learner: Learner) -> None:
        self._initial, self._source = setup.initial_variables(config), config.init_from
        background = futures.ThreadPoolExecutor(1)
        self._drawn = background.submit(create_state, learner, config.seed)
        background.shutdown(wait=False)

    def finished(self, folder: pathlib.Path) -> TrainState:
        """Waits for the state, and returns it with the parameters of `config.init_from`."""
        state = self._drawn.result()
        if self._initial is None:
            return state
        print(f"{folder}: starting from the parameters of {self._source}")
        return start_from(state, self._initial)


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a run, and what is loaded with them.

    Attributes:
        data: the data.
        fixed: the fixed parameters of loss terms, in host memory.
        loss_params: the same, replicated on the devices.
        stream: the training batches from the first step on; empty for pairs in device memory.
        steps_per_epoch: steps in one epoch.
        total_steps: steps in all epochs.
    """

    data: batches.Data
    fixed: Mapping[str, Any]
    loss_params: loss_terms.LossParams
    stream: Iterator[batches.Batch]
    steps_per_epoch: int
    total_steps: int


def prepare_images(
    config: ConfigDict,
    make_data: Callable[[ConfigDict], batches.Data],
    mesh: Mesh,
    step: int,
) -> Images:
    """Makes the data, says what they are, and reads the first batch.

    Args:
        config: all fields; its white level is set to that of the images.
        make_data: makes the data that a configuration asks for.
        mesh: the devices.
        step: number of steps taken before.
    """
    data = make_data(config)
    if data.white:
        config.data.white = data.white
    fixed = data.load_loss_params()
    loss_params = processes.replicate(fixed, mesh)
    counts = data.counts
    print(
        f"{data.name}: {counted(counts['train'], 'image')} to train on, "
        f"{counts['val']} to validate"
    )
    if data.target:
        print(f"{data.name}: no clean photographs; validated against the {data.target}")
    # Read the first batch before claiming the workdir: bad images are only found on reading.
    stream: Iterator[batches.Batch] = iter(())
    if data.pairs is None:
        print("preparing the first batch: images are read, degraded and resized", flush=True)
        stream = data.train_batches(step)
        stream = itertools.chain([next(stream)], stream)
    steps_per_epoch = math.ceil(data.train_images / config.train.batch_size)
    return Images(
        data, fixed, loss_params, stream, steps_per_epoch, steps_per_epoch * config.train.epochs
    )


def check_continuation(
    config: ConfigDict,
    folder: pathlib.Path,
    saved: Saved,
    images: Images,
) -> None:
    """Checks that a run is resumed with its own images, and tells if its epochs are raised."""
    step, steps_per_epoch = saved.step, images.steps_per_epoch
    setup.check_same_images(
        saved.record, step, images.data, images.fixed, steps_per_epoch, folder
    )
    processes.on_first(
        lambda: setup.report_raised_epochs(folder, config, step, steps_per_epoch)
    )
