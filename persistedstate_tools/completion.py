"""Completion for shells: each TAB asks `persistedstate completion SHELL WORD...` what may follow the words so far."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from persistedstate import _content
from persistedstate_tools.command_line import _ARGUMENTS, _COMMANDS
from persistedstate_tools.excerpts import read_state
from persistedstate_tools.messages import shown_line
from persistedstate_tools.paths import path_text

#: What is printed where the names of files are wanted: shells know best how to complete these.
_FILES = ":files"
_HELP = ("--help", "show what there is")

#: They look for `persistedstate` on the PATH only: a TAB shall not run what lies in a strange folder.
_SCRIPTS = {
    "bash": f"""\
_persistedstate() {{
    local found
    COMPREPLY=()
    while IFS= read -r found; do
        [ "$found" != {_FILES} ] || return 0  # the default, see below
        case ${{COMP_WORDS[COMP_CWORD]}} in  # what the shell would take for more than text is left out, or quoted
            \\"*) [[ $found != *[\\"\\$\\`\\\\!]* ]] || continue ;;
            \\'*) [[ $found != *\\'* ]] || continue ;;
            *) printf -v found %q "$found" ;;
        esac
        COMPREPLY+=("$found")
    done < <(persistedstate completion bash "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null)
    compopt +o default +o bashdefault 2>/dev/null
}}
complete -o bashdefault -o default -F _persistedstate persistedstate
""",
    "zsh": f"""\
#compdef persistedstate
_persistedstate() {{
    local -a found
    found=("${{(@f)$(persistedstate completion zsh "${{(@)words[2,CURRENT]}}" 2>/dev/null)}}")
    case $found[1] in
        "") ;;
        {_FILES}) _files ;;
        -*) _describe -o option found ;;
        *) _describe word found ;;
    esac
}}
if [ "$funcstack[1]" = _persistedstate ]; then _persistedstate "$@"; else compdef _persistedstate persistedstate; fi
""",
    "fish": f"""\
function __persistedstate
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -e words[1]
    set -l found (persistedstate completion fish $words "$current" 2>/dev/null)
    if test "$found[1]" = {_FILES}
        __fish_complete_path "$current"
    else
        printf '%s\\n' $found
    end
end
complete -c persistedstate -f -a '(__persistedstate)'
""",
}


def _following(words: list[str], current: str) -> Iterator[tuple[str, str]]:
    """Yield what may stand in the place of the current word, behind the others, with a description."""
    command = _COMMANDS.get(words[0]) if words else None
    if not words:
        yield from ((name, command.does) for name, command in _COMMANDS.items())
        yield from (("--version", "print the version"), _HELP)
    elif command is not None and words[-1] != "--wait":
        arguments = [argument.strip("[]") for argument in command.arguments.split()]
        if current.startswith("-") and "--" not in words:
            yield from ((name, _ARGUMENTS[name]["help"]) for name in arguments if name.startswith("-"))
            yield _HELP
        else:
            yield from _places(arguments, words[1:], current)


def _places(arguments: list[str], words: list[str], current: str) -> Iterator[tuple[str, str]]:
    """Yield what may stand in the place of an argument that is no option."""
    names = [name for name in arguments if not name.startswith("-")]
    given = [word for word, before in zip(words, ["", *words], strict=False) if word[:1] != "-" and before != "--wait"]
    wanted = names[len(given)] if len(given) < len(names) else ""
    if wanted in ("FILE", "OTHER", "SOURCE", "TARGET"):
        yield _FILES, ""
    elif wanted == "PATH":
        with suppress(Exception):  # what is wrong with the file is told when the command runs
            yield from _parts(_content(read_state(os.path.expanduser(given[0]))[1]), current, "")
    elif wanted == "SHELL":
        yield from ((shell, "") for shell in _SCRIPTS)


def _parts(items: Any, current: str, above: str) -> Iterator[tuple[str, str]]:
    """Yield the paths that begin with the current word, one step further than that."""
    is_dotted = type(items) is list and current[len(above) : len(above) + 1] != "["  # that needs no quotes in a shell
    for key, content in enumerate(items) if type(items) is list else items.items():
        step = f".{key}" if is_dotted else path_text(["x", key])[1:]
        path, value = (above + step if above else path_text([key])), _content(content)
        if type(value) not in (dict, list):
            yield path, shown_line(str(value))
        elif current.startswith((f"{path}.", f"{path}[")):
            yield from _parts(value, current, path)
        else:
            yield path, ""
            yield f"{path}.", "what is in it"  # the two keep a shell from ending the word with a blank


def _unquoted(word: str) -> str:
    """Return what a shell makes of a word, but for what it would have to run or look up."""
    for end in ("", '"', "'"):  # a quote may be open
        with suppress(ValueError):
            return " ".join(shlex.split(word + end))  # fish has taken the quotes off, but for the current word
    return word


def _joined(words: list[str]) -> list[str]:
    """Put together the addresses that bash cuts at their colons."""
    found: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if found and (word == ":" or (before == ":" and "://" in f"{found[-1]}{word}")):
            found[-1] += word
        else:
            found.append(word)
    return found


def run_completion(options: Namespace) -> int:
    if not options.word:
        print(_SCRIPTS[options.shell], end="")
        return 0
    *words, current = map(_unquoted, _joined(options.word) if options.shell == "bash" else options.word)
    for text, does in _following(words, current):
        if text == _FILES or text.startswith(current):
            print(_line(text, does, options.shell))
    return 0


def _line(text: str, does: str, shell: str) -> str:
    """Return a line as a shell wants it: with its description, if it can show that."""
    if shell == "zsh" and text != _FILES:
        text = text.replace("\\", "\\\\").replace(":", "\\:")
    return text if not does or shell == "bash" else f"{text}{':' if shell == 'zsh' else chr(9)}{does}"
