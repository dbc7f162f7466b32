"""The evaluation loop over batches: a model's restorations and their metrics per image."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from restore_jax import batches, models
from restore_jax.losses import loss_terms
from restore_jax.metrics import fidelity
from restore_jax.parallel import device_mesh, processes

Row = dict[str, Any]


class Restored(NamedTuple):
    """One evaluated image.

    Attributes:
        row: its figures, with id, category and defect type; an observer may add to them.
        degraded, restored, clean: float32 [H, W, 3] in [0, 1].
        mask: float32 [H, W, 1] in {0, 1}.
        has_mask: false if the mask is not known, so that its zeros mean nothing.
        seen: what the network saw, like `degraded`, from which it differs by undone gains.
        half_width: float32 [H, W], the trust map; None unless the observer adds it.
    """

    row: Row
    degraded: np.ndarray
    restored: np.ndarray
    clean: np.ndarray
    mask: np.ndarray
    has_mask: bool
    seen: np.ndarray
    half_width: np.ndarray | None = None

    @property
    def is_good(self) -> bool:
        """Whether the image is known to have no defect."""
        return self.row["defect_type"] == batches.GOOD

    def copied(self) -> "Restored":
        """Returns a copy with its own arrays, which here are views into those of a batch."""
        return self._replace(
            degraded=self.degraded.copy(),
            restored=self.restored.copy(),
            clean=self.clean.copy(),
            mask=self.mask.copy(),
            seen=self.seen.copy(),
        )


Observer = Callable[[Restored], None]


@functools.partial(jax.jit, static_argnames=("model", "terms", "oracle_mask"))
def evaluate_batch(
    model: nn.Module,
    terms: tuple[str, ...],
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    loss_params: loss_terms.LossParams | None = None,
    oracle_mask: bool = False,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Restores a batch and computes its metrics.

    Args:
        model: the architecture.
        terms: names of loss terms to compute in addition to the metrics.
        variables: the variables of the model, for `model.apply`.
        batch: the arrays of a batch (see `batches`).
        loss_params: parameters of the terms that need them (see `loss_terms`).
        oracle_mask: whether to give the model the ground-truth masks.

    Returns:
        A tuple of the figures by name, [B] each (those of `fidelity.image_metrics`, and
        "loss_NAME" for each loss term), and the restored images [B, H, W, 3], not clipped.
    """
    shown = batch["mask"] if oracle_mask else None
    restored = model.apply(
        variables, models.input_of(batch), mask=shown, **models.context_of(model, batch)
    )
    clean, mask = batch["clean"], batch["mask"]
    measured = fidelity.image_metrics(
        restored, batch["degraded"], clean, mask, batch["has_mask"]
    )
    losses_by_name = {
        f"loss_{name}": loss_terms.compute(name, restored, clean, mask, loss_params)
        for name in terms
    }
    return measured | losses_by_name, restored


def evaluate(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Iterable[batches.Batch],
    mesh: Mesh,
    terms: Sequence[str] = (),
    observe: Observer | None = None,
    loss_params: loss_terms.LossParams | None = None,
    oracle_mask: bool = False,
) -> list[Row]:
    """Computes the metrics of a model on a data set, image by image.

    Args:
        model: the architecture.
        variables: the variables of the model, replicated on the devices of the mesh.
        images: the batches of this process; processes may have different numbers of them.
        mesh: the devices.
        terms: names of loss terms to compute in addition to the metrics.
        observe: called with every valid image of this process; without it, the restored images
            are not transferred to the host.
        loss_params: parameters of the terms that need them, replicated likewise.
        oracle_mask: whether to give the model the ground-truth masks, which are not available
            when images are restored in practice.

    Returns:
        A row of figures per valid image of all processes, with id, category and defect type,
        sorted by id.
    """
    rows = []
    # Images are independent, so each process runs on its own devices at its own pace: they may
    # have different numbers of batches.
    (variables, loss_params), mesh = processes.on_own_devices(
        (variables, loss_params or {}), mesh
    )
    for batch in images:
        measured, restored = evaluate_batch(
            model,
            tuple(terms),
            variables,
            device_mesh.to_devices(batch, mesh),
            loss_params,
            oracle_mask,
        )
        measured = jax.device_get(measured)
        if observe is not None:
            restored = np.clip(jax.device_get(restored), 0.0, 1.0)
            seen = models.input_of(batch)
        for i in np.flatnonzero(batch["valid"]):
            row: Row = {
                "id": str(batch["id"][i]),
                "category": str(batch["category"][i]),
                "defect_type": str(batch["defect_type"][i]),
            }
            row |= {name: float(values[i]) for name, values in measured.items()}
            rows.append(row)
            if observe is not None:
                images_ = (batch["degraded"][i], restored[i], batch["clean"][i])
                is_known = bool(batch["has_mask"][i])
                observe(Restored(row, *images_, batch["mask"][i], is_known, seen[i]))
    return sorted(
        processes.gather_sorted(rows, lambda row: row["id"]), key=lambda row: row["id"]
    )


def mean_losses(rows: Sequence[Row], weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the mean of each loss term over all images, and their weighted sum as "loss"."""
    terms = {
        name: float(np.mean([row[f"loss_{name}"] for row in rows]))
        for name in loss_terms.active(weights)
    }
    total = sum(weights[name] * value for name, value in terms.items())
    return {"loss": total} | {f"loss_{name}": value for name, value in terms.items()}
