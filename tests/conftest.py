"""Shared fixtures, and settings that must precede the import of JAX and TensorFlow."""

import os
import pathlib
import tempfile

import pytest

from tests.support import browser

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["MPLBACKEND"] = "Agg"
# Compilation takes most of the time of the suite, and on images of a few pixels optimising does
# not pay off. `optimised` of tests/support/programs.py is for tests of what users run.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Compiled programs are cached between runs and between the tests of a run.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(tempfile.gettempdir()) / f"restore_jax-tests-{os.getuid()}"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture(scope="module")
def compiled_once():
    # At the top, this would import JAX before its settings are made.
    from tests.support import programs  # noqa: PLC0415

    with programs.compiled_once():
        yield


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    if browser.missing():
        pytest.skip(f"the browser of Debian's packages is {browser.missing()}")
    with browser.chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started
