import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import restore_jax
from benchmarks import assess
from restore_jax import models
from restore_jax.degradation import definition, known_range
from tests.support import networks


@pytest.fixture
def model(tmp_path):
    fields = {"name": "pexels_cnn", "widths": (2,)}
    network = models.create(**fields)
    variables = networks.init(network, np.zeros((1, 16, 16, 3)))
    data = {"name": "mvtec_ad", "image_size": 0, "degradation": {"preset": "kla"}}
    path = tmp_path / "a.safetensors"
    restore_jax.save_weights(path, variables, ConfigDict({"model": fields, "data": data}))
    return path


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    for number in range(12):
        ramp = np.linspace(60, 190, 96)[:, None] + np.linspace(0, number, 96)
        Image.fromarray(ramp.astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def test_the_laws_are_twice_that_of_the_model():
    found = assess.laws(definition.PRESETS["wide"])
    assert found["noise"].noise_sigma == (160.0, 200.0)
    assert found["blur"].sigma_x == found["blur"].sigma_y == (24.0, 30.0)
    assert found["blur"].blur == ("gaussian",) and found["blur"].clean_share == 0
    assert found["inside"] == definition.PRESETS["wide"]


@pytest.mark.bench
def test_lines_of_a_model(model, photographs, capsys):
    command = ["--model", str(model), "--root", str(photographs), "--count=12"]
    assess.main([*command, "--restore"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["law"] for line in lines] == ["inside", "clean", "noise", "blur"]
    by_law = {line["law"]: line for line in lines}
    assert by_law["inside"]["of_noise"] == 0
    assert min(by_law["noise"]["of_noise"], by_law["clean"]["flagged"]) >= 9
    assess.main([*command, "--known_range"])
    known = known_range.read(capsys.readouterr().out, "printed")
    assert known.photographs == 12 and known.noise[0] <= 50 <= 80 <= known.noise[1]


@pytest.mark.bench
def test_a_folder_without_photographs_is_one_line(model, tmp_path, capsys):
    with pytest.raises(SystemExit):
        assess.main(["--model", str(model), "--root", str(tmp_path / "none")])
    assert "there are no images" in capsys.readouterr().err
