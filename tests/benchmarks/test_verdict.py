import json

import numpy as np
import pytest

from benchmarks import verdict
from tests.benchmarks.test_assess import model, photographs  # noqa: F401


def test_a_scratch_is_darker_or_brighter_than_its_surroundings():
    for level in (40, 200):
        change = verdict.scratched(np.full((128, 160, 3), level, np.uint8)).astype(int) - level
        assert set(np.unique(change)) == {0, 60 if level == 40 else -60}
        assert np.count_nonzero(change[..., 0]) == 3 * 80


@pytest.mark.bench
def test_lines_of_a_folder_and_of_rendered_images(model, photographs, capsys):  # noqa: F811
    command = ["--model", str(model), "--laws=mild", "--count=3", "--side=96"]
    for source in ([], ["--root", str(photographs)]):
        verdict.main([*command, *source])
        line = json.loads(capsys.readouterr().out)
        assert (line["law"], line["photographs"]) == ("mild", 3)
        assert -1 <= line["spearman"] <= 1 and line["ms"] > 0


@pytest.mark.bench
def test_a_folder_without_photographs_is_one_line(model, tmp_path, capsys):  # noqa: F811
    with pytest.raises(SystemExit):
        verdict.main(["--model", str(model), "--root", str(tmp_path / "none")])
    assert "there are no images" in capsys.readouterr().err
