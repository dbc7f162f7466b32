"""The file of a law: in the preset's place, part of the run, refused in one line."""

import dataclasses
import json

import pytest

from configs import sca_unet
from restore_jax.config import schema, workdir
from restore_jax.degradation import definition, law_file
from restore_jax.degradation.definition import Law, law_from_config
from restore_jax.errors import UsageError
from restore_jax.train.on_device import pairs_file

LAW = Law(blur=("gaussian",), sigma_x=(3.0, 4.0), sigma_y=(1.0, 1.0), noise_sigma=(5.0, 9.0))


def written(path, **changed):
    law = dataclasses.asdict(LAW) | {"quantise": None, "gain": None} | changed
    rest = {"intervals": {}, "unknown": {}, "residual": {}, "images": 2}
    law_file.write(path, {"law": law, **rest})
    return path


def config_with(path):
    config = sca_unet.get_config("sample")
    config.data.degradation.file = str(path)
    return config


def test_takes_the_place_of_the_preset_and_other_fields_override_it(tmp_path):
    path = written(tmp_path / "law.json")
    found = law_from_config({"preset": "kla", "file": str(path), "noise_sigma": (1.0, 2.0)})
    # What nobody knows does nothing, but photographs are of whole levels.
    assert found == dataclasses.replace(LAW, noise_sigma=(1.0, 2.0), quantise="round")


def test_a_run_has_the_law_itself_whatever_becomes_of_the_file(tmp_path):
    path = written(tmp_path / "law.json")
    config = config_with(path)
    law_file.inline(config)
    path.unlink()
    assert law_from_config(config.data.degradation) == dataclasses.replace(
        LAW, quantise="round"
    )
    stored = json.loads(json.dumps(workdir.as_json(config)))
    schema.check(stored, "config.json")
    schema.require(stored, "config.json")
    written(path, sigma_x=(3.0, 4.5))
    changed = config_with(path)
    law_file.inline(changed)
    assert workdir.differences(config, changed) == [
        "config.data.degradation.sigma_x ([3.0, 4.0], now [3.0, 4.5])"
    ]


def test_a_file_of_pairs_is_of_what_the_law_says_and_not_of_its_name(tmp_path):
    settings = pairs_file.settings_of(config_with(written(tmp_path / "a.json")))
    same = pairs_file.settings_of(config_with(written(tmp_path / "b.json")))
    other = pairs_file.settings_of(config_with(written(tmp_path / "a.json", skew=2.0)))
    assert pairs_file.difference(settings, same) is None
    assert "skew" in pairs_file.difference(settings, other)


def test_runs_that_are_older_than_the_field_go_on():
    config = sca_unet.get_config("sample")
    older = sca_unet.get_config("sample")
    with older.unlocked():
        del older.data.degradation.file
    assert workdir.differences(older, config) == []
    assert pairs_file.settings_of(older) == pairs_file.settings_of(config)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no JSON"),
        ("[1]", "has no format"),
        ("[" * 100_000, "recursion"),
        ('{"format": "restore_jax law", "version": 2}', "is of version 2, not 1"),
        ('{"format": "restore_jax law", "version": 1}', "has no section law"),
        (None, "No such file"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, problem):
    path = tmp_path / "law.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=problem) as told:
        law_from_config({"file": str(path)})
    assert "\n" not in str(told.value)
    assert str(path) in str(told.value)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("sigma_x", [4.0, 3.0], "low is above high"),
        ("sigma_x", "wide", "is not a range|cannot be"),
        ("glow", [1.0, 1.0], "glow"),
        ("quantise", "floor", "is unknown"),
    ],
)
def test_bad_fields_are_refused_in_one_line(tmp_path, field, value, problem):
    path = written(tmp_path / "law.json", **{field: value})
    with pytest.raises(UsageError, match=problem):
        law_from_config({"file": str(path)})
    config = config_with(path)
    with pytest.raises(UsageError, match=problem):
        law_file.inline(config)
        law_from_config(config.data.degradation)


@pytest.mark.parametrize(
    ("sigma_y", "given", "kept"),
    [(1.0, "all8", "flips"), (1.0, "none", "none"), (3.0, "all8", "all8")],
)
def test_a_direction_of_the_law_limits_the_augmentation(tmp_path, capsys, sigma_y, given, kept):
    path = written(tmp_path / "law.json", sigma_x=(3.0, 3.0), sigma_y=(sigma_y, sigma_y))
    config = config_with(path)
    config.data.augment = given
    definition.inline_file(config)
    assert config.data.augment == kept
    assert config.data.degradation.file == ""
    told = capsys.readouterr().out
    assert told.startswith("config.data.augment: flips, not all8") == (kept != given)
