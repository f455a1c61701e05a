"""The table of commands, their arguments and help, and how a command is run."""

from __future__ import annotations

import os
import sys
import warnings
from argparse import REMAINDER, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

from persistedstate import StateError, __version__
from persistedstate_tools.messages import ERROR, INTERRUPTED, PIPE_CLOSED, Refusal, complain, complaint

_HELP = """\
FILE is a state file, or the address of a state on a server, such as redis://localhost:6379/0/importer.state.
PATH names a part of a state: keys and indexes, from the top.
  last_id   jobs[3].name   jobs.3.name   jobs[-1]   'a.b'[c]   "tab\\there"
A word is a key, or an index in a list. A key with dots, brackets or quotes stands in quotes, '' and \\" inside of them.
Keys that are no strings are found by what YAML shows: [3], [true], [null]. Where a mapping has both 3 and '3', .3 and
'3' are the string and [3] is the number; a new key is the same.
VALUE is YAML: 42, text, '42', [a, b], {name: a, done: false}; an empty one is null. In front of a VALUE that begins
with a dash write --. With --string, VALUE is text exactly as it stands, be it empty, 1.10, null or -x; it comes last.

exit codes: 0 done; 1 no (missing, damaged, different); 2 an error; 3 another process has the file;
above 128 a signal: 130 Ctrl-C (also in watch and log --follow), 143 SIGTERM, 141 nobody reads the output any more
"""


class _Command(NamedTuple):
    """A command: the file with its function `run_NAME`, its arguments in `_ARGUMENTS`, what it does, and an example."""

    file: str
    arguments: str
    does: str
    example: str

    def run(self, options: Namespace) -> int:
        """Run the command; what it needs is imported now, because a shell waits for each call."""
        code: int = getattr(import_module(f"persistedstate_tools.{self.file}"), f"run_{options.command}")(options)
        return code


_COMMANDS = {
    "show": _Command(
        "commands", "FILE [PATH] --json", "print the present state, or a part of it, as YAML with its comments",
        "persistedstate show example.state\n  persistedstate show --json example.state jobs | jq .",
    ),
    "get": _Command(
        "commands", "FILE PATH --json", "print one value, plain, for shell scripts; exit code 1 where it is missing",
        'last=$(persistedstate get example.state last_id)\n  persistedstate get example.state "jobs[0].name"',
    ),
    "set": _Command(
        "commands", "FILE PATH VALUE --string --wait", "set a value; the key may be new",
        'persistedstate set example.state last_id 41\n  persistedstate set example.state "jobs[0]" "{name: a}"\n'
        '  persistedstate set --string example.state version "$version"',
    ),
    "delete": _Command(
        "commands", "FILE PATH --wait", "remove a key, or an item of a list",
        'persistedstate delete example.state "jobs[0]"',
    ),
    "append": _Command(
        "commands", "FILE PATH VALUE --string --wait", "add an item to the end of a list",
        'persistedstate append example.state jobs "{name: b, done: false}"',
    ),
    "log": _Command(
        "following", "FILE --follow",
        "print the changes since the last vacuum; where a vacuum came between two looks, what differs",
        "persistedstate log example.state\n  persistedstate log --follow example.state | grep last_id",
    ),
    "watch": _Command(
        "screen", "FILE [PATH]", "draw the state again as it changes, and mark what changed just now; Ctrl-C ends",
        "persistedstate watch example.state\n  persistedstate watch example.state jobs",
    ),
    "check": _Command(
        "commands", "FILE", "tell every problem of a file, with line and column; exit code 1 if there is any",
        "persistedstate check example.state",
    ),
    "repair": _Command(
        "commands", "FILE --dry-run --wait",
        "make a damaged file (none on a server) open again; keep what can be kept, and the rest beside it",
        "persistedstate repair --dry-run example.state",
    ),
    "vacuum": _Command(
        "commands", "FILE --wait", "renew the snapshot, so that the file holds no records",
        "persistedstate vacuum example.state",
    ),
    "diff": _Command(
        "differences", "FILE OTHER", "tell what differs between two states, by path; exit code 1 if anything does",
        "persistedstate diff yesterday.state today.state",
    ),
    "edit": _Command(
        "editing", "FILE", "edit the present state in $VISUAL or $EDITOR; merge that with what scripts do meanwhile",
        "persistedstate edit example.state\n  persistedstate edit redis://localhost:6379/0/importer.state",
    ),
    "copy": _Command(
        "copying", "SOURCE TARGET --force --wait", "copy a state, with its comments, between files and servers",
        "persistedstate copy example.state redis://localhost:6379/0/example.state",
    ),
    "demo": _Command(
        "demo", "", "run a script in a temporary folder, stop it twice, and see it go on",
        "persistedstate demo",
    ),
    "completion": _Command(
        "completion", "SHELL [WORD]", "print what makes TAB complete commands, options, files and paths in a shell",
        "source <(persistedstate completion bash)    in ~/.bashrc\n"
        "  source <(persistedstate completion zsh)     in ~/.zshrc, below compinit\n"
        "  persistedstate completion fish | source     in ~/.config/fish/config.fish",
    ),
}  # fmt: skip


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not seconds >= 0:
        raise ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "FILE": {"metavar": "FILE", "help": "a state file, or the address of a state on a server"},
    "OTHER": {"metavar": "OTHER", "help": "another one"},
    "SOURCE": {"metavar": "SOURCE", "help": "a state file, or the address of a state on a server"},
    "TARGET": {"metavar": "TARGET", "help": "another one, which must hold nothing"},
    "PATH": {"metavar": "PATH", "help": "what is meant in it, such as jobs[3].name; persistedstate --help tells more"},
    "[PATH]": {
        "metavar": "PATH",
        "nargs": "?",
        "help": "a part of it, such as jobs[3].name; persistedstate --help tells more",
    },
    "SHELL": {"metavar": "SHELL", "choices": ["bash", "zsh", "fish"], "help": "bash, zsh or fish"},
    "[WORD]": {
        "metavar": "WORD",
        "nargs": REMAINDER,
        "help": "what was typed so far: print what may follow; this is what such a script asks",
    },
    "VALUE": {"metavar": "VALUE", "help": "YAML: 42, text, [a, b], {name: a}; an empty one is null"},
    "--string": {"action": "store_true", "help": "VALUE is text exactly as it stands, no YAML; it comes last"},
    "--json": {"action": "store_true", "help": "as JSON; what it cannot say becomes a string"},
    "--wait": {
        "type": _seconds,
        "default": 0.0,
        "metavar": "SECONDS",
        "help": "how long to wait for another process that has the file (default: not at all)",
    },
    "--follow": {"action": "store_true", "help": "go on with what changes from now on, until Ctrl-C"},
    "--force": {"action": "store_true", "help": "replace what TARGET holds; that is lost"},
    "--dry-run": {"action": "store_true", "help": "only tell what would be done"},
}


