"""The evaluation job: metrics of a model, including defect preservation, and the report."""

import functools
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from restore_jax import batches
from restore_jax.config import workdir
from restore_jax.errors import UsageError
from restore_jax.evaluation import mvtec_tree, per_image, results, trained
from restore_jax.evaluation.per_image import Restored, Row
from restore_jax.evaluation.results import Summary
from restore_jax.metrics import coverage, defects, detect, fidelity, kla
from restore_jax.metrics.detectability import Detectability
from restore_jax.parallel import device_mesh, processes
from restore_jax.report import evaluation_lines, evaluation_page, image_panels, plots
from restore_jax.trust.network import Trust

# PSNR that two restorations of one image may differ by, in dB.
_SAME_DB = 1e-3


def evaluate_checkpoint(
    folder: pathlib.Path,
    which: str,
    make_data: Callable[[ConfigDict], batches.Data],
    override: ConfigDict | None = None,
    devices: Sequence[jax.Device] | None = None,
    write_tree: bool = False,
) -> tuple[Summary, pathlib.Path]:
    """Evaluates a checkpoint of a workdir and writes the results into it; see `evaluate_model`.

    Args:
        folder: the workdir; its configuration defines the model.
        which: "best", "latest" or a step.
        make_data: creates the data that a configuration describes.
        override: a configuration whose data and evaluation sections replace those of the
            workdir.
        devices: as for `evaluate_model`.
        write_tree: as for `evaluate_model`.

    Returns:
        The content of metrics.json, and the folder of the results.

    Raises:
        UsageError: if the workdir has no such checkpoint, or a config field is invalid.
        RunError: as `evaluate_model`.
    """
    model = trained.of_workdir(folder, which, override)
    return evaluate_model(model, make_data, devices, write_tree)


def evaluate_model(
    source: trained.Trained,
    make_data: Callable[[ConfigDict], batches.Data],
    devices: Sequence[jax.Device] | None = None,
    write_tree: bool = False,
) -> tuple[Summary, pathlib.Path]:
    """Evaluates a trained model and writes the results.

    Writes `evaluation/<data>-<which>/`: metrics.json, images.csv, report.html, triplets.png;
    good.csv if the data have photographs without defects to test; and tree/ if `write_tree`.
    With several processes, the images are divided among them and the first one writes.

    Args:
        source: the model, and the data and evaluation settings requested.
        make_data: creates the data that a configuration describes.
        devices: the devices to use; if None, those of `device_mesh.fitting_devices`.
        write_tree: whether to write the images in MVTec AD's layout, see `mvtec_tree`.

    Returns:
        The content of metrics.json, and the folder of the results.

    Raises:
        UsageError: if the model cannot be read, or a config field is invalid.
        RunError: if a checkpoint cannot be read, or a restored image is not finite.
    """
    config = source.config
    mesh = device_mesh.make_mesh(devices or device_mesh.fitting_devices(config.eval.batch_size))
    device_mesh.check_batch_size(config.eval.batch_size, mesh, "config.eval.batch_size")
    model, variables, found = trained.read(source, mesh)
    if config.eval.oracle_mask and not getattr(model, "takes_mask", False):
        raise UsageError(f"config.eval.oracle_mask: {config.model.name} does not take a mask")
    trust = trained.read_trust(source, variables)

    data = make_data(source.data_config)
    folder = source.results_folder
    processes.on_first(lambda: results.set_aside_previous(folder, config, found))
    tree = mvtec_tree.TreeWriter(folder / "tree") if write_tree else None
    detectors, fitted_on = _fit_detectors(_extra_batches(data, "reference"), tree)
    observer = _Observer(
        protocol=config.eval.protocol,
        trust=trust,
        detectors=detectors,
        fitted_on=fitted_on,
        tree=tree,
        pictures=plots.Selection(config.eval.pictures),
    )
    run = functools.partial(
        per_image.evaluate,
        model,
        variables,
        mesh=mesh,
        oracle_mask=config.eval.oracle_mask,
    )
    rows = run(images=images_of(data, config.eval.split), observe=observer.measure_and_show)
    if not rows:
        raise UsageError(
            f"config.eval.split: {config.eval.split!r} of {data.name} has no images"
        )
    if warning := evaluation_lines.undegraded_line(rows):
        processes.on_first(lambda: print(warning))
    good_rows = run(images=_extra_batches(data, "good"), observe=observer.measure)
    observer.finish()

    summary = _summary(source, found, data, rows, good_rows, observer)
    examples = _examples(run, images_of(data, config.eval.split), rows, observer.with_trust_map)
    _write_results(source, summary, rows, good_rows, observer.pictures, examples)
    return summary, folder


