import gzip
import json

import jax
import pytest

from benchmarks import kernels
from benchmarks.common import Task
from restore_jax.errors import UsageError

GPU, HOST = 3, 7


def named(kind, name, pid, tid=0):
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def event(name, microseconds, pid=GPU, tid=1, operation="conv.1"):
    arguments = {"args": {"hlo_op": operation}} if operation else {}
    return {"ph": "X", "name": name, "pid": pid, "tid": tid, "dur": microseconds} | arguments


EVENTS = [
    event("fprop", 1500.0),
    named("process_name", "/device:GPU:0", GPU),
    named("process_name", "/host:CPU", HOST),
    named("thread_name", "Stream #13(Compute)", GPU, 1),
    named("thread_name", "XLA Ops", GPU, 2),
    named("thread_name", "Stream #13(Compute)", HOST, 1),
    event("fprop", 500.0),
    event("fprop", 70.0, operation="conv.2"),
    event("memset", 30.0, operation=""),
    event("fprop", 9999.0, tid=2),  # the same, as a line of XLA's operations
    event("python", 9999.0, pid=HOST),
]


def test_the_kernels_of_the_gpus_streams_are_added_up():
    assert kernels.kernels(EVENTS) == {
        ("fprop", "conv.1"): (2, pytest.approx(2.0)),
        ("fprop", "conv.2"): (1, pytest.approx(0.07)),
        ("memset", ""): (1, pytest.approx(0.03)),
    }


def test_lines_are_per_step_and_the_longest_come_first(tmp_path):
    path = tmp_path / "plugins" / "profile" / "host.trace.json.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": EVENTS}).encode()))
    found = kernels.kernels(kernels.read_events(tmp_path))
    step, *rest = kernels.records({"op": "train_step", "ms_per_image": 0.05}, found, batch=8)
    # 2.1 ms in ten steps of 0.4 ms.
    assert step["kernel_ms"] == pytest.approx(0.21)
    assert step["busy"] == pytest.approx(0.525)
    assert [line["operation"] for line in rest] == ["conv.1", "conv.2", ""]
    assert rest[0] == {
        "op": "kernel", "name": "fprop", "operation": "conv.1", "launches": 0.2, "ms": 0.2
    }  # fmt: skip


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(UsageError, match="needs a GPU; this is a cpu"):
        next(kernels.measure(Task()))
