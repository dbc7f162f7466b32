"""The short commands of `restore-jax`, read by argparse: what they take, as flags of launch.py.

An option has the name, the help and the type of the flag of launch.py that it stands for, so
that one table (`flags`) holds them all. Light, as `flags`.
"""

import argparse
import difflib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from absl import flags as absl_flags

from restore_jax.cli import flags
from restore_jax.errors import UsageError


class _Argument(NamedTuple):
    flag: str  # of launch.py
    shown: str
    help: str
    options: tuple[str, ...] = ()  # none: it is positional
    many: bool = False
    required: bool = False


class _Verb(NamedTuple):
    usage: str
    description: str
    arguments: tuple[_Argument, ...] = ()
    # It is launch.py's, which has the configurations and the data.
    in_checkout: bool = False


_MODEL = "A shipped model, weights file or run's folder."
_TO_READ = _Argument("workdir", "MODEL", _MODEL)
_OUTPUT = _Argument("output", "DIR", "Where the results go.", ("-o", "--output"))
_WORKDIR = _Argument(
    "workdir", "DIR", "The run's folder [runs/NAME_DATA].", ("-o", "--workdir")
)
_CONFIG = _Argument("config", "CONFIG", "What to run: configs/NAME.py[:DATA].")
_DATA = _Argument(
    "config", "CONFIG", "Other data: configs/NAME.py:DATA, --config.FIELD=…", ("--config",)
)

VERBS = {
    "restore": _Verb(
        "INPUT... -o DIR [options]",
        "Removes noise and blur from photographs and keeps the defects.",
        (
            _Argument(
                "input", "INPUT", "Files, folders and patterns ('a/**/*.tif').", many=True
            ),
            _OUTPUT._replace(required=True),
            _Argument("workdir", "NAME", _MODEL, ("-m", "--model")),
        ),
    ),
    "models": _Verb("", "Lists the models that come along, the default first."),
    "export": _Verb(
        "MODEL -o FILE.onnx|FILE.safetensors|DIR [options]",
        "Writes a model as ONNX, a weights file or StableHLO (a folder).",
        (_TO_READ, _OUTPUT._replace(shown="FILE", required=True)),
    ),
    "train": _Verb(
        "CONFIG [-o DIR] [--config.FIELD=VALUE] [options]",
        "Trains a run, or goes on with it, and evaluates its best state.",
        (_CONFIG, _WORKDIR),
        in_checkout=True,
    ),
    "evaluate": _Verb(
        "MODEL [--config=CONFIG] [options]",
        "Measures a model: figures, pictures and a page.",
        (_TO_READ, _DATA, _OUTPUT),
        in_checkout=True,
    ),
    "compare": _Verb(
        "MODEL... [--config=CONFIG] [options]",
        "Measures several models on the same images.",
        (_TO_READ._replace(many=True), _DATA, _OUTPUT),
        in_checkout=True,
    ),
    "calibrate": _Verb(
        "CONFIG --config.data.root=DIR -o FILE [options]",
        "Fits the law of a camera's noise and blur to its photographs.",
        (_CONFIG, _OUTPUT._replace(shown="FILE", required=True)),
        in_checkout=True,
    ),
    "import": _Verb(
        "CONFIG WEIGHTS [-o DIR] [--config.FIELD=VALUE]",
        "Makes a run's folder of weights that were published for PyTorch.",
        (
            _CONFIG,
            _Argument("weights", "WEIGHTS", "A file of .pth, .safetensors or .npz."),
            _WORKDIR,
        ),
        in_checkout=True,
    ),
}

# What argparse makes of a flag, by absl's name of its type.
_TYPES: dict[str, dict[str, Any]] = {
    "bool": {"action": "store_true", "default": None},
    "int": {"type": int, "metavar": "N"},
    "float": {"type": float, "metavar": "X"},
    "string": {"metavar": "TEXT"},
    "multi string": {"action": "append", "metavar": "TEXT"},
}
# How a field of the configuration is set, as on launch.py's command line.
_FIELD = "--config."