class _Observer:
    """Measures each evaluated image on the host, and keeps what the results need of it.

    Args:
        protocol: `config.eval.protocol`.
        trust: the trust map of the model; None if it has none.
        detectors: a defect detector for each category that has one.
        fitted_on: ids of the photographs that the detectors were fitted on.
        tree: is given the images; None if they are not written.
        pictures: selects the images to show.

    Attributes:
        trust: as given.
        pictures: those selected; after `finish`, from the images of all processes.
    """

    def __init__(
        self,
        protocol: str,
        trust: Trust | None,
        detectors: Mapping[str, detect.Detector],
        fitted_on: Collection[str],
        tree: mvtec_tree.TreeWriter | None,
        pictures: plots.Selection,
    ) -> None:
        self.trust, self.pictures = trust, pictures
        self._protocol, self._tree = protocol, tree
        self._detectors, self._fitted_on = detectors, fitted_on
        self._found = Detectability(detectors)
        self._half_width = (
            None
            if trust is None
            else functools.partial(jax.jit(trust.model.apply), trust.variables)
        )

    def measure(self, image: Restored) -> None:
        """Adds figures to the row of an image, runs the detector on it and writes it."""
        # Reject NaN before it reaches a picture or a detector.
        fidelity.check_finite([image.row], fidelity.IMAGE_FIGURES)
        self._add_figures(self.with_trust_map(image))
        if self._is_for_detector(image):
            self._detect(image)
        if self._tree is not None:
            self._tree.add_test(image)

    def measure_and_show(self, image: Restored) -> None:
        """Like `measure`, for an image that may be shown as well."""
        self.measure(image)
        if self.pictures.wants(image.row["category"]):
            self.pictures.add(_triplet(image))

    def with_trust_map(self, image: Restored) -> Restored:
        """Returns an image with its trust map; as it is if the model has none."""
        if self._half_width is None:
            return image
        half_width = self._half_width(image.seen[None], image.restored[None])
        return image._replace(half_width=np.asarray(half_width)[0, ..., 0])

    def finish(self) -> None:
        """Completes the tree, and adds what the other processes kept."""
        if (tree := self._tree) is not None:
            tree.close()
            if tree.left_out:
                print(
                    f"{tree.folder}: {tree.left_out} images left out: their masks are not known"
                )
        for counts in processes.from_others(self._found.counts):
            self._found.add_counts(counts)
        self.pictures = self.pictures.merged(
            processes.gather_sorted(self.pictures.pictures(), key=lambda shown: shown.id)
        )

    def detectability(self) -> dict[str, Any] | None:
        """Returns the result of the detectors; None if there is none."""
        return self._found.result() if self._detectors else None

    def _add_figures(self, image: Restored) -> None:
        """Adds the figures computed on the host to the row of an image."""
        row, degraded, restored, clean, mask, has_mask, _, half_width = image
        row |= defects.preservation_figures(
            restored, degraded, clean, mask, has_mask, image.is_good
        )
        if self._protocol == "kla":
            known = mask if has_mask else np.zeros_like(mask)
            row |= kla.kla_figures(restored, clean, known)
        if self.trust is not None:
            alarm = self.trust.notes["alarm"]
            row |= coverage.trust_figures(half_width, restored, clean, mask, has_mask, alarm)

    def _is_for_detector(self, image: Restored) -> bool:
        """Returns whether a detector applies to an image."""
        # Scores on photographs that the detector was fitted on would be biased.
        return (
            image.row["category"] in self._detectors
            and image.row["id"] not in self._fitted_on
            and min(image.clean.shape[:2]) >= detect.MIN_SIZE
        )

    def _detect(self, image: Restored) -> None:
        """Runs the detector on the clean, degraded and restored image."""
        row, degraded, restored, clean, mask, has_mask, *_ = image
        self._found.add(
            row["category"], clean, degraded, restored, mask, has_mask, image.is_good
        )


def _summary(
    source: trained.Trained,
    found: Mapping[str, Any],
    data: batches.Data,
    rows: Sequence[Row],
    good_rows: Sequence[Row],
    observer: _Observer,
) -> Summary:
    """Returns the content of metrics.json; `found` is what was evaluated, its "checkpoint"."""
    config = source.config
    requested = results.data_and_settings(config)
    has_trust = observer.trust is not None
    summary = {
        "checkpoint": found,
        "data": {**requested["data"], "name": data.name, "count": len(rows)}
        | ({"target": data.target} if data.target else {}),
        "trained_on": dict(source.trained_on),
        "oracle_mask": config.eval.oracle_mask,
        **_summarise(rows, good_rows, config.eval.protocol, has_trust),
        "detectability": observer.detectability(),
        "settings": requested["settings"],
    }
    if observer.trust is not None:
        summary["trust"] = observer.trust.notes
    return summary


def _write_results(
    source: trained.Trained,
    summary: Summary,
    rows: Sequence[Row],
    good_rows: Sequence[Row],
    pictures: plots.Selection,
    examples: Sequence[evaluation_page.Example],
) -> None:
    """Writes the files of an evaluation, in the first process; see `results.write`."""
    config = source.config
    page = evaluation_page.Report(
        title=f"{source.title} on {summary['data']['name']}",
        summary=summary,
        rows=rows,
        examples=examples,
        config=workdir.as_json(config),
        detectability=summary["detectability"],
        oracle_mask=config.eval.oracle_mask,
    )
    folder = source.results_folder
    processes.on_first(
        lambda: results.write(folder, summary, rows, good_rows, pictures.pictures(), page)
    )


