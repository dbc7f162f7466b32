"""What a training shows while it runs: the bar with its latest figures, and notes above it."""

import datetime
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from restore_jax import progress
from restore_jax.parallel import processes
from restore_jax.train import forecast


class Display:
    """The progress of a run over all its epochs; shown by the first process only.

    Args:
        config: the run's configuration.
        images: number of images in an epoch.
        done: number of images trained on before, over all epochs.
        platform: what it runs on: "cpu", "gpu" or "tpu".
    """

    def __init__(self, config: ConfigDict, images: int, done: int, platform: str) -> None:
        self._config, self._platform = config, platform
        self._bar = progress.bar(
            total=config.train.epochs * images,
            initial=done,
            title=config.name,
            shown=processes.is_first(),
        )
        self._figures: dict[str, str] = {}
        self._is_forecast = False
        self._is_validated = False

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

    def write(self, line: str) -> None:
        """Writes a line above the bar."""
        self._bar.write(line)

    def show_steps(self, values: Mapping[str, float], count: int) -> None:
        """Shows the figures of the last step, and that `count` more images are trained on."""
        self._figures.update(
            loss=f"{values['loss']:.4f}",
            PSNR=f"{values['psnr']:.2f}",
            SSIM=f"{values['ssim']:.3f}",
        )
        self._bar.set_postfix(self._figures, refresh=False)
        self._bar.update(count)
        if not self._is_forecast and self._bar.speed.measured >= forecast.AFTER:
            self._is_forecast = True
            self._forecast()

    def start_validation(self) -> None:
        """Says so if it is the first one, which takes longer."""
        if not self._is_validated:
            self._bar.write("validating; the first time, this is compiled as well")

    def show_validation(self, metrics: Mapping[str, Any], warning: str) -> None:
        """Shows the figures of a validation from the next step on, and its warning once."""
        if warning and not self._is_validated:
            self._bar.write(warning)
        self._is_validated = True
        self._figures["val"] = f"{metrics['psnr']:.2f} dB/{metrics['ssim']:.3f}"

    def _forecast(self) -> None:
        """Says when the run will end if that is days away."""
        line = forecast.of_long_run(
            self._config,
            self._bar.total - self._bar.n,
            self._bar.speed.rate,
            datetime.datetime.now(),
            self._platform,
        )
        if line:
            self._bar.write(line)
