"""Compiles C++ and C# against onnxruntime; `make onnxruntime` fetches what pip does not."""

import json
import pathlib
import shutil
import subprocess

import onnxruntime
import pytest

FETCHED = pathlib.Path(__file__).parents[2] / "build" / "onnxruntime"
DOTNET = FETCHED / "dotnetcore2" / "bin"
# Of the .NET that is fetched; the assemblies of the standard library that the example needs.
FRAMEWORK = {"name": "Microsoft.NETCore.App", "version": "3.1.0"}
ASSEMBLIES = ("System.Private.CoreLib", "System.Runtime", "System.Runtime.Extensions")
ASSEMBLIES += ("System.Memory", "System.Linq", "System.Collections", "System.IO.FileSystem")


def _library() -> pathlib.Path:
    """Returns onnxruntime's own library, or skips the test."""
    if not FETCHED.is_dir():
        pytest.skip("needs `make onnxruntime`")
    installed = pathlib.Path(onnxruntime.__file__).parent / "capi"
    (found,) = installed.glob("libonnxruntime.so.*")
    return found


def cpp(source: pathlib.Path, program: pathlib.Path) -> None:
    """Compiles a C++ program, with warnings as errors."""
    library = _library()
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    # The loader looks for it by this name.
    (program.parent / "libonnxruntime.so.1").symlink_to(library)
    flags = [
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-isystem",
        FETCHED / "include",
    ]
    subprocess.run(
        [compiler, *flags, source, library, f"-Wl,-rpath,{program.parent}", "-o", program],
        check=True,
    )


def csharp(sources: list[pathlib.Path], program: pathlib.Path) -> list[pathlib.Path]:
    """Compiles a C# program, with warnings as errors; returns the command that starts it."""
    library = _library()
    compiler = shutil.which("mcs")
    if compiler is None:
        pytest.skip("needs mono's C# compiler, mcs")
    (framework,) = (DOTNET / "shared" / FRAMEWORK["name"]).iterdir()
    binding = FETCHED / "Microsoft.ML.OnnxRuntime.dll"
    used = [framework / f"{name}.dll" for name in ASSEMBLIES]
    flags = ["-nostdlib", "-noconfig", "-warnaserror", f"-out:{program}"]
    subprocess.run(
        [compiler, *flags, *(f"-reference:{file}" for file in (*used, binding)), *sources],
        check=True,
    )
    shutil.copy(binding, program.parent)
    (program.parent / "libonnxruntime.so").symlink_to(library)
    options = {"framework": FRAMEWORK, "configProperties": {}}
    # .NET otherwise needs ICU.
    options["configProperties"]["System.Globalization.Invariant"] = True
    text = json.dumps({"runtimeOptions": options})
    program.with_suffix(".runtimeconfig.json").write_text(text)
    return [DOTNET / "dotnet", program]
