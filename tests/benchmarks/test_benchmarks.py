import importlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from benchmarks import ROOT, common, gpu_all, infer, limits
from benchmarks import models as benchmark
from restore_jax import models
from restore_jax.errors import RunError, UsageError
from restore_jax.losses import loss_terms
from restore_jax.metrics import fidelity
from restore_jax.models.receptive_field import ReceptiveField, receptive_field

# Each written as the interval of columns that a restored pixel depends on, from the output
# backwards; the pixel is one of those for which it is widest.
FIELDS = {
    # 7×7 + 3 × (3×3) + 7×7: 1 + 6 + 3·2 + 6.
    "pexels_cnn": (19, False),
    # 7×7, 20 convolutions 3×3 of dilation 2, 7×7: 1 + 6 + 20·4 + 6; channel attention.
    "rcan": (93, True),
    # A pixel at half the size is 2 pixels under the pooling; two 3×3: 2 + 2·2.
    "unet_small": (6, False),
    # Pixel 162. Up, each block of two 3×3 adds 2 on each side, and the transposed convolution
    # leads from i to i // 2:
    #   160…164 → 80…82, 78…84 → 39…42, 37…44 → 18…22, 16…24 → 8…12.
    # Bottleneck 6…14. Down, a pooling leads from i to 2i and 2i + 1, then a block:
    #   12…29, 10…31 → 20…63, 18…65 → 36…131, 34…133 → 68…267, 66…269.
    "pexels_unet": (204, False),
    # Pixel 161; the 3×3 output layer first:
    #   160…162, 158…164 → 79…82, 77…84 → 38…42, 36…44 → 18…22, 16…24 → 8…12; then as above.
    "pexels_gan": (204, False),
    # As pexels_unet, with or without the skips, which lie inside; channel attention.
    "cbam_unet": (204, True),
    # Pixel 163. Up, bilinear doubling leads from an even i to i/2 − 1 and i/2, from an odd one
    # to (i − 1)/2 and (i + 1)/2:
    #   161…165 → 80…83, 78…85 → 38…43, 36…45 → 17…23.
    # Two blocks at the bottom: 13…27. Down:
    #   26…55, 24…57 → 48…115, 46…117 → 92…235, 90…237.
    "sca_unet": (148, True),
    # Pixel 640 is in block 320 of 2×2. Up, a 3×3, then at each size two residual blocks (4 on a
    # side) before the bilinear doubling, as above:
    #   319…321, 315…325 → 157…163, 153…167 → 76…84, 72…88 → 35…44.
    # Bottleneck 31…48. Down, each position is a block of 2×2 of the finer size:
    #   62…97, 58…101 → 116…203, 112…207 → 224…415, 220…419, and 219…420 by the first 3×3.
    # In pixels 438…841; and the gain.
    "gain_unet": (404, True),
    "gain_unet_native": (808, True),  # the same, in blocks of 4×4
    "general": (404, False),  # without the gain
    "measured_gain": (404, False),
    # Aligned corners shift the two taps by less than a pixel: no more pixels in all.
    "sca_unet_released": (148, True),
}


def model_of(name, **options):
    config = importlib.import_module(f"configs.{name}").get_config("sample")
    with config.unlocked():
        config.model.update(options)
    return models.from_config(config)


def test_every_experiment_has_its_field_written_down():
    assert sorted(FIELDS) == benchmark.EXPERIMENTS


# Those whose layers no other one here has, and whose field is small: seconds each.
QUICK = {"pexels_cnn", "rcan", "unet_small", "sca_unet"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FIELDS],
)
def test_receptive_field_is_what_the_layers_add_up_to(name):
    assert receptive_field(model_of(name)) == ReceptiveField(*FIELDS[name])


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("rcan", {"blocks": 3}, 1 + 6 + 3 * 8 + 6),
        ("pexels_cnn", {"widths": (4, 4)}, 1 + 6 + 2 + 6),
        ("rcan", {"width": 3, "blocks": 1, "global_residual": True}, 1 + 6 + 8 + 6),
    ],
)
def test_receptive_field_follows_the_options(name, options, side):
    assert receptive_field(model_of(name, **options)).side == side


