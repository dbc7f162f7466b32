"""What the layout of the project promises."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted((ROOT / "restore_jax").rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_restore_jax_imports_neither_tensorflow_nor_data(path):
    assert not {"tensorflow", "tensorflow_datasets", "data"} & set(imported(path))


def test_restore_jax_works_where_tensorflow_is_not_installed():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
    ]
    script = (
        "import sys, importlib\n"
        "sys.modules.update(tensorflow=None, tensorflow_datasets=None)\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print('imported')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "imported\n", done.stderr


def test_launch_stays_short():
    assert len((ROOT / "launch.py").read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("[a-z]*.py")), ids=lambda path: path.stem
)
@pytest.mark.parametrize("data", ["mvtec_ad", "sample"])
def test_every_config_names_itself_and_its_data(path, data):
    config = importlib.import_module(f"configs.{path.stem}").get_config(data)
    assert config.name == path.stem
    assert config.data.name == data
