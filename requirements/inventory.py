"""Writes what is shipped: the SBOM of the wheel, and docs/licences.md.

`make sbom` runs it as `python -m requirements.inventory FOLDER`, where FOLDER holds the
packages of lock-restore.txt, installed.
"""

import importlib.metadata
import json
import pathlib
import re
import sys
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple

from restore_jax import shipped

ROOT = pathlib.Path(__file__).parent.parent
LOCK = ROOT / "requirements/lock-restore.txt"
SBOM = ROOT / "restore_jax/sbom.cdx.json"
LICENCES = ROOT / "docs/licences.md"


class Package(NamedTuple):
    """A package of the lock.

    Attributes:
        version: its version.
        needed_by: the packages that need it; "" stands for requirements/restore.txt.
        licence: as its metadata state it.
        is_expression: whether `licence` is an expression of SPDX.
    """

    version: str
    needed_by: frozenset[str]
    licence: str
    is_expression: bool


def read(folder: str) -> dict[str, Package]:
    """Reads the packages of the lock, by name.

    Args:
        folder: holds them, installed.
    """
    installed = {
        re.sub(r"[-_.]+", "-", found.name).lower(): found
        for found in importlib.metadata.distributions(path=[folder])
    }
    packages = {}
    # A block: a line with name and version, indented digests, comments with what needs it.
    for block in re.split(r"\n(?=[a-z])", LOCK.read_text(encoding="utf-8"))[1:]:
        name, version = re.match(r"([\w.-]+)==(\S+)", block).groups()
        above = re.findall(r"^ +# +(?:via )?(?!via$)(.+)$", block, re.MULTILINE)
        needed_by = frozenset("" if one.startswith("-r ") else one for one in above)
        packages[name] = Package(version, needed_by, *licence_of(installed[name].metadata))
    return packages


def licence_of(metadata: importlib.metadata.PackageMetadata) -> tuple[str, bool]:
    """Returns a licence as a package states it, and whether it is an expression of SPDX."""
    if expression := metadata.get("License-Expression"):
        return expression, True
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier", [])
        if line.startswith("License :: ")
    ]
    # Some packages put the whole text into the field.
    stated = metadata.get("License", "").strip().splitlines()
    return ", ".join(classifiers) or stated[0], False


def main(folder: str) -> None:
    """Writes the SBOM and the list of licences.

    Args:
        folder: holds the locked packages, installed.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = read(folder)
    SBOM.write_text(json.dumps(bill(project, packages), indent=1) + "\n", encoding="utf-8")
    LICENCES.write_text(table(project, packages), encoding="utf-8")


def bill(project: Mapping[str, Any], packages: Mapping[str, Package]) -> dict[str, Any]:
    """Returns the SBOM, CycloneDX 1.6, from the project's table in pyproject.toml."""

    def reference(name: str) -> str:
        return f"pkg:pypi/{name}@{packages[name].version}"

    def licence(package: Package) -> dict[str, Any]:
        if package.is_expression:
            return {"expression": package.licence}
        return {"license": {"name": package.licence}}

    root = f"pkg:pypi/restore-jax@{project['version']}"
    models = [
        {
            "type": "machine-learning-model",
            "bom-ref": f"weights/{model.file}",
            "name": model.name,
            "hashes": [{"alg": "SHA-256", "content": model.sha256}],
            "licenses": [{"license": {"name": model.licence}}],
        }
        for model in shipped.MODELS
    ]
    libraries = [
        {
            "type": "library",
            "bom-ref": reference(name),
            "name": name,
            "version": package.version,
            "purl": reference(name),
            "licenses": [licence(package)],
        }
        for name, package in packages.items()
    ]

    def below(user: str) -> list[str]:
        return [reference(name) for name, one in packages.items() if user in one.needed_by]

    edges = {root: [model["bom-ref"] for model in models] + below("")}
    edges |= {reference(name): below(name) for name in packages}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": project["name"],
                "version": project["version"],
                "licenses": [{"expression": project["license"]}],
                "purl": root,
            }
        },
        "components": [*models, *libraries],
        "dependencies": [{"ref": one, "dependsOn": needs} for one, needs in edges.items()],
    }


def table(project: Mapping[str, Any], packages: Mapping[str, Package]) -> str:
    """Returns the list of licences, in Markdown."""
    models = "".join(f"| {model.name} | {model.licence} |\n" for model in shipped.MODELS)
    others = "".join(
        f"| {name} | {package.version} | {package.licence} |\n"
        for name, package in packages.items()
    )
    return f"""# Licences

Written by `make sbom`. The code of {project["name"]} is under {project["license"]}.
The wheel also holds the weights of the shipped models:

| weights | licence |
|---|---|
{models}
The wheel holds no code of others. `pip install .` installs these packages beside it; versions
are those of `requirements/lock-restore.txt` (Python 3.11, Linux, x86-64), licences are as
stated in each package's metadata. Wheels with compiled code, such as those of SciPy, Pillow
and imagecodecs, hold further libraries, whose licences are in the wheel itself.

| package | version | licence |
|---|---|---|
{others}"""


if __name__ == "__main__":
    main(*sys.argv[1:])
