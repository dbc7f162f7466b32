"""Configurations of strangers: one line for whatever is wrong with them, and no code is run."""

import importlib
import json

import pytest

from configs import default
from restore_jax import models
from restore_jax.config import schema
from restore_jax.errors import UsageError
from tests.config.test_configs import NAMES

WRONG = [
    None, True, 3, -1.5, 10**30, "text", "\0", [], ["a"], [1], [[1]], {}, {"a": {"b": 1}},
    "x" * 20_000, [0] * 2_000,
]  # fmt: skip


def as_json(config):
    return json.loads(json.dumps(config.to_dict()))


def leaves(tree, path=()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield (*path, name), value
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def changed(fields, path, value):
    fields = json.loads(json.dumps(fields))
    node = fields
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return fields


def refusal(text):
    with pytest.raises(UsageError) as caught:
        schema.read(text, "run/config.json")
    line = str(caught.value)
    assert line.startswith("run/config.json: not a configuration (")
    assert line.isprintable()
    assert len(line) < 400
    return line


@pytest.mark.parametrize("data", default.DATA)
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_passes(name, data):
    fields = as_json(importlib.import_module(f"configs.{name}").get_config(data))
    assert schema.read(json.dumps(fields), "x") == fields
    schema.require(fields, "x")


def test_every_field_has_a_kind():
    fields = {
        ".".join(path)
        for data in default.DATA
        for path, value in leaves(as_json(default.get_config(data)))
        if not isinstance(value, dict) and path[0] != "loss"
    }
    assert fields == schema.FIELDS.keys()


def test_the_options_of_every_model_have_kinds():
    for name, model in models.MODELS.items():
        options = {
            o: f.default
            for o, f in model.__dataclass_fields__.items()
            if o not in ("parent", "name", "dtype")
        }
        schema.check({"model": {"name": name, **options}}, "x")
        for option in options:
            with pytest.raises(UsageError, match=rf"config\.model\.{option}: "):
                schema.check({"model": {"name": name, option: None}}, "x")


@pytest.mark.parametrize("name", ["sca_unet", "cbam_unet", "pexels_gan"])
def test_a_wrong_type_anywhere_is_one_line_that_names_the_field(name):
    fields = as_json(importlib.import_module(f"configs.{name}").get_config("sample"))
    for path, value in leaves(fields):
        refused = 0
        for wrong in WRONG:
            try:
                schema.check(changed(fields, path, wrong), "x")
            except UsageError as error:
                refused += 1
                assert f"config.{'.'.join(path)}" in str(error)
                assert str(error).isprintable()
        # A section may be empty or of unknown fields; a text may be any.
        assert refused >= (len(WRONG) - 4 if isinstance(value, dict) else 8), path


def test_a_field_that_is_missing_is_named():
    fields = as_json(default.get_config("mvtec_ad"))
    for path, _ in leaves(fields):
        if path[0] == "loss" and len(path) > 1:
            continue
        less = changed(fields, path, None)
        node = less
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]
        schema.check(less, "x")
        if ".".join(path) in (
            "checkpoint", "checkpoint.every_steps", "train.steps_per_dispatch",
            "init_from", "data.crops_per_image", "data.degradation.clean_share",
            "data.degradation.noise", "data.degradation.skew", "data.skip_bad", "data.resident",
            "data.resident_file", "data.max_megapixels", "data.white", "data.recolour",
            "data.shrink", "data.undo_gain", "data.degradation.file",
            "data.degradation.jpeg_quality", "data.degradation.jpeg_share",
        ):  # fmt: skip
            schema.require(less, "x")
            continue
        with pytest.raises(UsageError, match=rf"config\.{'[.]'.join(path)}.* is missing"):
            schema.require(less, "x")
    with pytest.raises(UsageError, match=r"config\.loss\.kindness: there is no such term"):
        schema.require(changed(fields, ("loss", "kindness"), 1.0), "x")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1]", "null", "\x00", '{"seed": 1e999}', '{"seed": NaN}',
        '{"loss": {"l1": NaN}}', '{"loss": {"l1": "1"}}', '{"seed": ' + "9" * 5_000 + "}",
        '{"a":' * 100_000, "[" * 100_000, '{"a":' * 30 + "1" + "}" * 30,
        '{"items": 1}', '{"lock": 1}', '{"__class__": 1}', '{"a.b": 1}', '{"": 1}',
        '{"a\\nb": 1}', '{"model": 3}', '{"data": []}', '{"model": {"name": ["sca_unet"]}}',
        '{"model": {"name": "sca_unet", "widths": "16"}}',
        '{"model": {"name": "sca_unet", "widths": [-1]}}',
        '{"model": {"name": "rcan", "blocks": 1e3}}',
        '{"x": "' + "y" * (1 << 20) + '"}',
    ],
    ids=lambda text: ascii(text[:24]),
)  # fmt: skip
def test_no_text_is_more_than_one_line(text):
    refusal(text)


def test_what_is_not_known_is_left_alone():
    text = '{"model": {"name": "of_tomorrow", "depth": [3]}, "later": {"on": 1}}'
    assert schema.read(text, "x") == json.loads(text)


def test_files(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(UsageError, match="No such file"):
        schema.read_file(path)
    for content in (b"\xff", b" " * (2 << 20), b"{'seed': __import__('os').abort()}"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"config\.json: not a configuration") as caught:
            schema.read_file(path)
        assert "\n" not in str(caught.value)
    path.write_text('{"seed": 3, "model": {"name": "rcan"}}')
    assert schema.read_file(path).model.name == "rcan"
