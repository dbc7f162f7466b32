import os
import pathlib
import subprocess
import sys

import pytest

from restore_jax.parallel import host_memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")

SCRIPT = """
import restore_jax.parallel.host_memory as host_memory
print(host_memory.keep_freed())
import resource, jax, jax.numpy as jnp
make = jax.jit(lambda x: jnp.arange(2.0**24) * x)
for _ in range(30):
    make(1.0).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    make(1.0).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """Clears the settings of the environment, with which nothing is ever changed."""
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)


def run(script):
    """Whether the memory was kept, and the number that a process then finds."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    kept, found = done.stdout.split()
    if kept == "False":
        pytest.skip("no glibc")
    assert kept == "True"
    return int(found)


@linux
@pytest.mark.skipif(pathlib.Path("/dev/nvidiactl").exists(), reason="the arrays are on the GPU")
def test_an_array_of_64_mb_finds_its_memory_again():
    # Without it the system gives the 16,384 pages of 4 kB anew each time. With it the heap
    # grows at first, until a hole has room for the array and its alignment.
    assert run(SCRIPT) < 4000


@linux
def test_settings_of_the_environment_have_the_last_word(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not host_memory.keep_freed()
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert not host_memory.keep_freed()


def test_nothing_changes_with_a_gpu_or_another_system(monkeypatch, tmp_path):
    monkeypatch.setattr(host_memory, "_NVIDIA", tmp_path)
    assert not host_memory.keep_freed()
    monkeypatch.setattr(host_memory, "_NVIDIA", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not host_memory.keep_freed()


@linux
def test_nothing_happens_without_glibc(monkeypatch, tmp_path):
    monkeypatch.setattr(host_memory, "_NVIDIA", tmp_path / "none")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: object())
    assert not host_memory.keep_freed()


GIVING = """
import restore_jax.parallel.host_memory as host_memory
import numpy as np
print(host_memory.keep_freed())
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
# The small ones stay, and keep the heap from ending where the large ones were.
arrays = [np.ones(n) for _ in range(64) for n in (2**19, 2**10)]
arrays = arrays[1::2]
before = resident()
host_memory.give_back()
print((before - resident()) >> 20)
"""


@linux
@pytest.mark.skipif(pathlib.Path("/dev/nvidiactl").exists(), reason="the arrays are on the GPU")
def test_what_lies_between_arrays_in_use_is_given_back():
    assert run(GIVING) > 200  # of 256 MB