class Layers(nn.Module):
    """A convolution of any width, and a global mean; its channels cannot be narrowed."""

    size: int
    mean: bool = False
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, degraded):
        x = nn.Conv(3, (1, self.size), name="convolution")(degraded)
        return x * jnp.mean(x) if self.mean else x


@pytest.mark.parametrize("size", [1, 4, 237, 243])
@pytest.mark.parametrize("mean", [False, True])
def test_receptive_field_of_one_convolution(size, mean):
    assert receptive_field(Layers(size, mean)) == ReceptiveField(size, mean)


def test_receptive_field_beyond_measure_is_refused(monkeypatch):
    monkeypatch.setattr("restore_jax.models.receptive_field._MAX_SIDE", 320)
    assert receptive_field(Layers(235)).side == 235
    with pytest.raises(ValueError, match="field of Layers is too large to measure"):
        receptive_field(Layers(245))


def test_nothing_outside_of_the_field_changes_a_trained_model():
    # At full width and with random parameters: 9 px on each side of the middle, no more but for
    # rounding (rows that are computed together have parts that cancel).
    model = model_of("pexels_cnn")
    image = jax.random.uniform(jax.random.key(1), (1, 31, 31, 3))
    variables = jax.jit(model.init)(jax.random.key(0), image)
    restore = jax.jit(lambda image: model.apply(variables, image)[0, 15, 15])
    noise = jax.random.uniform(jax.random.key(2), image.shape)
    outside = noise.at[:, 6:25, 6:25].set(image[:, 6:25, 6:25])
    expected = restore(image)
    np.testing.assert_allclose(restore(outside), expected, atol=1e-6)
    for row, column in ((6, 6), (24, 24), (6, 24)):
        inside = image.at[0, row, column].set(100.0)
        assert np.abs(restore(inside) - expected).max() > 1e-4


@pytest.mark.bench
def test_lines_of_two_models(capsys):
    benchmark.main(
        ["models", "--model=pexels_cnn,unet_small", "--size=16", "--batch=2", "--rounds=2"]
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["model"] for line in lines] == ["pexels_cnn", "unet_small"]
    for line, parameters in zip(lines, (83_715, 430_339), strict=True):
        assert set(line) == {
            *("op", "model", "options", "size", "batch", "dtype", "device", "rounds"),
            *("parameters", "gmac", "receptive_field", "global"),
            *("ms_per_image", "ms_low", "ms_high", "images_per_s"),
            *("peak_memory_mb", "compiling_peak_mb", "program_memory_mb"),
        }
        assert (line["op"], line["options"], line["rounds"]) == ("restore", {}, 2)
        assert (line["size"], line["batch"], line["dtype"]) == (16, 2, "float32")
        assert line["device"] == jax.devices()[0].device_kind
        assert line["parameters"] == parameters
        assert (line["receptive_field"], line["global"]) == FIELDS[line["model"]]
        assert 0 < line["ms_low"] <= line["ms_per_image"] <= line["ms_high"]
        assert line["peak_memory_mb"] > 0
        # The parameters and two images in and out, at the least; it holds float32.
        assert line["program_memory_mb"] > 4e-6 * (parameters + 2 * 2 * 16 * 16 * 3) - 0.1
    # Kernel elements times pixels.
    kernels = 49 * 3 * 32 + 9 * (32 * 64 + 64 * 64 + 64 * 32) + 49 * 32 * 3
    assert lines[0]["gmac"] == pytest.approx(kernels * 16 * 16 / 1e9, abs=1e-4)
    # Each pixel of the transposed convolution's input, a quarter of them, becomes four.
    kernels = 9 * (3 * 128 + 128 * 256) + 256 * 128 + 128 * 3
    assert lines[1]["gmac"] == pytest.approx(kernels * 16 * 16 / 1e9, abs=1e-4)


