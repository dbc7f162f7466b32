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
# `optimised` has the programs that users run.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Compiled programs are kept between runs: most of the suite's time would be compilation.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(tempfile.gettempdir()) / f"restore_jax-tests-{os.getuid()}"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.missing():
        pytest.skip(f"the browser of Debian's packages is {browser.missing()}")
    with browser.chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started
