"""Makes a compact file of pairs from MVTec AD, for machines without TensorFlow.

    python -m benchmarks.make_pairs --root=DIR --size=256 --split=all --output=pairs256.zip
    python -m benchmarks.make_pairs --root=DIR --size=512 --output=pairs512.zip --quality=95
    python -m benchmarks.make_pairs --root=DIR --size=0 --output=native.zip --quality=87

The pairs come from the project's own pipeline under the law `kla`; `benchmarks.compact_pairs`
documents the format. Without `--quality`, the file is lossless. Prints a JSON line with the
numbers of photographs and the size of the file. Requires TensorFlow and, temporarily, space for
the plain file beside the output: 200 MB for 314 photographs at 256×256.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from ml_collections import ConfigDict

from benchmarks import compact_pairs
from configs import default
from restore_jax import errors
from restore_jax.degradation import definition
from restore_jax.errors import UsageError
from restore_jax.train.on_device import dataset, pairs_file


def main(argv: Sequence[str] | None = None) -> None:
    """Makes a file according to the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="MVTec AD: its folder or archives")
    parser.add_argument("--size", type=int, default=256, help="side length, px; 0: native")
    parser.add_argument("--split", default="all", help="as config.data.split")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the new file")
    parser.add_argument("--quality", type=int, help="lossy WebP quality, 0 to 100")
    given = parser.parse_args(argv)
    with errors.exit_on_failure():
        line = make(given.root, given.size, given.split, given.output, given.quality)
    print(json.dumps(line))


def make(
    root: str, size: int, split: str, output: pathlib.Path, quality: int | None = None
) -> dict[str, object]:
    """Makes a compact file of pairs and returns a record of its contents.

    Args:
        root: as `config.data.root`.
        size: side length of the images in px; 0: native size.
        split: as `config.data.split`.
        output: the file to create.
        quality: WebP quality; None: lossless.

    Raises:
        UsageError: a value is wrong, the file exists, or the photographs cannot be read.
    """
    if output.exists():
        raise UsageError(f"--output={output}: exists; take another name")
    if quality is not None and not 0 <= quality <= 100:
        raise UsageError(f"--quality={quality}: must lie in 0 to 100")
    config = default.get_config("mvtec_ad")
    config.data.root = root
    config.data.split = split
    config.data.image_size = size
    config.data.realisations = 0
    config.data.references = 0
    config.data.augment = "flips"
    config.data.resident = True
    config.data.undo_gain = True  # stores the gains, for those networks that are given them
    output.parent.mkdir(parents=True, exist_ok=True)
    if not size:
        pairs = _native(config)
        compact_pairs.write(pairs, output, quality)
        return _line(output, size, split, quality, {k: len(v) for k, v in pairs.splits.items()})
    # Beside the output, since the system's temporary folder may be in memory.
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        config.data.resident_file = str(pathlib.Path(folder) / "plain.safetensors")
        with contextlib.redirect_stdout(sys.stderr):
            data = dataset.make_data(
                config, lambda: importlib.import_module("data.export_pairs")
            )
        compact_pairs.write(data.pairs, output, quality)
        counts = dict(data.counts)
    return _line(output, size, split, quality, counts)


def _native(config: ConfigDict) -> pairs_file.Pairs:
    """Reads the native photographs."""
    # Imported on demand, since they need TensorFlow.
    from data import export_pairs, pipeline  # noqa: PLC0415

    config, law, sources = pipeline.load(config)
    splits = {
        name: pairs_file.as_split(export_pairs.native_photographs(name, sources[name], config))
        for name in ("train", "val")
    }
    return pairs_file.Pairs(
        path=pathlib.Path(config.data.root),
        settings=pairs_file.settings_of(config),
        images="",
        law=dataclasses.asdict(law),
        symmetries=definition.symmetries(law),
        draws=0,
        splits=splits,
    )


def _line(
    output: pathlib.Path, size: int, split: str, quality: int | None, counts: dict[str, int]
) -> dict[str, object]:
    return {
        "op": "make_pairs",
        "file": str(output),
        "size": size,
        "split": split,
        "quality": quality,
        "train": counts["train"],
        "val": counts["val"],
        "bytes": output.stat().st_size,
    }


if __name__ == "__main__":
    main()
