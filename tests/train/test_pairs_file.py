import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from restore_jax.errors import UsageError
from restore_jax.train.on_device import pairs_file
from tests.support import pairs


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "deep" / "tiny.safetensors"
    return path, pairs.write(path, pairs.config(path, draws=0))


def test_what_is_written_is_read(written):
    path, splits = written
    found = pairs_file.read(path)
    assert found.settings == pairs_file.settings_of(pairs.config(path, draws=0))
    assert (found.images, found.symmetries, found.draws) == ("0" * 64, "flips", 0)
    assert found.law == pairs.LAW
    assert found.splits.keys() == splits.keys()
    for name, split in splits.items():
        assert len(found.splits[name]) == len(split.ids)
        for field in ("ids", "categories", "defect_types"):
            assert getattr(found.splits[name], field) == getattr(split, field)
        assert found.splits[name].arrays.keys() == split.arrays.keys()
        for array, values in split.arrays.items():
            read = found.splits[name].arrays[array]
            assert read.dtype == values.dtype
            np.testing.assert_array_equal(read, values)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_other_programs_can_read_it(written):
    path, splits = written
    arrays = safetensors.numpy.load_file(path)
    for name, split in splits.items():
        for array, values in split.arrays.items():
            np.testing.assert_array_equal(arrays[f"{name}.{array}"], values)


def refusal(path):
    with pytest.raises(UsageError) as caught:
        pairs_file.read(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and line.isprintable() and len(line) < 500
    return line


def test_damage_is_found_wherever_it_is(written):
    path, _ = written
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    length = struct.unpack("<Q", whole[:8])[0]
    places = [0, 4, 9, 20, length, 8 + length, len(whole) - 1, *rng.integers(0, len(whole), 30)]
    header = json.loads(whole[8 : 8 + length])
    for place in map(int, places):
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        # A letter of a name, or a blank, may be another without harm.
        if place >= 8 + length:
            assert "its digest does not match" in refusal(path)
        else:
            try:
                pairs_file.read(path)
            except UsageError:
                refusal(path)
    for end in (0, 5, 8, 100, length, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert "or damaged (" in refusal(path)
    path.write_bytes(whole + b"\0")
    assert "or damaged (" in refusal(path)
    assert header["__metadata__"]["format"] == pairs_file.FORMAT


def test_a_header_of_lies_is_refused(written):
    path, _ = written
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])

    def rewritten(change):
        fields = json.loads(json.dumps(header))
        about = json.loads(fields["__metadata__"]["about"])
        change(fields, about)
        if "__metadata__" in fields:
            fields["__metadata__"]["about"] = json.dumps(about)
        text = json.dumps(fields).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        return refusal(path)

    size = len(whole) - 8 - length
    lies = [
        lambda f, _: f["__metadata__"].update(format="weights"),
        lambda f, _: f["__metadata__"].update(version="9"),
        lambda f, _: f.pop("__metadata__"),
        lambda f, _: f["train.clean"].update(shape=[10, 16, 16, 4]),
        lambda f, _: f["train.clean"].update(shape=[-10, 16, -16, 3]),
        lambda f, _: f["train.clean"].update(dtype="F64"),
        lambda f, _: f["train.clean"].update(data_offsets=[size - 10, size - 10 + 7680]),
        lambda f, _: f["train.clean"].update(data_offsets=[-7680, 0]),
        lambda f, _: f["train.clean"].update(data_offsets="far"),
        lambda f, _: f.pop("val.mask"),
        lambda f, _: f.pop("train.native"),
        lambda _, a: a.pop("digest"),
        lambda _, a: a.update(draws=3),
        lambda _, a: a["names"]["val"][1].pop(),
        lambda _, a: a.update(names={"val": "abc"}),
        lambda _, a: a.update(law=None),
    ]
    for lie in lies:
        rewritten(lie)


def test_what_is_no_file_is_refused(tmp_path):
    assert "cannot be read (No such file" in refusal(tmp_path / "nothing")
    assert "cannot be read (Is a directory" in refusal(tmp_path)
    (tmp_path / "text").write_text("hello")
    assert "or damaged (" in refusal(tmp_path / "text")
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "pairs"
    with pytest.raises(UsageError, match="cannot be written"):
        pairs.write(target, pairs.config(target))


def test_settings_are_what_the_pixels_depend_on(tmp_path):
    path = tmp_path / "a"
    base = pairs_file.settings_of(pairs.config(path))

    def differs(section, field, value, draws=1):
        config = pairs.config(path, draws)
        before = pairs_file.settings_of(config)
        (config[section] if section else config)[field] = value
        return pairs_file.difference(before, pairs_file.settings_of(config))

    assert pairs_file.difference(base, base) is None
    assert differs("data", "image_size", 32) == (
        "config.data.image_size is 32, but the file was made with 16"
    )
    for field, value in (
        ("resize", "area"), ("realisations", 3), ("split", "good"), ("references", 2),
        ("sample_count", 3),
    ):  # fmt: skip
        assert differs("data", field, value).startswith(f"config.data.{field} is ")
    assert differs("", "seed", 1) == "config.seed is 1, but the file was made with 0"
    assert differs("", "seed", 1, draws=0) is None  # they are drawn later
    for field, value in (("root", "x"), ("augment", "flips"), ("resident_file", "y")):
        assert differs("data", field, value) is None
    assert differs("train", "epochs", 7) is None
    changed = pairs.config(path)
    changed.data.degradation.gain = (0.8, 1.2)
    assert "config.data.degradation.gain is [0.8, 1.2]" in pairs_file.difference(
        base, pairs_file.settings_of(changed)
    )
