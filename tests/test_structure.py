"""What the layout of the project promises."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted((ROOT / "restore_jax").rglob("*.py"))

# Which rooms a room may import from. Every room stands below those that name it, so that no
# import can lead in a circle. Modules outside of rooms (FLOOR) are open to all.
ROOMS = {
    "degradation": set(),
    "parallel": set(),
    "image_io": set(),
    "metrics": set(),
    "models": set(),
    "trust": {"models"},
    "losses": {"metrics", "models"},
    "learner": {"metrics", "models"},
    "config": {"losses", "models"},
    "report": {"metrics", "trust"},
    "checkpoints": {"config", "learner", "models", "parallel", "trust"},
    "inference": {
        "checkpoints", "config", "degradation", "image_io", "models", "parallel", "trust",
    },
    "evaluation": {
        "checkpoints", "config", "degradation", "image_io", "learner", "losses", "metrics",
        "models", "parallel", "report", "trust",
    },
    "train": {
        "checkpoints", "config", "degradation", "evaluation", "learner", "losses", "metrics",
        "models", "parallel", "report",
    },
    "folders": {
        "degradation", "image_io", "inference", "metrics", "parallel", "report", "trust",
    },
    "serve": {"folders", "image_io", "inference", "parallel", "report"},
    "cli": {
        "checkpoints", "degradation", "evaluation", "folders", "image_io", "inference",
        "parallel", "serve", "train",
    },
}  # fmt: skip

# Modules that stand below every room.
FLOOR = {"batches", "errors", "files", "progress", "shared_context", "shipped", "version"}


def imported(path):
    """Yields the dotted names that a module imports, of functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def rooms_of(path, package="restore_jax"):
    """Returns what a module imports of its package, by the first name below it."""
    parts = (name.split(".") for name in imported(path))
    return {names[1] for names in parts if names[0] == package and len(names) > 1}


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_restore_jax_imports_neither_tensorflow_nor_data(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert not {"tensorflow", "tensorflow_datasets", "data"} & roots


def test_every_room_is_listed_above_those_it_imports_from():
    folders = {path.parent.name for path in (ROOT / "restore_jax").glob("*/__init__.py")}
    assert folders == set(ROOMS)
    listed = list(ROOMS)
    for place, (room, below) in enumerate(ROOMS.items()):
        assert below <= set(listed[:place]), room


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_those_below_it(room):
    found = {
        (name_of(path), other)
        for path in (ROOT / "restore_jax" / room).rglob("*.py")
        for other in rooms_of(path) - FLOOR - {room}
    }
    assert {other for _, other in found} == ROOMS[room], sorted(found)


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_what_is_open_to_all_rooms_imports_from_none(name):
    assert rooms_of(ROOT / "restore_jax" / f"{name}.py") <= FLOOR


@pytest.mark.parametrize("room", ["sources", "rendered"])
def test_the_sources_of_data_know_nothing_of_the_pipeline(room):
    for path in (ROOT / "data" / room).rglob("*.py"):
        allowed = {"sources": {"sources"}, "rendered": {"rendered"}}[room]
        assert rooms_of(path, "data") <= allowed, path


def test_no_folder_of_the_library_holds_more_than_a_dozen_modules():
    for folder in {path.parent for path in MODULES} | {ROOT / "data"}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 12, folder


def test_what_is_no_module_is_packaged():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["restore_jax"]
    package = ROOT / "restore_jax"
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    others = {
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".py" and path.parent.name != "__pycache__"
    }
    assert others == packaged


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


def test_the_one_list_of_requirements_is_that_of_the_uses_together():
    def listed(path):
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        return {line.split("  #")[0].strip() for line in lines if not line.startswith("#")}

    uses = listed("requirements/restore.txt") | listed("requirements/train.txt")
    assert listed("requirements.txt") == uses | {"pytest"}