class Call(NamedTuple):
    """A short command that was given.

    Attributes:
        verb: its name, one of `VERBS`.
        values: the flags of launch.py that it gives, by their names.
        fields: what it changes of the configuration, each `--config.FIELD=VALUE`.
    """

    verb: str
    values: dict[str, Any]
    fields: list[str]

    def as_flags(self) -> list[str]:
        """Returns the command line of launch.py that does the same."""
        found = [f"--mode={self.verb}"]
        for name, value in self.values.items():
            if value is True:
                found.append(f"--{name}")
            else:
                several = value if isinstance(value, list) else [value]
                found.extend(f"--{name}={one}" for one in several)
        return found + self.fields


def parse(argv: Sequence[str]) -> Call:
    """Reads a short command.

    Args:
        argv: the verb and what follows it.

    Raises:
        UsageError: whatever is wrong, in one line.
        SystemExit: where help was asked for, once it is shown.
    """
    name = argv[0]
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(f"{name}: no such command{meant}; there are {', '.join(VERBS)}")
    verb = VERBS[name]
    rest, fields = _without_fields(argv[1:]) if verb.in_checkout else (list(argv[1:]), [])
    found = vars(_parser(name, verb).parse_intermixed_args(_as_named(rest)))
    values = {name: value for name, value in found.items() if value is not None}
    if isinstance(values.get("workdir"), str):
        values["workdir"] = [values["workdir"]]
    return Call(name, values, fields)


def overview() -> str:
    """Returns a line for each verb, below one that says so."""
    rows = (f"  {name:9} {verb.description}" for name, verb in VERBS.items())
    return "\n".join(("commands (--help after one tells more):", *rows))


def check_checkout(name: str, folder: pathlib.Path) -> None:
    """Sees that a folder has what a verb needs that is not in the package.

    Raises:
        UsageError: where it has not.
    """
    if not all((folder / part).exists() for part in ("launch.py", "configs", "data")):
        raise UsageError(
            f"{name}: needs a checkout of restore_jax (its configs/ and data/) as the current "
            "folder, and TensorFlow: pip install '.[train]' there"
        )


class _Parser(argparse.ArgumentParser):
    """One whose refusals are single lines, as everywhere else here."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{' '.join(message.split())}; see {self.prog} --help")


def _parser(name: str, verb: _Verb) -> _Parser:
    parser = _Parser(
        prog=f"restore-jax {name}",
        usage=f"restore-jax {name} {verb.usage}".rstrip(),
        description=verb.description,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
    )
    for argument in verb.arguments:
        if argument.options:
            parser.add_argument(
                *argument.options,
                dest=argument.flag,
                metavar=argument.shown,
                help=argument.help,
                required=argument.required,
            )
        else:
            parser.add_argument(
                argument.flag,
                metavar=argument.shown,
                help=argument.help,
                nargs="+" if argument.many else None,
            )
    own = {argument.flag for argument in verb.arguments}
    for flag, text in flags.of_mode(name):
        if flag.name not in own:
            parser.add_argument(f"--{flag.name}", help=text, **_kind(flag))
    parser.add_argument("-h", "--help", action="help", help="Show this.")
    return parser


def _kind(flag: absl_flags.Flag) -> dict[str, Any]:
    if isinstance(flag, absl_flags.EnumFlag):
        return {"choices": flag.parser.enum_values}
    return _TYPES[flag.flag_type()]


def _without_fields(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes out what is the configuration's: only that file tells which fields there are."""
    rest, fields = [], []
    for argument in arguments:
        if argument.startswith(_FIELD):
            if "=" not in argument:
                raise UsageError(f"{argument}: give {_FIELD}FIELD=VALUE")
            fields.append(argument)
        else:
            rest.append(argument)
    return rest, fields


def _as_named(arguments: Sequence[str]) -> list[str]:
    """Writes options as flags are, `--dry-run` as `--dry_run`, and what follows `--` as paths.

    argparse of Python 3.11 loses a `--` among intermixed arguments.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = []
    for argument in arguments[:end]:
        if argument.startswith("--"):
            name, sign, value = argument[2:].partition("=")
            argument = f"--{name.replace('-', '_')}{sign}{value}"
        found.append(argument)
    return found + [f"./{path}" if path[:1] == "-" else path for path in arguments[end + 1 :]]
