"""What can be known of the Dockerfile without Docker."""

import json
import pathlib
import re
import shlex
import tomllib

from restore_jax.cli import verbs

ROOT = pathlib.Path(__file__).parent.parent


def steps():
    """The Dockerfile's instructions with their arguments, in order."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    return [line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[A-Z]", line)]


def arguments(name):
    return [rest for word, rest in steps() if word == name]


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def copied():
    return [source for rest in arguments("COPY") for source in shlex.split(rest)[:-1]]


def test_all_that_is_copied_is_there_and_is_sent_to_docker():
    ignored, *kept = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert ignored == "*"
    sent = {line[1:] for line in kept if line.startswith("!")}
    assert sent == {pathlib.PurePath(source).parts[0] for source in copied()}
    for source in copied():
        assert (ROOT / source).exists(), source


def test_all_that_the_package_is_built_from_is_copied():
    table = project()
    dynamic = table["tool"]["setuptools"]["dynamic"]
    lists = [*dynamic.pop("optional-dependencies").values(), *dynamic.values()]
    needed = {file for one in lists for file in one["file"]}
    needed |= {"pyproject.toml", table["project"]["readme"], "restore_jax"}
    needed |= set(table["project"]["license-files"])
    for file in needed:
        assert {file, file.partition("/")[0]} & set(copied()), file


def test_it_starts_the_console_command_on_the_folders_that_its_head_names():
    (entry,), (default,) = arguments("ENTRYPOINT"), arguments("CMD")
    command, *given = json.loads(entry)
    assert command in project()["project"]["scripts"]
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (run,) = re.findall(r"#   docker run .* restore_jax (/in .*)", text)
    call = verbs.parse([*given, *run.split()])
    assert call.verb == "restore"
    assert call.values["input"] == ["/in"]
    assert call.values["output"] == "/out"
    assert json.loads(default) == ["--help"]


def test_it_is_small_not_root_and_names_no_registry():
    (base,) = arguments("FROM")
    assert re.fullmatch(r"python:3\.\d+-slim", base)
    (user,) = arguments("USER")
    assert user != "root"
    last = [word for word, _ in steps()]
    assert last.index("USER") > max(i for i, word in enumerate(last) if word == "RUN")
    assert "://" not in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_its_python_is_that_of_the_lock():
    (version,) = re.findall(r"python:(3\.\d+)-", arguments("FROM")[0])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"LOCKED := --python-version=(\S+)", makefile) == [version]
