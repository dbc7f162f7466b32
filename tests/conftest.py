"""What tests share; the settings must be in place before JAX or TensorFlow is imported."""

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
# Most of the suite's time is compilation, and for images of a few pixels no optimisation pays.
# tests/support/programs.py has what users run, for those tests that are about it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Compiled programs are kept between runs, and for what another test of a run compiles again.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(tempfile.gettempdir()) / f"restore_jax-tests-{os.getuid()}"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture(scope="module")
def compiled_once():
    # Imported above, it would import JAX before its settings are there.
    from tests.support import programs  # noqa: PLC0415

    with programs.compiled_once():
        yield


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    if browser.missing():
        pytest.skip(f"the browser of Debian's packages is {browser.missing()}")
    with browser.chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started
