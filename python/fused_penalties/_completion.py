"""Scripts with which a shell completes the command, made from its parser."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Iterator

from ._report import HEADINGS

SHELLS = ("bash", "zsh", "fish")

# File names are what is completed by default, where no word fits. Options are offered once a
# hyphen is there: before that, a file is what is wanted.
_BASH = """\
_fused_penalties() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" = 1 ]; then
        words={commands}
    else
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
        *)
            case "${{COMP_WORDS[1]}} $word" in
{options}
            esac
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _fused_penalties fused-penalties
"""


# For values that are no file's name, such as numbers. zsh has no compopt.
_NO_FILES = "compopt +o default 2>/dev/null"


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    if shell == "fish":
        return "\n".join([*_fish(parser), ""])
    text = _bash(parser)
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def _bash(parser: argparse.ArgumentParser) -> str:
    values, options = [], []
    for name, command in _commands(parser).items():
        for action in command._actions:
            own = "|".join(f"'{name} {option}'" for option in action.option_strings)
            if own and action.nargs != 0:
                words = shlex.quote(" ".join(_words(action)))
                no_files = "" if _is_file(action) else f"; {_NO_FILES}"
                values.append(f"        {own}) words={words}{no_files};;")
            elif not own and action.choices:
                options.append(f"            '{name} '*) words='{' '.join(action.choices)}';;")
        own = " ".join(option for action in command._actions for option in action.option_strings)
        options.insert(0, f"            '{name} -'*) words='{own}';;")
    commands = shlex.quote(" ".join([*_commands(parser), "--help", "--version"]))
    return _BASH.format(commands=commands, values="\n".join(values), options="\n".join(options))


def _fish(parser: argparse.ArgumentParser) -> Iterator[str]:
    def line(when: str, *words: str) -> str:
        return shlex.join(["complete", "-c", "fused-penalties", "-n", when, *words])

    for name, command in _commands(parser).items():
        yield line("__fish_use_subcommand", "-f", "-a", name)
        for action in command._actions:
            options = [word for option in action.option_strings for word in _fish_option(option)]
            words = " ".join(_words(action))
            choices = ["-x", "-a", words] if words else []
            kind = "-r" if _is_file(action) else "-x"
            value = choices or [kind] * (bool(options) and action.nargs != 0)
            if options or choices:
                about = ["-d", action.help] if action.help else []
                yield line(f"__fish_seen_subcommand_from {name}", *options, *value, *about)


def _words(action: argparse.Action) -> Iterable[str]:
    """What the value may be; of a list of columns, the first."""
    return HEADINGS if action.dest == "columns" else action.choices or ()


def _is_file(action: argparse.Action) -> bool:
    return action.type is None and not action.choices


def _fish_option(option: str) -> list[str]:
    return ["-l", option[2:]] if option.startswith("--") else ["-s", option[1:]]


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    found: dict[str, argparse.ArgumentParser] = commands.choices
    return found
