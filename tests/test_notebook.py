"""The notebook, cell by cell, as Colab runs it, with next to no training."""

import json
import os
import pathlib
import re

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"


def outputs(notebook):
    """What every cell showed: its text, and the types of its pictures and pages."""
    shown = []
    for cell in notebook.cells:
        texts, kinds = [], set()
        for output in cell.get("outputs", ()):
            texts.append(output.get("text", ""))
            kinds |= set(output.get("data", ()))
        shown.append(("".join(texts), kinds))
    return shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    # A copy of the project, so that what the notebook writes stays out of this one.
    for name in ("configs", "data", "restore_jax", "launch.py", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("RESTORE_JAX_QUICK", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path)]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = outputs(notebook)
    text = "\n".join(text for text, _ in shown)
    assert "nothing was missing" in text
    assert "mean of images" in text
    assert "1 image restored" in text
    assert "(256, 256, 3) -> (256, 256, 3)" in text
    pictures = [number for number, (_, kinds) in enumerate(shown) if "image/png" in kinds]
    assert len(pictures) == 3
    trained = next(number for number, (text, _) in enumerate(shown) if "launch.py" in text)
    assert pictures[0] < trained
    before, after = map(float, re.search(r"error: (\S+) grey levels, (\S+) res", text).groups())
    assert after < 0.6 * before
    assert any("text/html" in kinds for _, kinds in shown)
    assert (tmp_path / "restored.zip").stat().st_size > 1000
    assert (tmp_path / "restored" / "model.safetensors").is_file()


def test_it_is_kept_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    nbformat.validate(nbformat.from_dict(notebook))
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_its_requirements_are_read_as_pip_does():
    source = next(
        "".join(cell["source"])
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
        if "def is_installed" in "".join(cell["source"])
    )
    found = {}
    exec(re.split(r"\nlines = ", source)[0], found)
    assert found["is_installed"]("numpy")
    assert found["is_installed"]("flax>=0.12")
    assert found["is_installed"]('tensorflow-cpu>=2.21; sys_platform == "linux"')
    assert not found["is_installed"]("no-such-package>=1")
