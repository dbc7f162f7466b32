"""--trust and --mode=trust, as a user types them."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from restore_jax import models
from restore_jax.checkpoints import trust_file, weights_file
from restore_jax.cli import commands
from restore_jax.errors import UsageError
from tests.support import command_line, networks, trusting

CONFIG = ConfigDict({"model": {"name": "sca_unet", "widths": (2, 4)}})


@pytest.fixture
def weights(tmp_path):
    variables = networks.variables_of(models.create("sca_unet", widths=(2, 4)))
    return weights_file.save_weights(tmp_path / "m.safetensors", variables, CONFIG)


@pytest.fixture
def flags(tmp_path, weights):
    photograph = tmp_path / "in" / "a.png"
    photograph.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(photograph)
    return commands.Flags(
        workdir=[str(weights)],
        input=[str(photograph.parent)],
        output=str(tmp_path / "out"),
        tile=64,
        trust=True,
    )


def test_restoring_writes_the_map_beside_the_image(weights, flags, tmp_path):
    trust_file.add(weights, trusting.trust_map(), weights)
    commands.run_restore(flags)
    found = {
        path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("out/**/*")
    }
    assert found == {
        "a.png", "restore.csv", "trust", "trust/a.png.heat.png", "trust/a.png.half_width.png",
    }  # fmt: skip


def test_a_model_without_a_map_is_refused_before_anything_is_restored(flags, tmp_path):
    with pytest.raises(
        UsageError, match=r"--trust: .*m\.safetensors has no trust map"
    ) as error:
        commands.run_restore(flags)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").iterdir())


def test_an_exported_file_keeps_the_map(weights, tmp_path):
    trust_file.add(weights, trusting.trust_map(), weights)
    output = tmp_path / "half.safetensors"
    commands.run_export(
        commands.Flags(workdir=[str(weights)], output=str(output), dtype="float16")
    )
    assert trust_file.read(output).notes == trusting.NOTES
    _, variables, _ = weights_file.read_weights(output)
    assert trust_file.of_model(output, variables) is not None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--workdir=a", "--trust", "--mode=evaluate"), "--trust: only for --mode=restore"),
        (("--mode=trust",), "--workdir: missing"),
        (("--mode=trust", "--workdir=a", "--watch"), "--watch: only for --mode=evaluate"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, words, capsys):
    with pytest.raises(SystemExit), command_line.parsed(*given):
        pass
    assert words in capsys.readouterr().err
