"""The commands of launch.py and `restore-jax`, run after the flags are parsed.

A command takes the parsed flags, calls the library and prints the result. The data come from a
function passed in by the caller, so that nothing here needs TensorFlow. Each command imports
what it needs itself: the imports of a training take longer than restoring an image.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from restore_jax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from restore_jax import batches
    from restore_jax.folders import plan
    from restore_jax.folders.report import Report
    from restore_jax.folders.table import Table
    from restore_jax.inference.restorer import Restorer

# A browser shows it at full size, twice.
_SERVED_MEGAPIXELS = 64

MakeData = Callable[["ConfigDict"], "batches.Data"]


@dataclasses.dataclass(frozen=True)
class Flags:
    """The flags of launch.py; those not given are None, false or empty."""

    config: "ConfigDict | None" = None
    workdir: Sequence[str] = ()
    checkpoint: str | None = None
    watch: bool = False
    write_tree: bool = False
    input: Sequence[str] = ()
    output: str | None = None
    format: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    side_by_side: bool = False
    report: bool = False
    compare: bool = False
    strength: float | None = None
    skip_outside: bool = False
    skip_assessment: bool = False
    self_ensemble: str | None = None
    undo_gain: bool | None = None
    tile: int | None = None
    shard: str | None = None
    dtype: str | None = None
    calibration: str | None = None
    pack: bool = False
    size: str | None = None
    metadata: Sequence[str] = ()
    max_megapixels: int | None = None
    pages: str | None = None
    white: int | None = None
    weights: str | None = None
    trust: bool = False
    host: str | None = None
    port: int | None = None
    max_megabytes: int | None = None
    max_queue: int | None = None
    timeout: int | None = None


def run_train(flags: Flags, make_data: MakeData) -> None:
    """Trains a run to its end and evaluates its best checkpoint, skipping what is done."""
    from restore_jax.evaluation import evaluate, results, training_range  # noqa: PLC0415
    from restore_jax.parallel import processes  # noqa: PLC0415
    from restore_jax.train import loop  # noqa: PLC0415

    config, folder = flags.config, _workdir(flags)
    assert config is not None  # checked with the flags
    loop.train(config, folder, make_data)
    processes.on_first(lambda: training_range.write(folder, config, make_data))
    found = processes.on_first(lambda: results.read_stored(folder, config, "best"))
    print(
        results.format_report(*found or evaluate.evaluate_checkpoint(folder, "best", make_data))
    )


def run_evaluate(flags: Flags, make_data: MakeData) -> None:
    """Evaluates a checkpoint or weights, or each new checkpoint of a running training."""
    from restore_jax.evaluation import (  # noqa: PLC0415
        evaluate,
        results,
        trained,
        watch,
    )

    folder = _workdir(flags)
    if flags.watch:
        for name in ("checkpoint", "output"):
            if getattr(flags, name):
                raise UsageError(f"--{name}: not with --watch, which evaluates each checkpoint")
        watch.watch(folder, make_data, flags.config, write_tree=flags.write_tree)
        return
    output = pathlib.Path(flags.output).expanduser() if flags.output else None
    trained.check_output(output)
    model = trained.find(folder, flags.checkpoint or "best", flags.config, output)
    if model.file is None and output is not None:
        raise UsageError(
            f"--output={output}: evaluations of a run are saved in its workdir; leave it out"
        )
    if model.file is not None and flags.checkpoint:
        raise UsageError(f"--checkpoint: {model.given} holds a single state; leave it out")
    summary, where = evaluate.evaluate_model(model, make_data, write_tree=flags.write_tree)
    print(results.format_report(summary, where))


def run_compare(flags: Flags, make_data: MakeData) -> None:
    """Compares several runs on the same images."""
    from restore_jax.evaluation import compare_runs  # noqa: PLC0415

    found = compare_runs.compare_runs(
        [pathlib.Path(one).expanduser() for one in flags.workdir],
        flags.checkpoint or "best",
        make_data,
        flags.config,
        pathlib.Path(flags.output).expanduser() if flags.output else None,
    )
    print(compare_runs.format_comparison(*found))


def run_restore(flags: Flags, make_data: MakeData | None = None) -> None:
    """Restores files and folders of images, by default with the default shipped model."""
    from restore_jax.folders import plan, run, table  # noqa: PLC0415

    del make_data
    _check_restore(flags)
    output = pathlib.Path(_given(flags.output)).expanduser()
    max_pixels = plan.pixel_limit(flags.max_megapixels)
    passed_over: collections.Counter[str] = collections.Counter()
    items = plan.plan(flags.input, output, flags.format, flags.shard, passed_over)
    if flags.dry_run:
        _print_plan(items, flags.overwrite, passed_over)
        return
    comparisons = output / "compare" if flags.side_by_side or flags.compare else None
    maps = output / "trust" if flags.trust else None
    plan.check_beside(items, run.files_beside(items, comparisons, maps))
    plan.check_output(output)
    listed = table.table(flags.input, output, flags.shard, flags.report)
    page = _page_of(listed) if flags.report and listed else None
    outcome = run.restore_files(
        _restorer(flags),
        items,
        file_format=flags.format,
        overwrite=flags.overwrite,
        comparisons=comparisons,
        max_pixels=max_pixels,
        pages=flags.pages or "all",
        white=flags.white,
        table=listed,
        skip_outside=flags.skip_outside,
        assesses=not flags.skip_assessment,
        maps=maps,
        pictures=page and page.pictures,
    )
    if page is not None:
        print(page.write(flags.input))
    if outcome.skipped and (comparisons or maps):
        print("files that are skipped get no new trust map or picture beside them")
    print(run.format_outcome(outcome, output, passed_over))


def _check_restore(flags: Flags) -> None:
    """Checks the flags of a restoration that need no look at the files."""
    if flags.white is not None and not 1 <= flags.white <= 65535:
        raise UsageError(f"--white={flags.white}: must lie between 1 and 65535")
    if flags.skip_outside and flags.skip_assessment:
        raise UsageError("--skip_outside: not with --skip_assessment, which finds none outside")
    if flags.report and flags.skip_assessment:
        raise UsageError("--report: not with --skip_assessment, which leaves the noise unknown")


def _print_plan(
    items: "Sequence[plan.Item]", overwrite: bool, passed_over: collections.Counter[str]
) -> None:
    """Prints what would be restored into which file."""
    from restore_jax.image_io import image_paths  # noqa: PLC0415

    for item in items:
        exists = item.target.exists() and not overwrite
        print(f"{item.source} -> {item.target}{' (exists, skipped)' if exists else ''}")
    if passed_over:
        print(f"passed over: {image_paths.format_passed_over(passed_over)}")


def _page_of(table: "Table") -> "Report":
    """Returns the page that is written beside a table."""
    # Imported only for --report, as it takes Jinja.
    from restore_jax.folders.report import Report  # noqa: PLC0415

    return Report(table)


def _restorer(flags: Flags) -> "Restorer":
    """Loads the model of a restoration with the options that were given.

    Raises:
        UsageError: if it cannot be loaded, or lacks a trust map that was asked for.
    """
    from restore_jax import shipped  # noqa: PLC0415
    from restore_jax.inference.restorer import load  # noqa: PLC0415

    if flags.workdir:
        model: str | pathlib.Path = _workdir(flags)
    else:
        model = shipped.verified(shipped.default().name).path
        print(shipped.one_line(shipped.default()))
    options = {
        "strength": flags.strength,
        "self_ensemble": flags.self_ensemble,
        "undo_gain": flags.undo_gain,
    }
    restorer = load(
        model,
        flags.checkpoint or "best",
        **{name: value for name, value in options.items() if value is not None},
        tile=flags.tile,
    )
    if flags.trust and restorer.trust_map is None:
        raise UsageError(
            f"--trust: {model} has no trust map, or that of another checkpoint or an earlier "
            f"version; make one with restore-jax trust {model}"
        )
    return restorer


def run_serve(flags: Flags, make_data: MakeData | None = None) -> None:
    """Restores photographs for a page and an HTTP endpoint until it is stopped."""
    from restore_jax import shipped  # noqa: PLC0415
    from restore_jax.folders import plan  # noqa: PLC0415
    from restore_jax.inference.restorer import Restorer, load  # noqa: PLC0415
    from restore_jax.serve import app, server  # noqa: PLC0415

    del make_data
    for name in ("max_megabytes", "max_queue", "timeout"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise UsageError(f"--{name}={value}: must be at least 1")
    names = [str(_workdir(flags))] if flags.workdir else shipped.models_available()

    def load_by_name(name: str) -> Restorer:
        path = name if flags.workdir else shipped.verified(name).path
        return load(path, flags.checkpoint or "best")

    server.run(
        server.Address(flags.host or "127.0.0.1", 8000 if flags.port is None else flags.port),
        names,
        load_by_name,
        plan.pixel_limit(
            _SERVED_MEGAPIXELS if flags.max_megapixels is None else flags.max_megapixels
        ),
        flags.max_queue or 8,
        app.Limits((flags.max_megabytes or 512) * 1_000_000, flags.timeout or 600),
    )


def run_export(flags: Flags, make_data: MakeData | None = None) -> None:
    """Exports a model as a weights file, or as ONNX or StableHLO to run without this project.

    The suffix of --output decides: .safetensors, .onnx, otherwise a folder for StableHLO or,
    with --pack, for ONNX and what is needed beside it.
    """
    from restore_jax.checkpoints import weights_file  # noqa: PLC0415
    from restore_jax.inference import export  # noqa: PLC0415
    from restore_jax.inference.deploy import pack, quantisation  # noqa: PLC0415
    from restore_jax.inference.restorer import load  # noqa: PLC0415

    del make_data
    source, output = _workdir(flags), pathlib.Path(_given(flags.output)).expanduser()
    _check_export(flags, output.suffix)
    size = _size(flags.size) if flags.size is not None else None
    # Metadata of the source file, such as its licence, stay with the weights.
    notes = weights_file.read_source_notes(source) | _notes(flags.metadata)
    restorer = load(source, flags.checkpoint or "best")
    model, config = (restorer.model, restorer.variables, output), restorer.config
    notes = weights_file.with_licence(config, notes)
    dtype, overwrite = flags.dtype or "float32", flags.overwrite
    calibration = None
    if flags.calibration is not None:
        folder = pathlib.Path(flags.calibration).expanduser()
        calibration = quantisation.read(folder, restorer, None if flags.pack else size)
    if flags.pack:
        name = notes.get("name") or source.stem
        print(pack.write_pack(restorer, output, name, size, overwrite, notes, calibration))
    elif output.suffix == ".safetensors":
        trust = restorer.trust_map
        print(export.export_weights(*model, config, dtype, notes, overwrite, trust))
    elif output.suffix == ".onnx":
        print(export.export_onnx(*model, config, size, overwrite, notes, dtype, calibration))
    else:
        print(export.export_stablehlo(*model, config, size, overwrite, notes))


def _check_export(flags: Flags, suffix: str) -> None:
    """Checks that the flags of an export go together."""
    is_folder = flags.pack or pathlib.Path(_given(flags.output)).expanduser().is_dir()
    if suffix[1:].isalpha() and suffix not in (".safetensors", ".onnx") and not is_folder:
        raise UsageError(
            f"--output={flags.output}: {suffix} is no format; name a FILE.onnx, a "
            "FILE.safetensors, or a folder, for StableHLO"
        )
    if flags.pack and suffix in (".safetensors", ".onnx"):
        raise UsageError(f"--pack: writes a folder; name one in --output={flags.output}")
    if flags.pack and flags.dtype:
        raise UsageError("--dtype: not with --pack, which has a file of each")
    if flags.size and suffix == ".safetensors":
        raise UsageError(f"--size={flags.size}: only for --output=FILE.onnx or a folder")
    dtypes = {".safetensors": ("float32", "float16"), ".onnx": ("float32", "float16", "int8")}
    if flags.dtype and suffix not in dtypes:
        raise UsageError("--dtype: only for --output=FILE.onnx or FILE.safetensors")
    if flags.dtype and flags.dtype not in dtypes[suffix]:
        known = " or ".join(dtypes[suffix])
        raise UsageError(f"--dtype={flags.dtype}: of {suffix}, give {known}")
    is_int8 = flags.dtype == "int8"
    if is_int8 and not flags.calibration:
        raise UsageError(
            "--dtype=int8: needs --calibration=FOLDER, with photographs such as are to be "
            "restored"
        )
    if flags.calibration and not (is_int8 or flags.pack):
        raise UsageError("--calibration: only for --dtype=int8 or --pack")


def run_import(flags: Flags, make_data: MakeData) -> None:
    """Creates a workdir from weights that were published for PyTorch."""
    from restore_jax.checkpoints import torch_import  # noqa: PLC0415

    del make_data
    folder = _workdir(flags)
    print(
        torch_import.import_weights(
            flags.config, pathlib.Path(_given(flags.weights)).expanduser(), folder
        )
    )


def run_calibrate(flags: Flags, make_data: MakeData) -> None:
    """Fits the degradation law to pairs, or to degraded photographs alone."""
    from restore_jax.evaluation import calibrate  # noqa: PLC0415

    del make_data
    assert flags.config is not None
    output = pathlib.Path(_given(flags.output)).expanduser()
    print(calibrate.calibrate(flags.config, output, flags.overwrite))


def run_trust(flags: Flags, make_data: MakeData) -> None:
    """Trains and calibrates the trust map of a run, a weights file or a shipped model."""
    from restore_jax.evaluation import fit_trust, trained  # noqa: PLC0415

    source = trained.find(_workdir(flags), flags.checkpoint or "best", flags.config)
    output = pathlib.Path(flags.output).expanduser() if flags.output else None
    print(fit_trust.fit_trust(source, make_data, output, flags.overwrite))


COMMANDS: dict[str, Callable[..., None]] = {
    "train": run_train,
    "evaluate": run_evaluate,
    "compare": run_compare,
    "restore": run_restore,
    "export": run_export,
    "import": run_import,
    "calibrate": run_calibrate,
    "trust": run_trust,
    "serve": run_serve,
}

# What pip is to install for a mode; for all others, the checkout with what training needs.
_TO_INSTALL = {
    "restore": "restore_jax",
    "export": "restore_jax[export]",
    "serve": "restore_jax[serve]",
}

# A module of these that is not found is a defect, and no package that is not installed.
_OURS = ("restore_jax", "configs", "data")


def run(mode: str, flags: Flags, make_data: MakeData | None = None) -> None:
    """Does what a mode is for.

    Args:
        mode: a key of `COMMANDS`.
        flags: the parsed flags.
        make_data: creates the data that a configuration describes; None for restore, export
            and serve, which take none.

    Raises:
        UsageError: where it needs a package that is not installed; and as the command.
    """
    try:
        COMMANDS[mode](flags, make_data)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", *_OURS):
            raise
        wanted = _TO_INSTALL.get(mode, ".[train]")
        raise UsageError(
            f"{package}: not installed, and {mode} needs it; pip install '{wanted}'"
        ) from error


def _given(value: str | None) -> str:
    """Returns the value of a flag whose presence was checked with the flags."""
    assert value is not None
    return value


def _notes(given: Sequence[str]) -> dict[str, str]:
    """Parses the metadata of an exported file, each entry given as KEY=TEXT."""
    pairs = [text.partition("=") for text in given]
    for text, (_, sign, _) in zip(given, pairs, strict=True):
        if not sign:
            raise UsageError(
                f"--metadata={text}: give KEY=TEXT, for example licence=Apache-2.0"
            )
    return {key: value for key, _, value in pairs}


def _size(given: str) -> tuple[int, int]:
    """Parses HEIGHTxWIDTH into the height and width of images in px."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", given)
    if found is None:
        raise UsageError(
            f"--size={given}: give HEIGHTxWIDTH in pixels, for example --size=512x768"
        )
    return int(found[1]), int(found[2])


def _workdir(flags: Flags) -> pathlib.Path:
    """Returns the only workdir that was given, or the default one of the configuration."""
    if len(flags.workdir) > 1:
        raise UsageError("--workdir: only --mode=compare takes several; give one")
    if flags.workdir:
        return pathlib.Path(flags.workdir[0]).expanduser()
    assert flags.config is not None
    return pathlib.Path(f"runs/{flags.config.name}_{flags.config.data.name}")
