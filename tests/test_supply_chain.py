"""The lock, the SBOM and the list of licences tell the truth; `make sbom` writes the latter."""

import hashlib
import importlib.metadata
import json
import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from restore_jax import shipped

ROOT = pathlib.Path(__file__).parent.parent
LISTS = ["restore", "train", "export", "serve", "dev"]
SBOM = ROOT / "restore_jax" / "sbom.cdx.json"
LICENCES = ROOT / "docs" / "licences.md"


def lines(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def requirements(name):
    return [Requirement(line.split("  #")[0]) for line in lines(name)]


@pytest.fixture(scope="module")
def locked():
    """The version of each locked package by name."""
    pins = (line.split() for line in lines("lock-restore") if "==" in line)
    return dict(pin[0].split("==") for pin in pins)


@pytest.fixture(scope="module")
def bill():
    return json.loads(SBOM.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", LISTS)
def test_every_bound_has_its_reason(name):
    for line in lines(name):
        if Requirement(line.split("  #")[0]).specifier:
            assert "  # " in line, line


@pytest.mark.parametrize("name", ["restore", "serve"])
def test_all_that_users_need_has_a_lower_bound(name):
    for one in requirements(name):
        assert ">=" in str(one.specifier), one


def test_the_lock_has_every_requirement_at_a_version_that_it_accepts(locked):
    for one in requirements("restore"):
        assert one.specifier.contains(locked[canonicalize_name(one.name)]), one


def test_the_lock_has_what_its_packages_need(locked):
    checked = 0
    for name, version in locked.items():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found.version != version:
            continue
        checked += 1
        for needed in map(Requirement, found.requires or []):
            environment = {"extra": "", "python_version": "3.11", "sys_platform": "linux"}
            if needed.marker is None or needed.marker.evaluate(environment):
                pinned = locked[canonicalize_name(needed.name)]
                assert needed.specifier.contains(pinned), (name, needed)
    assert checked > 0


def test_the_lock_names_digests_and_no_place(locked):
    text = (ROOT / "requirements" / "lock-restore.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index-url|--find-links", text)
    blocks = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked)
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), block


def test_the_bill_lists_the_locked_packages_and_the_weights(bill, locked):
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    libraries = {c["name"]: c["version"] for c in bill["components"] if c["type"] == "library"}
    assert libraries == locked
    models = {
        c["name"]: c["hashes"][0]["content"]
        for c in bill["components"]
        if c["type"] == "machine-learning-model"
    }
    assert models == {
        path.stem: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in shipped.FOLDER.glob("*.safetensors")
    }
    assert "://" not in SBOM.read_text(encoding="utf-8")


def test_the_bill_says_what_needs_what(bill):
    below = {edge["ref"]: edge["dependsOn"] for edge in bill["dependencies"]}
    root = bill["metadata"]["component"]["bom-ref"]
    names = {c["bom-ref"]: c["name"] for c in bill["components"]}
    direct = {names[one] for one in below[root] if one.startswith("pkg:")}
    assert direct == {canonicalize_name(one.name) for one in requirements("restore")}
    jax = next(one for one, name in names.items() if name == "jax")
    assert {"jaxlib", "numpy", "scipy"} <= {names[one] for one in below[jax]}
    # Nothing is listed that nothing needs.
    reached, todo = set(), [root]
    while todo:
        todo += set(below.get(one := todo.pop(), [])) - reached - set(todo)
        reached.add(one)
    assert reached == {root, *names}


def test_the_bill_is_of_this_version(bill):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    component = bill["metadata"]["component"]
    assert [component["name"], component["version"]] == [project["name"], project["version"]]
    assert component["licenses"] == [{"expression": project["license"]}]


def test_every_package_and_every_model_has_its_licence(bill, locked):
    rows = re.findall(r"^\| (.+) \|$", LICENCES.read_text(encoding="utf-8"), re.MULTILINE)
    table = [tuple(row.split(" | ")) for row in rows]
    assert {row[:2] for row in table if len(row) == 3} - {("package", "version")} == (
        set(locked.items())
    )
    assert {row for row in table if len(row) == 2} - {("weights", "licence")} == {
        (model.name, model.licence) for model in shipped.MODELS
    }
    stated = {row[0]: row[-1] for row in table}
    for component in bill["components"]:
        (licence,) = component["licenses"]
        told = licence.get("expression") or licence["license"]["name"]
        assert told == stated[component["name"]]