def images_of(data: batches.Data, split: str) -> Iterator[batches.Batch]:
    """Yields the batches of a `config.eval.split`: "train", "val", or "all" for both."""
    for part in ("train", "val") if split == "all" else (split,):
        yield from data.eval_batches(part)


def _extra_batches(data: batches.Data, part: str) -> Iterable[batches.Batch]:
    """Returns the batches of "reference" or "good", none if the data have no such part."""
    return data.eval_batches(part) if data.counts.get(part) else ()


def _fit_detectors(
    reference: Iterable[batches.Batch], tree: mvtec_tree.TreeWriter | None
) -> tuple[dict[str, detect.Detector], set[str]]:
    """Fits a detector for each category that has enough reference photographs.

    Returns:
        The detectors by category, and the ids of the photographs they were fitted on.
    """
    # The category, id and detector features of each photograph.
    measured: list[tuple[str, str, np.ndarray]] = []
    for batch in reference:
        for i in np.flatnonzero(batch["valid"]):
            category, image = str(batch["category"][i]), batch["clean"][i]
            if tree is not None:
                tree.add_reference(str(batch["id"][i]), category, image)
            if min(image.shape[:2]) >= detect.MIN_SIZE:
                measured.append((category, str(batch["id"][i]), detect.features(image)))
    features: dict[str, list[np.ndarray]] = {}
    ids: dict[str, set[str]] = {}
    for category, name, found in processes.gather_sorted(measured, key=lambda image: image[1]):
        features.setdefault(category, []).append(found)
        ids.setdefault(category, set()).add(name)
    detectors = {
        category: detect.fit_features(found)
        for category, found in sorted(features.items())
        if len(found) >= detect.MIN_IMAGES
    }
    return detectors, set().union(*(ids[category] for category in detectors))


def _triplet(image: Restored) -> plots.Triplet:
    return plots.Triplet(
        category=image.row["category"],
        defect_type=image.row["defect_type"],
        degraded=image_panels.to_uint8(image.degraded),
        restored=image_panels.to_uint8(image.restored),
        clean=image_panels.to_uint8(image.clean),
        mask=image.mask.copy(),  # a view would keep the whole batch in memory
        input_psnr=image.row["input_psnr"],
        psnr=image.row["psnr"],
        id=image.row["id"],
    )


def _summarise(
    rows: Sequence[Row], good_rows: Sequence[Row], protocol: str, has_trust: bool
) -> Summary:
    """Merges the summaries; `good_rows` only count for figures of defect-free photographs."""
    parts = [
        fidelity.summarise(rows),
        defects.summarise_preservation([*rows, *good_rows]),
    ]
    if protocol == "kla":
        parts.append(kla.summarise_kla(rows))
    if has_trust:
        parts.append(coverage.summarise_trust(rows))
    return fidelity.merge(parts)


def _same_figures(again: Row, measured: Row) -> bool:
    """Returns whether an image has the figures that were measured, but for rounding."""
    return all(
        np.isclose(again[name], measured[name], rtol=0, atol=_SAME_DB, equal_nan=True)
        for name in ("input_psnr", "psnr")
    )


def _examples(
    run: Callable[..., list[Row]],
    images: Iterable[batches.Batch],
    rows: Sequence[Row],
    with_trust_map: Callable[[Restored], Restored],
) -> list[evaluation_page.Example]:
    """Restores the best, median and worst image of each category (by PSNR) a second time.

    They are known only after all images have been measured, and the images of a large data set
    do not all fit in memory. All draws are fixed by the image's id, so that the second time
    gives the same arrays; an image whose figures say otherwise, because its file changed in the
    meantime, is left out with a line.
    """
    chosen: dict[str, list[str]] = {}
    figures_of = {row["id"]: row for row in rows}
    for category in {row["category"] for row in rows}:
        members = [row for row in rows if row["category"] == category]
        members.sort(key=lambda row: (-row["psnr"], row["id"]))
        for rank, position in (("best", 0), ("median", len(members) // 2), ("worst", -1)):
            chosen.setdefault(members[position]["id"], []).append(rank)
    found = []

    def keep(image: Restored) -> None:
        row = figures_of[image.row["id"]]
        if row["id"] not in chosen:
            return
        if not _same_figures(image.row, row):
            print(f"{row['id']}: not shown in the report: it changed after it was measured")
            return
        names = {name: row[name] for name in ("category", "defect_type", "id")}
        # Copied: views would keep the whole batch in memory.
        fields = with_trust_map(image).copied()._asdict() | names | {"row": row}
        del fields["seen"]
        found.extend(evaluation_page.Example(rank=rank, **fields) for rank in chosen[row["id"]])

    wanted = (batch for batch in images if not chosen.keys().isdisjoint(batch["id"].tolist()))
    run(images=wanted, observe=keep)
    found = processes.gather_sorted(found, key=lambda example: example.id)
    return sorted(found, key=lambda example: (example.category, example.id))
