"""The comparison job: evaluates the runs where necessary, and compares them side by side."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from restore_jax import batches
from restore_jax.config import schema, workdir
from restore_jax.errors import UsageError
from restore_jax.evaluation import compare, evaluate, per_image, results, trained
from restore_jax.evaluation.compare import Run
from restore_jax.evaluation.per_image import Restored
from restore_jax.evaluation.trained import Trained
from restore_jax.metrics import cost
from restore_jax.parallel import device_mesh
from restore_jax.report import comparison_page, evaluation_lines
from restore_jax.report.comparison_page import Shown

_TIMED_IMAGES = 4
_ROUNDS = 10
_INPUT = "degraded input"

Comparison = dict[str, Any]
Model = tuple[nn.Module, Mapping[str, Any]]


def compare_runs(
    given: Sequence[str | pathlib.Path],
    which: str,
    make_data: Callable[[ConfigDict], batches.Data],
    override: ConfigDict | None = None,
    output: pathlib.Path | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Comparison, pathlib.Path]:
    """Compares trained models on the same images.

    Evaluates each model, unless it has already been evaluated with these settings, times all
    models in turn on one device, and writes comparison.json and compare.html.

    Args:
        given: workdirs, weights files or names of shipped models; the others are compared with
            the first.
        which: the checkpoint of each workdir: "best", "latest" or a step.
        make_data: creates the data that a configuration describes; called once per distinct
            settings.
        override: a configuration whose data and evaluation sections replace those of each
            workdir. If None, weights files and shipped models are evaluated on the data of the
            first workdir.
        output: the folder for the comparison, and for the evaluations of weights files and
            shipped models, each in `NAME/evaluation/`; those of a workdir stay in it. If None,
            the comparison goes to `evaluation/<data>-<which>-against-<names>` beside the first
            evaluation, and those evaluations to `runs/NAME`, as for `trained.find`.
        devices: the devices to use; if None, those of `device_mesh.fitting_devices`.

    Returns:
        The content of comparison.json, and the folder it was written to.

    Raises:
        UsageError: as `trained.find`, `evaluate.evaluate_model` and `compare.check`.
    """
    if len(given) < 2:
        raise UsageError(
            f"a comparison takes two or more models, got {len(given)}; name each of them"
        )
    resolved = [pathlib.Path(one).resolve() for one in given]
    if len(set(resolved)) < len(resolved):
        raise UsageError(f"a model is given twice in {', '.join(map(str, given))}")
    trained.check_output(output)
    make_once = batches.cached(make_data)
    sources = _find(given, which, override, output)
    configs = [source.config for source in sources]
    # Reject runs on different data before spending time on evaluation.
    requested = zip(map(str, given), map(results.data_and_settings, configs), strict=True)
    compare.check_data(list(requested))
    runs, models = [], []
    sizes = (config.eval.batch_size for config in configs)
    mesh = device_mesh.make_mesh(devices or device_mesh.fitting_devices(*sizes))
    for source in sources:
        stored = source.stored()
        summary, folder = stored or evaluate.evaluate_model(source, make_once, devices)
        print(f"{source.given}: {'already evaluated' if stored else 'evaluated'}, {folder}")
        model, variables, _ = trained.read(source, mesh)
        models.append((model, variables))
        runs.append(_make_run(source, summary, folder))
    compare.check(runs)

    chosen = compare.choose_images(runs, configs[0].eval.pictures)
    shown = _restore_chosen(
        models,
        runs,
        [
            functools.partial(evaluate.images_of, data, configs[0].eval.split)
            for data in _data_of_first(sources, make_once)
        ],
        chosen,
        mesh,
    )
    data = make_once(sources[0].data_config)
    costs, conditions = _measure_costs(
        models, next(evaluate.images_of(data, configs[0].eval.split))
    )
    runs = [
        dataclasses.replace(run, cost=measured)
        for run, measured in zip(runs, costs, strict=True)
    ]
    comparison = compare.compare(runs, conditions)
    if output is None:
        first = sources[0].results_folder
        names = "-".join(map(_name, resolved[1:]))
        output = first.with_name(f"{first.name}-against-{names}"[:200])
    comparison_page.write_comparison(output, comparison, shown)
    return comparison, output


def format_comparison(comparison: Comparison, output: pathlib.Path) -> str:
    """Formats the figures of each run and the path of the comparison for a terminal."""
    columns = (
        ("PSNR", "psnr", ".2f"),
        ("SSIM", "ssim", ".4f"),
        ("defect PSNR", "defect_psnr", ".2f"),
        ("contrast kept", "defect_contrast", ".2f"),
        ("erased", "erasure_rate", ".0%"),
    )
    names = [f"{run['letter']}: {run['workdir']}" for run in comparison["runs"]]
    width = max(map(len, [*names, _INPUT]))
    titles = [title.rjust(7) for title, _, _ in columns] + ["parameters", "   GMAC", "ms/image"]

    def figures(name: str, micro: Mapping[str, Any], prefix: str = "") -> list[str]:
        cells = [name.ljust(width)]
        for title, (_, key, form) in zip(titles, columns, strict=False):
            cells.append(results.format_cell(micro.get(prefix + key), form).rjust(len(title)))
        return cells

    lines = ["  ".join([" " * width, *titles])]
    # The same for all.
    lines.append("  ".join(figures(_INPUT, comparison["runs"][0]["micro"], "input_")))
    for name, run in zip(names, comparison["runs"], strict=True):
        cells = figures(name, run["micro"])
        measured = run["cost"]
        cells += [f"{measured['parameters']:10,}", f"{measured['gmac']:7.2f}"]
        cells.append(f"{measured['ms_per_image']:8.1f}")
        lines.append("  ".join(cells))
    for found in comparison["differences"]:
        if found["measure"] in ("psnr", "ssim"):
            delta = found["micro"]
            interval = ""
            if delta["low"] is not None:
                interval = f" (95 %: {delta['low']:+.4g} to {delta['high']:+.4g})"
            lines.append(
                f"{found['run']} against {found['against']}: {found['measure'].upper()} "
                f"{delta['difference']:+.4g}{interval}, {delta['verdict']}"
            )
    return "\n".join(["", *lines, f"\ncomparison  {output / 'compare.html'}"])


def _name(path: pathlib.Path) -> str:
    """Returns the name of a workdir, a weights file or a shipped model."""
    return path.name.removesuffix(".safetensors")


def _find(
    given: Sequence[str | pathlib.Path],
    which: str,
    override: ConfigDict | None,
    output: pathlib.Path | None,
) -> list[Trained]:
    """Finds the models; those without data of their own use the data of the first workdir."""
    folders = [pathlib.Path(one) for one in given if pathlib.Path(one).is_dir()]
    fallback = override or (workdir.read_config(folders[0]) if folders else None)
    return [
        trained.find(
            one,
            which,
            override if pathlib.Path(one) in folders else fallback,
            None if output is None else output / _name(pathlib.Path(one)),
        )
        for one in given
    ]


def _data_of_first(
    sources: Sequence[Trained], make_data: Callable[[ConfigDict], batches.Data]
) -> list[batches.Data]:
    """Returns the data of the first model, as each of the models expects it."""
    found = []
    for source in sources:
        config = sources[0].data_config.copy_and_resolve_references()
        config.data.undo_gain = schema.undoes_gain(source.config)
        found.append(make_data(config))
    return found


def _make_run(source: Trained, summary: results.Summary, folder: pathlib.Path) -> Run:
    return Run(
        workdir=source.given,
        name=source.title,
        summary=summary,
        rows=results.read_rows(folder / "images.csv"),
        good_rows=results.read_rows(folder / "good.csv"),
        oracle_mask=summary["oracle_mask"],
        seen_in_training=bool(evaluation_lines.seen_in_training(summary)),
    )


def _measure_costs(
    models: Sequence[Model], batch: batches.Batch
) -> tuple[list[cost.Cost], dict[str, Any]]:
    """Measures the models on the first images of a batch, on a single device.

    Returns:
        The costs in the order of the models, and the "conditions" of comparison.json.
    """
    device = jax.devices()[0]
    count = min(_TIMED_IMAGES, int(np.count_nonzero(batch["valid"])))
    images = jax.device_put(batch["degraded"][:count], device)
    on_device = {
        str(i): (model, jax.device_put(variables, device))
        for i, (model, variables) in enumerate(models)
    }
    costs = cost.measure(on_device, images, _ROUNDS)
    conditions = {
        "device": device.device_kind,
        "height": images.shape[1],
        "width": images.shape[2],
        "batch": images.shape[0],
        "rounds": _ROUNDS,
    }
    return [costs[name] for name in on_device], conditions


def _restore_chosen(
    models: Sequence[Model],
    runs: Sequence[Run],
    images: Sequence[Callable[[], Iterator[batches.Batch]]],
    chosen: Sequence[str],
    mesh: jax.sharding.Mesh,
) -> list[Shown]:
    """Restores the chosen images with every model, in the same way as its run was evaluated."""
    found: dict[str, list[Restored]] = {name: [] for name in chosen}

    def keep(image: Restored) -> None:
        if image.row["id"] in found:
            # Copied: views would keep the whole batch in memory.
            found[image.row["id"]].append(image.copied())

    for (model, variables), run, images_of in zip(models, runs, images, strict=True):
        wanted = (b for b in images_of() if not found.keys().isdisjoint(b["id"].tolist()))
        per_image.evaluate(
            model,
            variables,
            wanted,
            mesh,
            observe=keep,
            oracle_mask=run.oracle_mask,
        )
    rows = [{row["id"]: row for row in run.rows} for run in runs]
    return [
        Shown(
            id=name,
            category=each[0].row["category"],
            defect_type=each[0].row["defect_type"],
            degraded=each[0].degraded,
            clean=each[0].clean,
            restored=[image.restored for image in each],
            mask=each[0].mask,
            has_mask=each[0].has_mask,
            rows=[figures[name] for figures in rows],
        )
        for name, each in found.items()
    ]
