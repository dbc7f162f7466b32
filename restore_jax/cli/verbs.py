"""The commands of `restore-jax`: their arguments, parsed by argparse into flags of launch.py.

An option takes its name, help and type from the flag of launch.py that it stands for, so that
`flags` remains the only table of options. Like `flags`, this module is light.
"""

import argparse
import difflib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from absl import flags as absl_flags

from restore_jax.cli import flags
from restore_jax.errors import UsageError


class _Argument(NamedTuple):
    flag: str  # of launch.py
    metavar: str
    help: str
    options: tuple[str, ...] = ()  # empty for a positional argument
    many: bool = False
    required: bool = False


class _Verb(NamedTuple):
    usage: str
    description: str
    arguments: tuple[_Argument, ...] = ()
    # Run by the launch.py of a checkout, which has the configurations and the data.
    in_checkout: bool = False


_MODEL_HELP = "A shipped model, weights file or run's folder."
_MODEL_TO_READ = _Argument("workdir", "MODEL", _MODEL_HELP)
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
            _Argument("workdir", "NAME", _MODEL_HELP, ("-m", "--model")),
        ),
    ),
    "serve": _Verb(
        "[-m NAME] [options]",
        "Opens a page, and an HTTP endpoint, that restore photographs.",
        (_Argument("workdir", "NAME", _MODEL_HELP, ("-m", "--model")),),
    ),
    "models": _Verb("", "Lists the models that come with the package, the default first."),
    "export": _Verb(
        "MODEL -o FILE.onnx|FILE.safetensors|DIR [options]",
        "Writes a model as ONNX, weights, or a folder: StableHLO or a pack.",
        (_MODEL_TO_READ, _OUTPUT._replace(metavar="FILE", required=True)),
    ),
    "train": _Verb(
        "CONFIG [-o DIR] [--config.FIELD=VALUE] [options]",
        "Trains a run or resumes it, and evaluates its best checkpoint.",
        (_CONFIG, _WORKDIR),
        in_checkout=True,
    ),
    "evaluate": _Verb(
        "MODEL [--config=CONFIG] [options]",
        "Evaluates a model: figures, pictures and an HTML report.",
        (_MODEL_TO_READ, _DATA, _OUTPUT),
        in_checkout=True,
    ),
    "compare": _Verb(
        "MODEL... [--config=CONFIG] [options]",
        "Compares several models on the same images.",
        (_MODEL_TO_READ._replace(many=True), _DATA, _OUTPUT),
        in_checkout=True,
    ),
    "calibrate": _Verb(
        "CONFIG --config.data.root=DIR -o FILE [options]",
        "Fits the law of a camera's noise and blur to its photographs.",
        (_CONFIG, _OUTPUT._replace(metavar="FILE", required=True)),
        in_checkout=True,
    ),
    "trust": _Verb(
        "MODEL [--config=CONFIG] [-o FILE.safetensors]",
        "Trains and calibrates a map of how wrong each pixel may be.",
        (_MODEL_TO_READ, _DATA, _OUTPUT._replace(metavar="FILE")),
        in_checkout=True,
    ),
    "import": _Verb(
        "CONFIG WEIGHTS [-o DIR] [--config.FIELD=VALUE]",
        "Creates a run's folder from weights published for PyTorch.",
        (
            _CONFIG,
            _Argument("weights", "WEIGHTS", "A .pth, .safetensors or .npz file."),
            _WORKDIR,
        ),
        in_checkout=True,
    ),
}

# Options of `add_argument` for a flag, by the name that absl gives its type.
_TYPES: dict[str, dict[str, Any]] = {
    "bool": {"action": "store_true", "default": None},
    "int": {"type": int, "metavar": "N"},
    "float": {"type": float, "metavar": "X"},
    "string": {"metavar": "TEXT"},
    "multi string": {"action": "append", "metavar": "TEXT"},
}
# Prefix of an argument that sets a field of the configuration, as for launch.py.
_FIELD = "--config."


class Call(NamedTuple):
    """A parsed command.

    Attributes:
        verb: the name of the command, a key of `VERBS`.
        values: values of the flags of launch.py that were given, by name.
        fields: changes to the configuration, each `--config.FIELD=VALUE`.
    """

    verb: str
    values: dict[str, Any]
    fields: list[str]

    def as_flags(self) -> list[str]:
        """Returns the equivalent arguments of launch.py."""
        found = [f"--mode={self.verb}"]
        for name, value in self.values.items():
            if value is True:
                found.append(f"--{name}")
            else:
                several = value if isinstance(value, list) else [value]
                found.extend(f"--{name}={one}" for one in several)
        return found + self.fields