def test_peak_memory_is_of_the_process_itself():
    def peak(work):
        script = f"{work}; from benchmarks import models; print(models.peak_bytes())"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True
        )
        return int(done.stdout)

    # This process has more than the others; getrusage would give them its size.
    held = np.ones(60_000_000)
    idle = peak("import numpy")
    assert idle < held.nbytes
    grown = peak("import numpy; kept = numpy.ones(20_000_000)") - idle
    assert 150e6 < grown < 170e6


def test_options_reach_the_model():
    tasks, rounds = benchmark.parse(
        [
            *("models", "--model=cbam_unet", "--rounds=3", "--dtype=bfloat16"),
            *("--option=mask_attention=identity", "--option=skips=[True, True, False, False]"),
        ]
    )
    assert rounds == 3
    assert benchmark.make_model(tasks[0]) == models.create(
        "cbam_unet",
        mask_attention="identity",
        skips=(True, True, False, False),
        dtype=jnp.dtype("bfloat16"),
    )


def test_all_models_are_the_default():
    tasks, rounds = benchmark.parse(["models"])
    assert [task.model for task in tasks] == benchmark.EXPERIMENTS
    assert {(task.size, task.batch, task.dtype) for task in tasks} == {(256, 1, "float32")}
    assert rounds == 10


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=nothing", "--model: no config 'nothing'; there are all, "),
        ("--model=default", "--model: no config 'default'"),
        ("--size=0", "flag --size=0: 0 is not a positive integer"),
        ("--dtype=int8", "flag --dtype=int8: value should be one of"),
        ("--nothing=1", "Unknown command line flag 'nothing'"),
        ("sca_unet", "sca_unet: not a flag"),
        ("--option=bottleneck", "--option=bottleneck: write NAME=VALUE"),
        ("--option=bottleneck=512", "config.model.bottleneck: cbam_unet has no such option"),
    ],
)
def test_wrong_flags_are_one_line(flag, message, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["models", flag])
    assert stop.value.code == UsageError.exit_status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1


def test_help_says_what_the_keys_mean(capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["models", "--help"])
    assert stop.value.code == 0
    assert "peak_memory_mb" in capsys.readouterr().out


def test_a_process_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(benchmark.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match=r"an idle process: its memory .*: exit status 1"):
        benchmark.peak_memory([])


KEYS = {
    *("op", "framework", "model", "size", "batch", "dtype", "device", "rounds"),
    *("ms_per_image", "ms_low", "ms_high", "images_per_s", "relative_time"),
    *("gflop", "mb", "compute_share", "memory_share"),
}
# Where a model takes part, most of the time would go into compiling it.
NARROW = {"model.widths": (2, 4)}


def printed(capsys, name, *flags):
    module = importlib.import_module(f"benchmarks.{name}")
    common.run(module.__doc__, module.measure, flags, fields=NARROW)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line in lines:
        if line["op"] == "ceilings":
            assert set(line) == {"op", "dtype", "device", "gflop_per_s", "gb_per_s"}
            assert line["gflop_per_s"] > 0 and line["gb_per_s"] > 0
        else:
            assert set(line) >= KEYS
            assert 0 < line["ms_low"] <= line["ms_per_image"] <= line["ms_high"]
    return [line for line in lines if line["op"] != "ceilings"]


def test_a_line_by_hand(monkeypatch):
    # Three rounds of two calls on four images each, in seconds.
    rounds = {"jax": [0.8, 1.6, 2.4], "other": [0.8, 3.2, 9.6]}
    monkeypatch.setattr(common.cost, "interleaved_times", lambda calls, count: rounds)
    monkeypatch.setattr(common, "ceilings", lambda dtype: (50e9, 10e9))
    task = common.Task("rcan", 16, 4, "bfloat16", 3)
    first, other = common.records("work", task, {}, limits.Least(1e9, 4e8), repeats=2)
    assert set(first) == set(other) == KEYS
    assert (first["framework"], other["framework"]) == ("jax", "other")
    assert [first[key] for key in ("ms_low", "ms_per_image", "ms_high")] == [150, 200, 250]
    assert first["images_per_s"] == 5 and other["images_per_s"] == 2.5
    # The median of the rounds' own: 1, 2 and 4.
    assert (first["relative_time"], other["relative_time"]) == (1, 2)
    # Of 200 ms, the arithmetic takes 20 at the least and the traffic 40.
    assert (first["gflop"], first["compute_share"]) == (1, 0.1)
    assert (first["mb"], first["memory_share"]) == (400, 0.2)


