import errno

import pytest
from ml_collections import ConfigDict

from configs import sca_unet
from restore_jax import files
from restore_jax.config import workdir
from restore_jax.errors import RunError, UsageError


def test_a_claimed_workdir_gives_back_its_configuration(tmp_path):
    config = sca_unet.get_config("sample")
    folder = tmp_path / "run"
    assert not workdir.is_claimed(folder, config)
    workdir.claim(folder, config)
    assert workdir.is_claimed(folder, config)
    assert workdir.differences(workdir.read_config(folder), config) == []
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_another_configuration_is_refused_field_by_field(tmp_path):
    config = sca_unet.get_config("sample")
    workdir.claim(tmp_path, config)
    config.train.epochs = 7
    config.model.widths = (8, 16)
    with pytest.raises(UsageError) as refused:
        workdir.is_claimed(tmp_path, config)
    message = str(refused.value)
    assert (
        f"config.train.epochs ({sca_unet.get_config('sample').train.epochs}, now 7)" in message
    )
    assert "config.model.widths ([16, 32, 64, 128], now [8, 16])" in message
    assert "seed" not in message
    assert "\n" not in message


def test_fields_that_one_side_lacks_differ():
    differing = workdir.differences(ConfigDict({"a": {"b": 1}}), ConfigDict({"c": None}))
    assert differing == ["config.a.b (1, now absent)", "config.c (absent, now None)"]


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a run's folder"):
        workdir.is_claimed(tmp_path, sca_unet.get_config("sample"))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["{", "[1]", "", "\x00"])
def test_a_damaged_configuration_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json: not a configuration"):
        workdir.read_config(tmp_path)


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(UsageError, match="no run in it"):
        workdir.read_config(tmp_path / "nothing")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        workdir.claim(tmp_path / "file" / "run", sca_unet.get_config("sample"))


def test_a_run_may_go_on_with_its_data_in_another_place(tmp_path):
    config = sca_unet.get_config("sample")
    workdir.claim(tmp_path, config)
    config.data.root = "/elsewhere"
    config.eval.pictures = 3
    assert workdir.is_claimed(tmp_path, config)
    workdir.claim(tmp_path, config)
    assert workdir.read_config(tmp_path).data.root == "/elsewhere"


def test_a_file_that_cannot_be_written_whole_keeps_its_content(tmp_path):
    path = tmp_path / "notes.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert path.read_text() == "new"


def test_what_a_killed_run_left_half_written_is_no_file_of_others_and_goes(tmp_path):
    config = sca_unet.get_config("sample")
    (tmp_path / ".tmp-12-config.json").write_text("{")
    (tmp_path / ".tmp-12-6").mkdir()
    assert not workdir.is_claimed(tmp_path, config)
    with workdir.held(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_is_set_aside_never_takes_the_place_of_what_was_before(tmp_path):
    places = []
    for content in "abc":
        (tmp_path / "6").write_text(content)
        places.append(workdir.set_aside(tmp_path, tmp_path / "6"))
    assert [place.name for place in places] == ["6", "6.2", "6.3"]
    assert [place.read_text() for place in places] == list("abc")
    assert not (tmp_path / "6").exists()


def test_a_folder_is_removed_whole(tmp_path):
    (tmp_path / "checkpoints/6/state").mkdir(parents=True)
    workdir.remove(tmp_path, tmp_path / "checkpoints/6")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOSPC, "No space left on device"), (errno.EIO, "Input/output error")],
)
def test_a_full_disk_is_one_line_and_other_failures_are_left_alone(tmp_path, number, text):
    with (
        pytest.raises(RunError, match=rf"^/a/b: {text}; .*same command resumes"),
        workdir.reporting_disk_failures(tmp_path),
    ):
        raise OSError(number, text, "/a/b")
    with pytest.raises(FileNotFoundError), workdir.reporting_disk_failures(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "No such file", "/a/b")


def test_epochs_may_be_raised_and_not_lowered(tmp_path):
    config = sca_unet.get_config("sample")
    workdir.claim(tmp_path, config)
    config.train.epochs += 1
    assert workdir.is_claimed(tmp_path, config)
    config.seed = 9
    with pytest.raises(UsageError, match=r"the same fields: config\.seed \(0, now 9\)$"):
        workdir.is_claimed(tmp_path, config)
    config.train.epochs -= 2
    with pytest.raises(UsageError, match=r"config\.train\.epochs \("):
        workdir.is_claimed(tmp_path, config)


def test_how_often_to_save_may_change_within_a_run(tmp_path):
    config = sca_unet.get_config("sample")
    workdir.claim(tmp_path, config)
    config.checkpoint.every_steps = 7
    assert workdir.is_claimed(tmp_path, config)


def test_a_run_of_before_resident_data_goes_on_without_and_not_with_them():
    old, new = sca_unet.get_config("sample"), sca_unet.get_config("sample")
    del old.data.resident, old.data.resident_file, old.train.steps_per_dispatch
    assert workdir.differences(old, new) == []
    new.data.resident = True
    assert workdir.differences(old, new) == ["config.data.resident (False, now True)"]


def test_a_run_keeps_the_white_level_that_it_found(tmp_path):
    config = sca_unet.get_config("clean")
    assert workdir.white_level(tmp_path, config) == 0
    config.data.white = 4095
    workdir.claim(tmp_path, config)
    assert workdir.white_level(tmp_path, sca_unet.get_config("clean")) == 4095
    config.data.white = 1023
    assert workdir.white_level(tmp_path, config) == 1023
    with pytest.raises(UsageError, match=r"config\.data\.white \(4095, now 1023\)"):
        workdir.is_claimed(tmp_path, config)


def test_a_run_from_before_the_white_level_used_the_whole_range(tmp_path):
    config = sca_unet.get_config("clean")
    del config.data.white
    workdir.claim(tmp_path, config)
    config = sca_unet.get_config("clean")
    config.data.white = workdir.white_level(tmp_path, config)
    assert config.data.white == 65535
    assert workdir.is_claimed(tmp_path, config)


def test_without_file_locks_a_workdir_is_only_not_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "fcntl", None)  # as on Windows
    with workdir.held(tmp_path), workdir.held(tmp_path):
        assert not workdir.is_held(tmp_path)