def parse(argv: Sequence[str]) -> Call:
    """Parses a command.

    Args:
        argv: the verb and its arguments.

    Raises:
        UsageError: for any mistake, in one line.
        SystemExit: after help was asked for and printed.
    """
    name = argv[0]
    if name not in VERBS:
        known = ", ".join(VERBS)
        raise UsageError(
            f"{name}: no such command{_meant(name, VERBS)}; the commands are {known}"
        )
    verb = VERBS[name]
    rest, fields = _split_off_fields(argv[1:]) if verb.in_checkout else (list(argv[1:]), [])
    found = vars(_parser(name, verb).parse_intermixed_args(_normalised(rest)))
    values = {name: value for name, value in found.items() if value is not None}
    for argument in verb.arguments:
        value = values.get(argument.flag)
        if value == "" or (isinstance(value, list) and "" in value):
            raise UsageError(
                f"{name}: {'/'.join(argument.options) or argument.metavar} is empty"
            )
    if isinstance(values.get("workdir"), str):
        values["workdir"] = [values["workdir"]]
    return Call(name, values, fields)


def overview() -> str:
    """Returns a list of the commands under a heading, one per line."""
    rows = (f"  {name:9} {verb.description}" for name, verb in VERBS.items())
    return "\n".join(("commands (restore-jax COMMAND --help shows the options):", *rows))


def check_checkout(name: str, folder: pathlib.Path) -> None:
    """Checks that a folder is a checkout, which has the files that the package lacks.

    Args:
        name: the command that needs the checkout, for the message.
        folder: the folder.

    Raises:
        UsageError: if it is not a checkout.
    """
    if not all((folder / part).exists() for part in ("launch.py", "configs", "data")):
        raise UsageError(
            f"{name}: needs a checkout of restore_jax (with configs/ and data/) as the current "
            "folder, and TensorFlow; install it there with pip install '.[train]'"
        )


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


class _Parser(argparse.ArgumentParser):
    """A parser that raises a one-line `UsageError` instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        _, unknown, given = message.partition("unrecognized arguments: ")
        if unknown and given.startswith("--"):
            option = given.split()[0].partition("=")[0]
            message += _meant(option, self._option_string_actions)
        raise UsageError(f"{message}; see {self.prog} --help")


def _parser(name: str, verb: _Verb) -> _Parser:
    parser = _Parser(
        prog=f"restore-jax {name}",
        usage=f"restore-jax {name} {verb.usage}".rstrip(),
        description=verb.description,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
    )
    # One list for both kinds of arguments, since the help has to fit a screen.
    group = parser.add_argument_group()
    for argument in verb.arguments:
        if argument.options:
            group.add_argument(
                *argument.options,
                dest=argument.flag,
                metavar=argument.metavar,
                help=argument.help,
                required=argument.required,
            )
        else:
            group.add_argument(
                argument.flag,
                metavar=argument.metavar,
                help=argument.help,
                nargs="+" if argument.many else None,
            )
    own = {argument.flag for argument in verb.arguments}
    for flag, text in flags.of_mode(name):
        if flag.name not in own:
            group.add_argument(f"--{flag.name}", help=text, **_options_of(flag))
            if flag.flag_type() == "bool":
                _add_spelled_out(group, flag.name)
    # Not listed, to save a line: whoever reads the list has found it.
    group.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    return parser


def _add_spelled_out(group: argparse._ArgumentGroup, name: str) -> None:
    """Accepts `--NAME=true` and `--NAME=false` as well, which argparse has no way to define."""
    for value in ("true", "false"):
        group.add_argument(
            # A whole argument that is an option's name counts before what follows a "=".
            f"--{name}={value}",
            dest=name,
            action=f"store_{value}",
            default=None,
            help=argparse.SUPPRESS,
        )


def _options_of(flag: absl_flags.Flag) -> dict[str, Any]:
    if isinstance(flag, absl_flags.EnumFlag):
        return {"choices": flag.parser.enum_values}
    return _TYPES[flag.flag_type()]


def _split_off_fields(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates changes to the configuration: only its file knows which fields exist."""
    rest, fields = [], []
    for argument in arguments:
        if argument.startswith(_FIELD):
            if "=" not in argument:
                raise UsageError(f"{argument}: give {_FIELD}FIELD=VALUE")
            fields.append(argument)
        else:
            rest.append(argument)
    return rest, fields


def _normalised(arguments: Sequence[str]) -> list[str]:
    """Spells options like flags (`--dry-run` as `--dry_run`) and resolves `--`.

    In Python 3.11, `parse_intermixed_args` loses a `--`; arguments after it that start with "-"
    therefore become paths, "./-…".
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = []
    for argument in arguments[:end]:
        if argument.startswith("--"):
            name, sign, value = argument[2:].partition("=")
            argument = f"--{name.replace('-', '_')}{sign}{value}"
        found.append(argument)
    return found + [f"./{path}" if path[:1] == "-" else path for path in arguments[end + 1 :]]
