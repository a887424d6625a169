"""The commands of this package: `python -m landscape` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import cyclopts

from evolq import command_line
from evolq.errors import InputError

# Each is a module of this package; it is imported when it is asked for.
COMMANDS = {
    "scan": "Map the loss surface around a quantized network.",
    "compare": "Compare optimizers of scales from the same start, at equal cost.",
    "merge": "Make one scan of its parts, measured with `scan --part`.",
    "plot": "Draw a stored run for print.",
    "report": "Report stored runs in one HTML file.",
}


def main(tokens: Sequence[str]) -> None:
    """Run the command that the first token names, or list the commands.

    Raises:
        InputError: for a command that there is not.
    """
    name, *rest = tokens or ("--help",)
    if name in COMMANDS:
        import_module(f"landscape.{name}").COMMAND(rest)
    elif name in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        print("Usage: landscape COMMAND [OPTIONS]\n")
        for command, words in COMMANDS.items():
            print(f"  {command:<{width}}  {words}")
        print("\nlandscape COMMAND --help lists the options of a command;")
        print("landscape --install-completion lets the shell complete them.")
    elif name == "--version":
        print(command_line.version_words())
    elif name == "--install-completion":
        app = cyclopts.App(name="landscape")
        for command in COMMANDS:
            app.command(import_module(f"landscape.{command}").COMMAND.app(), name=command)
        app.register_install_completion_command()
        app(tokens)
    else:
        raise InputError(f"there is no command {name!r}; choose from {', '.join(COMMANDS)}")


def run() -> None:
    """Run the command line."""
    command_line.run(main)


if __name__ == "__main__":
    run()
