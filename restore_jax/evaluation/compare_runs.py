"""The comparison job: evaluates the runs where need be, and puts them side by side."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from restore_jax import batches
from restore_jax.config import workdir
from restore_jax.errors import UsageError
from restore_jax.evaluation import compare, evaluate, per_image, results, trained
from restore_jax.evaluation.compare import Run
from restore_jax.evaluation.per_image import Restored
from restore_jax.evaluation.trained import Trained
from restore_jax.metrics import cost
from restore_jax.parallel import device_mesh
from restore_jax.report import comparison_page, evaluation_page
from restore_jax.report.comparison_images import Shown

_TIMED_IMAGES = 4
_ROUNDS = 10

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

    Evaluates each, unless that was done with these settings before, times all models in
    turn on one device, and writes comparison.json and compare.html.

    Args:
        given: workdirs, weights files or names of shipped models; the others are compared with
            the first.
        which: "best", "latest" or a step, of each workdir.
        make_data: makes the data that a configuration asks for; called once per settings.
        override: a configuration whose data and evaluation sections take the place of each
            workdir's; None: files and names are evaluated on the data of the first workdir.
        output: the folder of the comparison; None: `evaluation/<data>-<which>-against-<names>`
            where the first one's evaluation is.
        devices: those to run on; all there are, if None.

    Returns:
        The content of comparison.json, and the folder.

    Raises:
        UsageError: as `trained.find`, `evaluate.evaluate_model` and `compare.check`.
    """
    if len(given) < 2:
        raise UsageError("--workdir: a comparison takes two or more; give --workdir for each")
    resolved = [pathlib.Path(one).resolve() for one in given]
    if len(set(resolved)) < len(resolved):
        raise UsageError(f"--workdir: the same twice: {', '.join(map(str, given))}")
    if output is not None and output.exists() and not output.is_dir():
        raise UsageError(f"--output={output}: is a file; name a folder for the comparison")
    make_once = batches.cached(make_data)
    sources = _find(given, which, override)
    configs = [source.config for source in sources]
    # Before anything is evaluated or timed: runs of different data cannot be compared.
    asked = zip(map(str, given), map(results.data_and_settings, configs), strict=True)
    compare.check_data(list(asked))
    runs, models = [], []
    sizes = (config.eval.batch_size for config in configs)
    mesh = device_mesh.make_mesh(devices or device_mesh.fitting_devices(*sizes))
    for source in sources:
        found = source.stored()
        summary, where = found or evaluate.evaluate_model(source, make_once, devices)
        print(f"{source.given}: {'evaluated before' if found else 'evaluated'}, {where}")
        model, variables, _ = trained.read(source, mesh)
        models.append((model, variables))
        runs.append(_run(source, summary, where))
    compare.check(runs)

    data = make_once(sources[0].data_config)
    chosen = compare.choose_images(runs, configs[0].eval.pictures)
    shown = _restore(
        models,
        runs,
        lambda: evaluate.images_of(data, configs[0].eval.split),
        chosen,
        mesh,
    )
    images = _to_time(next(evaluate.images_of(data, configs[0].eval.split)))
    costs = cost.measure(
        {str(i): _on_one_device(model) for i, model in enumerate(models)}, images, _ROUNDS
    )
    runs = [_with_cost(run, costs[str(i)]) for i, run in enumerate(runs)]
    conditions = {
        "device": jax.devices()[0].device_kind,
        "height": images.shape[1],
        "width": images.shape[2],
        "batch": images.shape[0],
        "rounds": _ROUNDS,
    }
    comparison = compare.compare(runs, conditions)
    if output is None:
        label = sources[0].where
        names = "-".join(path.name.removesuffix(".safetensors") for path in resolved[1:])
        output = label.with_name(f"{label.name}-against-{names}"[:200])
    comparison_page.write_comparison(output, comparison, shown)
    return comparison, output


def format_comparison(comparison: Comparison, output: pathlib.Path) -> str:
    """Formats the figures of each run for a terminal, and where the comparison lies."""
    columns = (
        ("PSNR", "psnr", ".2f"),
        ("SSIM", "ssim", ".4f"),
        ("defect PSNR", "defect_psnr", ".2f"),
        ("contrast kept", "defect_contrast", ".2f"),
        ("erased", "erasure_rate", ".0%"),
    )
    names = [f"{run['letter']}: {run['workdir']}" for run in comparison["runs"]]
    width = max(map(len, names))
    titles = [title.rjust(7) for title, _, _ in columns] + ["parameters", "   GMAC", "ms/image"]
    lines = ["  ".join([" " * width, *titles])]
    for name, run in zip(names, comparison["runs"], strict=True):
        cells = [name.ljust(width)]
        for title, (_, key, form) in zip(titles, columns, strict=False):
            cells.append(results.format_cell(run["micro"].get(key), form).rjust(len(title)))
        spent = run["cost"]
        cells += [f"{spent['parameters']:10,}", f"{spent['gmac']:7.2f}"]
        cells.append(f"{spent['ms_per_image']:8.1f}")
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


def _find(
    given: Sequence[str | pathlib.Path], which: str, override: ConfigDict | None
) -> list[Trained]:
    """Finds the models; those without data of their own take the first workdir's."""
    folders = [pathlib.Path(one) for one in given if pathlib.Path(one).is_dir()]
    lent = override or (workdir.read_config(folders[0]) if folders else None)
    return [
        trained.find(one, which, override if pathlib.Path(one) in folders else lent)
        for one in given
    ]


def _run(source: Trained, summary: results.Summary, where: pathlib.Path) -> Run:
    return Run(
        workdir=source.given,
        name=source.title,
        summary=summary,
        rows=results.read_rows(where / "images.csv"),
        good_rows=results.read_rows(where / "good.csv"),
        oracle_mask=summary["oracle_mask"],
        seen_in_training=bool(evaluation_page.seen_in_training(summary)),
    )


def _with_cost(run: Run, spent: cost.Cost) -> Run:
    return Run(**{**vars(run), "cost": spent})


def _to_time(batch: batches.Batch) -> jax.Array:
    count = min(_TIMED_IMAGES, int(np.count_nonzero(batch["valid"])))
    return jax.device_put(batch["degraded"][:count], jax.devices()[0])


def _on_one_device(model: Model) -> Model:
    return model[0], jax.device_put(model[1], jax.devices()[0])


def _restore(
    models: Sequence[Model],
    runs: Sequence[Run],
    images: Callable[[], Iterator[batches.Batch]],
    chosen: Sequence[str],
    mesh: jax.sharding.Mesh,
) -> list[Shown]:
    """Restores the chosen images with every model, each as its run was evaluated."""
    found: dict[str, list[Restored]] = {name: [] for name in chosen}

    def keep(image: Restored) -> None:
        if image.row["id"] in found:
            # Parts of a batch would keep the whole of it in memory.
            found[image.row["id"]].append(image.copied())

    for (model, variables), run in zip(models, runs, strict=True):
        wanted = (b for b in images() if not found.keys().isdisjoint(b["id"].tolist()))
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
