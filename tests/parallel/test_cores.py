import os
import subprocess
import sys

import jax
import pytest

from restore_jax.errors import UsageError
from restore_jax.parallel import cores, device_mesh

SCRIPT = """
import sys
from restore_jax.parallel import cores
cores.prepare(in_job=sys.argv[1] == "job")
import jax
print(jax.device_count())
"""


def devices(argument="", **environment):
    """Counts the devices of a process that may use all cores but for what is set."""
    mine = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, argument],
        env=mine | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(cores.host_memory.has_gpu(), reason="a CPU's cores are of no use then")
@pytest.mark.parametrize(
    ("argument", "environment", "expected"),
    [
        pytest.param("", {}, cores.count(), id="as many as there are"),
        pytest.param("job", {}, 1, id="one of several processes"),
        pytest.param("", {"JAX_NUM_CPU_DEVICES": "3"}, 3, id="asked for"),
        pytest.param(
            "", {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5, id="XLA's flag"
        ),
    ],
)
def test_the_cores_are_devices(argument, environment, expected):
    assert devices(argument, **environment) == expected


def test_a_gpu_leaves_the_cores_alone(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(cores.host_memory, "has_gpu", lambda: True)
    assert cores.as_devices() == 0


@pytest.mark.parametrize(
    ("sizes", "expected"), [((8, 16), 4), ((6, 4), 2), ((6, 9), 3), ((5, 10), 1), ((1,), 1)]
)
def test_batches_divide_among_as_many_cores_as_they_can(sizes, expected):
    assert len(device_mesh.fitting_devices(*sizes)) == expected


def refusal(batch_size, devices):
    with pytest.raises(UsageError) as told:
        device_mesh.check_batch_size(batch_size, device_mesh.make_mesh(devices), "a.field")
    return str(told.value)


def test_a_batch_of_nothing_is_refused():
    expected = "a.field: 0 images cannot be divided equally among 4 devices; take 4"
    assert refusal(0, device_mesh.fitting_devices(0)) == expected


def test_a_batch_that_does_not_divide_among_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    found = refusal(5, jax.devices()[:2])
    assert found.endswith(
        "5 images cannot be divided equally among 2 devices of 2 processes; take 4 or 6"
    )
