"""Writes a folder with all that another program needs to restore with a model.

It has the model as ONNX in several precisions, a manifest, the code that cuts photographs into
tiles, and a page that explains them.
"""

import dataclasses
import hashlib
import json
import pathlib
import string
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from restore_jax import models
from restore_jax.errors import UsageError
from restore_jax.inference import export, tile_plan
from restore_jax.inference.deploy import onnx_graph, quantisation
from restore_jax.inference.restorer import Restorer

_HERE = pathlib.Path(__file__).parent
_GAIN = (
    "The model was trained on photographs whose digital gain is undone: divide each channel by "
    "its gain first, `restorer(photograph, gain=(1.05, 1.0, 0.96))` in Python. "
    "`restore_jax.degradation.digital_gain.of_photograph` finds it in the histogram of an "
    "8-bit photograph that was neither resized nor compressed with loss."
)
_DEGRADED = (
    "`degraded` is float32 `[B, H, W, 3]`, RGB in [0, 1], of any batch, height and width. A "
    "file for one size takes `[1, H, W, 3]` of exactly that."
)
_CONTEXT = (
    "`context` is the whole photograph that `degraded` is a part of, `[B, P, Q, 3]` of any "
    "size; its thumbnail of 64×64 px, as in `restore.py`, gives the same result. The model "
    "estimates the gain of the channels from it. A file for one size has no such input, and "
    "estimates it from the image."
)


@dataclasses.dataclass(frozen=True)
class _Model:
    """A model file of a pack.

    Attributes:
        file: its name.
        dtype: "float32", "float16" or "int8".
        shape: shape of its input and output; a letter for a dimension of any size.
        about: what it is for, one phrase.
        content: the file.
        cost: what the precision costs, if it was measured.
    """

    file: str
    dtype: str
    shape: tuple[int | str, ...]
    about: str
    content: bytes
    cost: quantisation.Cost | None = None

    def entry(self) -> dict[str, Any]:
        """Returns its entry of the manifest."""
        return {
            "file": self.file,
            "sha256": hashlib.sha256(self.content).hexdigest(),
            "bytes": len(self.content),
            "weights": self.dtype,
            "shape": list(self.shape),
        } | ({"cost": dataclasses.asdict(self.cost)} if self.cost else {})


def write_pack(
    restorer: Restorer,
    folder: pathlib.Path,
    name: str,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    notes: Mapping[str, str] | None = None,
    calibration: Sequence[quantisation.Example] | None = None,
) -> str:
    """Writes the folder.

    Args:
        restorer: the model; its tile and overlap are those of the pack.
        folder: the folder; created.
        name: name of the model.
        size: height and width of a further file for images of that size only.
        overwrite: whether existing files may be replaced.
        notes: texts for the metadata, such as "licence".
        calibration: the photographs for a file with 8 bits; None: there is none.

    Returns:
        Lines for a terminal.

    Raises:
        UsageError: if a file exists, or packages of the extra `export` are missing.
        RunError: if the model cannot be converted for any size.
    """
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"--output={folder}: exists; use another name, or give --overwrite")
    found = _models(restorer, folder, size, notes or {}, calibration)
    manifest = _manifest(restorer, name, notes or {}, found)
    for model in found:
        export.write(folder / model.file, model.content)
    code = (_HERE / "tiled.py").read_bytes()
    export.write(folder / "restore.py", code)
    for file, page in _pages(manifest, found).items():
        export.write(folder / file, page.encode())
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    export.write(folder / "manifest.json", text.encode())
    lines = [f"{folder}: README.md says how to use it"]
    for model in found:
        lines.append(f"  {model.file}  {len(model.content) / 1e6:.2f} MB, {model.about}")
        lines += [
            f"    {line}" for line in (str(model.cost).splitlines() if model.cost else [])
        ]
    return "\n".join(lines)