def test_fields_of_a_task_reach_its_configuration():
    task = common.Task("sca_unet", fields={"model.widths": (2, 4), "train.epochs": 7})
    config = common.make_config(task)
    assert tuple(config.model.widths) == (2, 4) and config.train.epochs == 7
    # What the flags say stands beside them.
    found = []
    defaults = {"rounds": 3, "fields": {"train.epochs": 7}}
    common.run("", lambda task: found.append(task) or [], ["--size=16"], **defaults)
    assert found == [common.Task(size=16, rounds=3, fields={"train.epochs": 7})]


@pytest.mark.bench
@pytest.mark.parametrize("name", ["train_step", "infer"])
def test_lines_of_both_frameworks(name, capsys):
    pytest.importorskip("torch")
    flags = ("--size=16", "--batch=2", "--rounds=2", "--peers=eager,channels_last")
    lines = printed(capsys, name, *flags)
    assert [line["framework"] for line in lines] == [
        "jax",
        "torch eager",
        "torch channels_last",
    ]
    for line in lines:
        assert (line["op"], line["model"], line["batch"]) == (name, "sca_unet", 2)
        assert line["gflop"] > 0 and line["mb"] > 0 and line["compute_share"] > 0
        assert line["relative_time"] > 0
    assert lines[0]["relative_time"] == 1.0


@pytest.mark.bench
def test_lines_of_ssim(capsys):
    lines = printed(capsys, "ssim", "--size=16", "--batch=2", "--rounds=2", "--dtype=bfloat16")
    assert [(line["op"], line["framework"]) for line in lines] == [
        *(("ssim", "jax"), ("ssim", "dm_pix")),
        *(("ssim_gradient", "jax"), ("ssim_gradient", "dm_pix")),
    ]
    assert {(line["model"], line["dtype"]) for line in lines} == {("none", "float32")}


@pytest.mark.bench
def test_lines_of_the_pipeline(capsys):
    lines = printed(capsys, "pipeline", "--size=16", "--batch=4", "--rounds=1")
    ops = ["pipeline_fresh", "pipeline_cached", "resident_fresh", "resident_cached"]
    assert [line["op"] for line in lines] == ops
    for line in lines:
        assert 0 < line["images_per_s_per_core"] <= line["images_per_s"]
        assert line["gflop"] is None and line["compute_share"] is None


@pytest.mark.bench
def test_lines_of_a_training_with_its_input(capsys):
    lines = printed(capsys, "end_to_end", "--size=16", "--batch=2", "--rounds=1")
    ops = ["train_cached", "train_fresh", "train_resident", "train_resident_fresh"]
    assert [line["op"] for line in lines] == ops
    for line in lines:
        assert line["first_step_s"] > 0 and line["relative_time"] > 0
        if "resident" in line["op"]:
            assert line["input_share"] is None
        else:
            assert 0 <= line["input_share"] < 1


@pytest.mark.bench
def test_everything_for_a_gpu_runs_to_its_end_on_a_cpu_without_tensorflow(tmp_path):
    script = (
        "import sys\n"
        "sys.modules.update(tensorflow=None, tensorflow_datasets=None)\n"
        "from benchmarks import gpu_all\n"
        f"gpu_all.main(['--tiny', '--output={tmp_path}/lines'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert lines[-1] == {"op": "gpu_all", "left_out": [], "failed": {}}
    found = {line["op"]: line for line in lines}
    assert {"train_step", "train_resident", "train_resident_fresh", "whole_run"} <= set(found)
    assert {"infer", "ssim", "ssim_gradient", "ceilings"} <= set(found)
    whole = found["whole_run"]
    assert (whole["epochs"], whole["images"], whole["measured"]) == (3, 6, True)
    assert whole["seconds"] > 0 and whole["epoch_s"] is not None


def test_what_a_gpu_measures_is_listed(capsys):
    gpu_all.main(["--list"])
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(gpu_all.parts(256, 10))
    for batch in (8, 16, 32, 64, 128, 256):
        assert any("resident" in line and f"batch={batch}," in line for line in listed)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=nothing", "there is no configs/nothing.py"),
        ("--peers=fast", "not one of eager"),
    ],
)
def test_a_wrong_model_or_peer_is_one_line(flag, message, capsys):
    pytest.importorskip("torch")
    with pytest.raises(SystemExit) as stop:
        flags = [flag, "--size=16", "--batch=1", "--rounds=1"]
        common.run("", infer.measure, flags, fields=NARROW)
    assert stop.value.code == UsageError.exit_status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err and printed.err.count("\n") == 1


