"""What is said of a training that would take days, once its speed is known."""

import datetime

from ml_collections import ConfigDict

AFTER = 60.0
"""Seconds of training after which its speed is taken as known."""

_DAY = 24 * 60 * 60


def of_long_run(
    config: ConfigDict,
    images_left: int,
    rate: float,
    now: datetime.datetime,
    platform: str,
) -> str | None:
    """Returns when a training will end and what would shorten it.

    Args:
        config: the run's configuration.
        images_left: images still to be trained on, over all epochs.
        rate: images per second; 0 if unknown.
        now: the current time.
        platform: what it runs on: "cpu", "gpu" or "tpu".

    Returns:
        One line; None if the training ends within 24 hours, or if its speed is unknown.
    """
    seconds = images_left / rate if rate else 0.0
    if seconds <= _DAY:
        return None
    end = now + datetime.timedelta(seconds=seconds)
    size = "image_size" if config.data.image_size else "crop_size"
    ways = [f"a smaller config.data.{size}", "fewer config.train.epochs"]
    if platform == "cpu":
        ways.insert(0, "a GPU")
    return (
        f"{config.name}: at the speed of the first minute ({rate:.3g} images/s), this training "
        f"ends about {end:%Y-%m-%d %H:%M}, in {seconds / _DAY:.1f} days; sooner with "
        f"{', '.join(ways[:-1])} or {ways[-1]}"
    )
