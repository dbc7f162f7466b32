"""Parses the command line of launch.py in this process, as starting Python takes seconds."""

import contextlib
import sys
import warnings
from unittest import mock

from absl.testing import flagsaver

import launch


@contextlib.contextmanager
def parsed(*given):
    """Parses and checks flags like launch.py; restores the previous ones on exit."""
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