def _models(
    restorer: Restorer,
    folder: pathlib.Path,
    size: tuple[int, int] | None,
    notes: Mapping[str, str],
    calibration: Sequence[quantisation.Example] | None,
) -> list[_Model]:
    model = (restorer.model, restorer.variables, folder, restorer.config)
    exact = export.convert_onnx(*model, notes=notes, with_context=True)
    if exact.shape[1:3] != ("H", "W"):
        raise UsageError(
            f"--pack: {type(restorer.model).__name__} can only be exported for one size; use "
            "--output=FILE.onnx --size=HxW"
        )
    shape = exact.shape
    content = exact.proto.SerializeToString()
    found = [_Model("restorer.onnx", "float32", shape, "float32", content)]
    if calibration is not None:
        proto, cost = quantisation.quantised(exact.proto, calibration)
        about = "int8, the fastest on a CPU"
        content = proto.SerializeToString()
        found.append(_Model("restorer_int8.onnx", "int8", shape, about, content, cost))
    onnx_graph.halve_weights(exact.proto)
    about = "weights in float16, arithmetic in float32"
    content = exact.proto.SerializeToString()
    found.append(_Model("restorer_float16.onnx", "float16", shape, about, content))
    if size is not None:
        one = export.convert_onnx(*model, size=size, notes=notes)
        height, width = size
        about = f"float32, for images of {height}×{width} px alone, without shape arithmetic"
        file = f"restorer_{height}x{width}.onnx"
        content = one.proto.SerializeToString()
        found.append(_Model(file, "float32", one.shape, about, content))
    return found


def _manifest(
    restorer: Restorer, name: str, notes: Mapping[str, str], found: list[_Model]
) -> dict[str, Any]:
    tile, overlap, _ = restorer.options.cut
    image = {"dtype": "float32", "layout": "BHWC, RGB"}
    inputs = [{"name": "degraded", **image, "range": [0, 1]}]
    if models.takes_context(restorer.model):
        inputs.append(
            {
                "name": "context",
                **image,
                "range": [0, 1],
                "is": "the whole photograph, or its thumbnail of 64×64 px; not of files for "
                "one size",
            }
        )
    known = restorer.known
    return {
        "name": name,
        "licence": notes.get("licence", ""),
        "models": [model.entry() for model in found],
        "inputs": inputs,
        "output": {"name": "restored", **image, "range": "near [0, 1], not clipped"},
        "tile": tile,
        "overlap": overlap,
        "multiple_of": tile_plan.MIN_TILE,
        "divide_by_digital_gain": restorer.options.undo_gain,
        "known_range": dataclasses.asdict(known) if known else None,
    }


def _pages(manifest: Mapping[str, Any], found: list[_Model]) -> dict[str, str]:
    """Fills in the templates; returns them by name."""
    rows = [
        f"| {model.file} | {model.about}"
        + (f"; {model.cost.closeness:.1f} dB from float32" if model.cost else "")
        + " |"
        for model in found
    ]
    inputs = [_DEGRADED, _CONTEXT][: len(manifest["inputs"])]
    known = manifest["known_range"]
    text = "The noise and blur that the model knows are not stated."
    if known:
        text = (
            f"The model knows photographs with a noise of {known['noise'][0]:g} to "
            f"{known['noise'][1]:g} grey levels (of 255) and a blur, as the standard deviation "
            f"of a Gaussian, of up to {known['blur_x'][1]:g} px along x and "
            f"{known['blur_y'][1]:g} px along y. Others are not restored reliably."
        )
    undoes = manifest["divide_by_digital_gain"]
    gain = _GAIN if undoes else "No digital gain is to be undone."
    values = {
        "name": manifest["name"],
        "files": "\n".join(rows),
        "licence": manifest["licence"] or "none given",
        "inputs": "\n\n".join(_filled(one) for one in inputs),
        "tile": manifest["tile"],
        "overlap": manifest["overlap"],
        "multiple": manifest["multiple_of"],
        "gain": _filled(gain),
        "known": _filled(text),
        "first": found[0].file,
        "last": found[1].file,
    }
    return {
        path.name: string.Template(path.read_text("utf-8")).substitute(values)
        for path in (_HERE / "templates").iterdir()
    }


def _filled(text: str) -> str:
    return textwrap.fill(text, 96, break_long_words=False, break_on_hyphens=False)