class Chain(nn.Module):
    """A convolution 3 → 4, and two that read its result."""

    @nn.compact
    def __call__(self, degraded):
        x = nn.relu(nn.Conv(4, (3, 3))(degraded))
        return nn.Conv(3, (1, 1))(x) + nn.Conv(3, (3, 3))(x)


def test_limits_of_a_network_by_hand():
    pixels = 64
    kernels = (9 * 3 * 4, 4 * 3, 9 * 4 * 3)
    parameters = sum(kernels) + 4 + 3 + 3
    # The image and the features that two layers share are read once each; three results.
    read, written = (3 + 4) * pixels, (4 + 3 + 3) * pixels
    found = limits.restoring(Chain(), 8, 2, "float32")
    assert found.operations == 2 * sum(kernels) * pixels
    assert found.bytes == 4 * (read + written) + 4 * parameters / 2
    found = limits.training(Chain(), 8, 2, "bfloat16")
    # Nobody asks for the gradient by the image, neither of arithmetic nor of traffic.
    assert found.operations == 2 * (3 * sum(kernels) - kernels[0]) * pixels
    moved = 3 * read - 3 * pixels + 2 * written
    assert found.bytes == 2 * moved + 4 * 3 * pixels + 40 * parameters / 2


def test_limits_of_the_reports_networks():
    least = limits.training(model_of("sca_unet"), 256, 8, "float32")
    # 3.390 GMAC forward, but for the products of attention as the report counts them.
    assert least.operations == pytest.approx(3 * 2 * 3.390e9, rel=0.01)


def test_similarity_of_the_peer_is_that_of_jax():
    torch = pytest.importorskip("torch")
    from benchmarks import torch_peer  # noqa: PLC0415

    rng = np.random.default_rng(0)
    clean = rng.random((2, 24, 31, 3), np.float32)
    restored = np.clip(clean + rng.normal(0, 0.2, clean.shape), 0, 1).astype(np.float32)
    mask = (rng.random((2, 24, 31, 1)) > 0.5).astype(np.float32)
    peers = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (restored, clean, mask)]
    assert float(torch_peer.similarity(*peers[:2])) == pytest.approx(
        float(fidelity.ssim(restored, clean).mean()), abs=1e-5
    )
    for name, peer in (("sca_unet", torch_peer.sca_unet_loss), ("rcan", torch_peer.rcan_loss)):
        loss = loss_terms.weighted_sum(
            importlib.import_module(f"configs.{name}").get_config().loss
        )
        expected = loss(restored, clean, mask, np.ones(2, bool))[0]
        assert float(peer(*peers)) == pytest.approx(float(expected), rel=1e-5)


def test_what_fails_or_comes_too_late_stops_nothing():
    def fails():
        yield {"op": "begun"}
        raise RuntimeError("no kernel\nat all")

    emitted = []
    planned = [("bad", fails), ("good", lambda: iter([{"op": "done"}]))]
    gpu_all.run(planned, 60, emitted.append)
    assert [record["op"] for record in emitted] == ["begun", "done", "gpu_all"]
    assert emitted[-1]["failed"] == {"bad": "RuntimeError: no kernel"}
    assert emitted[-1]["left_out"] == []
    gpu_all.run(planned, -1, emitted.append)
    assert emitted[-1]["left_out"] == ["bad", "good"] and emitted[-1]["failed"] == {}
