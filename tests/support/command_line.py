"""A tiny training for the command line, and the parsing of flags in this process."""

import contextlib
import sys
import warnings
from unittest import mock

from absl.testing import flagsaver

import launch

# The first three are the smallest command that the README shows.
TINY = (
    "--config=configs/sca_unet.py:sample",
    "--config.train.epochs=1",
    "--config.data.image_size=32",
    "--config.data.sample_size=48",
    "--config.data.sample_count=2",
    "--config.model.widths=(2, 4)",
    "--config.eval.pictures=2",
)


@contextlib.contextmanager
def parsed(*given):
    """Parses and checks flags like launch.py, without the seconds that starting Python takes.

    Restores the previous flags on exit.
    """
    argv = ["launch.py", *given]
    # ml_collections looks for the fields in sys.argv.
    with (
        flagsaver.flagsaver(),
        mock.patch.object(sys, "argv", argv),
        warnings.catch_warnings(),
    ):
        # Raised by ml_collections itself.
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
        launch.parse_flags(argv)
        yield
