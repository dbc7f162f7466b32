"""The command line of launch.py, read in this process: a Python of its own takes seconds."""

import contextlib
import sys
import warnings
from unittest import mock

from absl.testing import flagsaver

import launch


@contextlib.contextmanager
def parsed(*given):
    """Has the flags as launch.py reads them within, wrong ones told; after it, as before."""
    argv = ["launch.py", *given]
    # ml_collections looks in sys.argv for the fields.
    with (
        flagsaver.flagsaver(),
        mock.patch.object(sys, "argv", argv),
        warnings.catch_warnings(),
    ):
        # ml_collections' own.
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
        launch.parse_flags(argv)
        yield
