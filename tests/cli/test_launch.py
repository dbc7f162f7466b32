"""The command line, as a user types it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support.command_line import TINY

ROOT = pathlib.Path(__file__).parents[2]


# With all the optimisation that conftest.py leaves out.
AS_A_USER = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}


def launch(*flags, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *flags],
        cwd=cwd,
        env=AS_A_USER,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch") / "run"
    return folder, launch(*TINY, f"--workdir={folder}")


@pytest.mark.slow
def test_training_ends_with_a_table_a_checkpoint_and_a_picture(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    assert "PSNR of input" in done.stdout
    assert "mean of images" in done.stdout
    for line in done.stdout.splitlines():
        if line.startswith(("checkpoint ", "figures ", "picture ")):
            assert pathlib.Path(line.split(maxsplit=1)[1]).exists()
    assert done.stdout.count("\npicture ") == 1
    for shown in ("loss=", "PSNR=", "SSIM=", "images/s"):
        assert shown in done.stderr
    metrics = json.loads((folder / "evaluation" / "sample-best" / "metrics.json").read_text())
    assert metrics["data"]["image_size"] == 32
    assert metrics["micro"]["count"] > 0


@pytest.mark.slow
def test_the_same_command_again_finds_the_run_finished(trained):
    folder, _ = trained
    results = folder / "evaluation" / "sample-best" / "metrics.json"
    records = (folder / "metrics.jsonl").read_bytes(), results.stat().st_mtime_ns
    again = launch(*TINY, f"--workdir={folder}")
    assert again.returncode == 0, again.stderr
    assert "finished" in again.stdout
    assert "mean of images" in again.stdout
    assert ((folder / "metrics.jsonl").read_bytes(), results.stat().st_mtime_ns) == records


@pytest.mark.slow
def test_evaluation_needs_the_workdir_alone_and_takes_other_data(trained):
    folder, _ = trained
    done = launch("--mode=evaluate", f"--workdir={folder}", "--checkpoint=latest")
    assert done.returncode == 0, done.stderr
    assert (folder / "evaluation" / "sample-latest" / "images.csv").exists()
    done = launch("--mode=evaluate", f"--workdir={folder}", *TINY, "--config.eval.split=train")
    assert done.returncode == 0, done.stderr
    assert (folder / "evaluation" / "sample_train-best" / "metrics.json").exists()


@pytest.mark.slow
def test_restoring_a_folder_needs_the_workdir_alone(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in" / "grey.png")
    flags = (
        "--mode=restore",
        f"--workdir={folder}",
        f"--input={tmp_path}/in/*.png",
        f"--output={tmp_path / 'out'}",
    )
    plan = launch(*flags, "--dry_run")
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout == f"{tmp_path}/in/grey.png -> {tmp_path}/out/grey.png\n"
    assert not (tmp_path / "out").exists()
    done = launch(*flags, "--self_ensemble=flips", "--strength=0.9")
    assert done.returncode == 0, done.stderr
    assert f"1 image restored into {tmp_path}/out" in done.stdout
    with Image.open(tmp_path / "out" / "grey.png") as restored:
        assert (restored.mode, restored.size) == ("L", (70, 40))
    (tmp_path / "in" / "bad.png").write_bytes(b"nothing")
    assert_one_line(launch(*flags), 1, "1 skipped", "1 failed")


def assert_one_line(done, status, *words):
    assert done.returncode == status, done.stderr
    lines = done.stderr.strip().splitlines()
    message = lines[-1]
    assert message.startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in message
    return lines


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ["--config: missing", "configs/sca_unet.py:sample"]),
        (("--mode=evaluate",), ["--workdir: missing"]),
        (("--mode=dream",), ["mode", "dream"]),
        (
            ("--config=configs/none.py",),
            ["error: configs/none.py: no such file; configs/"],
        ),
        (("--config=configs/sca_unet.py:cats",), ["cats", "mvtec_ad", "sample"]),
        (
            ("--config=configs/sca_unet.py", "--config.train.epoch=3"),
            ["--config: no such field: 'epoch'", 'Did you mean "epochs"'],
        ),
        (("--workdir=runs/mine", "--config.data.root=x"), ["--config.data.root: ", "sca_unet"]),
        (("--config=configs/sca_unet.py", "--config.train.epochs=many"), ["epochs", "many"]),
        (("--config=configs/sca_unet.py:sample", "runs/mine"), ["runs/mine: not a flag"]),
        (("--nonsense",), ["nonsense"]),
        (("--config=configs/sca_unet.py", "--checkpoint=latest"), ["--checkpoint: only for"]),
        (("--mode=restore", "--workdir=w", "--output=o"), ["--input: missing"]),
        (("--mode=restore", "--workdir=w", "--input=i"), ["--output: missing"]),
        (("--mode=evaluate", "--workdir=w", "--strength=1"), ["--strength: only for"]),
        (("--mode=restore", "--workdir=w", "--dtype=float16"), ["--dtype: only for"]),
        (("--config=configs/sca_unet.py", "--strength=0.0"), ["--strength: only for"]),
        (("--mode=evaluate", "--workdir=w", "--tile=0"), ["--tile: only for"]),
        (("--mode=import", "--config=configs/rcan.py"), ["--weights: missing"]),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line_and_status_2(flags, words):
    lines = assert_one_line(launch(*flags), 2, *words)
    assert len(lines) == 1


@pytest.mark.slow
def test_a_missing_data_set_says_where_to_get_it(tmp_path):
    done = launch(
        "--config=configs/sca_unet.py",
        f"--config.data.root={tmp_path / 'nothing'}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert_one_line(
        done, 2, "config.data.root", "mvtec.com", "CC BY-NC-SA", "configs/sca_unet.py:sample"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_workdir_of_another_configuration_is_refused(trained):
    folder, _ = trained
    done = launch(*TINY, "--config.seed=3", f"--workdir={folder}")
    assert_one_line(done, 2, "config.seed (0, now 3)")