def _parser(words: Sequence[str] = ()) -> ArgumentParser:
    """Return what parses these words, or any; to know the arguments of all commands costs 5 ms more."""

    class Parser(ArgumentParser):
        def error(self, message: str) -> NoReturn:
            prog, (problem, _, extra) = self.prog, message.partition("unrecognized arguments: ")
            if not problem and words and words[0] in _COMMANDS:  # it is told by the parser of all commands
                prog += f" {words[0]}"
                message += "; a VALUE with blanks needs quotes" * ("VALUE" in command.arguments and extra[:1] != "-")
            self.exit(ERROR, f"persistedstate: {message}; see {prog} --help\n")

    def layout(prog: str) -> RawDescriptionHelpFormatter:
        return RawDescriptionHelpFormatter(prog, width=100)  # to ask for the terminal's costs 5 ms each time

    # What is short for --string would come too late.
    manner: dict[str, Any] = {"formatter_class": layout, "allow_abbrev": False}
    does = "Look at state files, change them, watch them, mend them."
    parser = Parser(prog="persistedstate", description=does, epilog=_HELP, **manner)
    parser.add_argument("--version", action="version", version=f"persistedstate {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, prog="persistedstate")
    for name in words[:1] if words and words[0] in _COMMANDS else _COMMANDS:
        command = _COMMANDS[name]
        example = f"example:\n  {command.example}"
        added = commands.add_parser(name, help=command.does, description=command.does, epilog=example, **manner)
        for argument in command.arguments.split():
            action = added.add_argument(argument.strip("[]").lower(), **_ARGUMENTS[argument])
            action.required = argument.isalpha()  # argparse takes [WORD] for required
    return parser


def _options(words: Sequence[str]) -> Namespace:
    """Parse the words; behind --string, the last one is VALUE, also where it looks like an option."""
    is_text = "--string" in words[1:-1] and words[-1].startswith("-") and words[0] != "completion"
    options = _parser(words).parse_args([*words[:-1], "-"] if is_text else words)
    if is_text:
        options.value = words[-1]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    _prepare_output()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", RuntimeWarning)  # the module's own
            warnings.showwarning = lambda message, *_: complain(str(message))
            code = _run(arguments)
        sys.stdout.flush()
    except OSError as error:  # not everything could be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        complain(f"standard output: {error.strerror}")
        return ERROR
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        words = sys.argv[1:] if arguments is None else arguments
        if not words:
            _parser().print_help(sys.stderr)
            return ERROR
        options = _options(words)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        return _COMMANDS[options.command].run(options)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    except (Refusal, StateError, OSError, ModuleNotFoundError) as error:
        sys.stdout.flush()  # raises if it is that which failed
        places = [place for name in ("file", "other", "source", "target") if (place := getattr(options, name, ""))]
        text, code = complaint(error, next(iter(places), ""))
        for name in places:
            text = text.replace(os.path.realpath(name), name)
        complain(text)
        return code


def _prepare_output() -> None:
    """See to it that any text can be printed, whatever the locale, and that line ends are those of the state."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process lives
        with suppress(AttributeError):  # a test's
            encoding = None if getattr(sys, name).isatty() or "PYTHONIOENCODING" in os.environ else "utf-8"
            getattr(sys, name).reconfigure(encoding=encoding, errors="backslashreplace", newline="\n")
