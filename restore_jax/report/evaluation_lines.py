"""Lines on what was evaluated and how far to trust it, for pages and the terminal alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from restore_jax.report.forms import counted

# Reached only by an input that equals its clean image: one grey level in one of ten million
# samples lowers it.
_UNDEGRADED_DB = 99.9

# Pairs of `data.split`: no training image of the first is a validation image of the second.
_DISJOINT_SPLITS = (("good", "defects"), ("defects", "test"))


def seen_in_training(summary: Mapping[str, Any]) -> str:
    """Returns a warning if the model was trained on some of the evaluated images, else "".

    Args:
        summary: the content of metrics.json.
    """
    data, trained = summary["data"], summary["trained_on"]
    if trained["name"] != data["name"]:
        return ""
    if data["split"] in ("train", "all"):
        return (
            f"Split “{data['split']}” contains images that the model was trained on; it may do "
            "worse on others."
        )
    division = summary["settings"]["data"]["split"]
    if division == trained["split"] or (trained["split"], division) in _DISJOINT_SPLITS:
        return ""
    return (
        f"The model was trained with data.split “{trained['split']}” and is evaluated with "
        f"“{division}”: it was trained on some of these images, and may do worse on others."
    )


def checkpoint_line(found: Mapping[str, Any]) -> str:
    """Describes the evaluated checkpoint or weights file, given its entry in metrics.json."""
    if found["step"] is None:
        return f"{found['which']} file {found['file']}, SHA-256 {found['sha256'][:12]}…"
    return f"{found['which']} checkpoint, step {found['step']}, epoch {found['epoch']}"


def data_line(data: Mapping[str, Any]) -> str:
    """Describes the evaluated images, given their entry in metrics.json."""
    size = data["image_size"]
    at = f"{size} × {size} px" if size else "their native size"
    against = f", against the {data['target']}" if "target" in data else ""
    images = counted(data["count"], "image")
    return f"{images} of {data['name']} ({data['split']}) at {at}{against}"


def target_line(data: Mapping[str, Any]) -> str:
    """Returns a warning if the figures are not to clean photographs, else "".

    Args:
        data: the evaluated images, as in metrics.json.
    """
    if "target" not in data:
        return ""
    return (
        f"No clean photographs: the figures are to the {data['target']} of each part. Its "
        "remaining noise lowers PSNR and SSIM, and its blur is that of the input."
    )


def undegraded_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a warning if more than half of the images equal their clean version, else "".

    Args:
        rows: the figures of each image, of which "input_psnr" is used.
    """
    count = sum(row["input_psnr"] > _UNDEGRADED_DB for row in rows)
    if 2 * count <= len(rows):
        return ""
    return (
        f"Images that are not degraded (input PSNR 100 dB): {count} of {len(rows)}. The means, "
        "and a best checkpoint chosen by them, tell little of restoring. Use more images, or "
        "config.data.degradation.clean_share=0."
    )
