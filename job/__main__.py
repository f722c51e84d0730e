"""The commands by name, for an environment that the package is installed in.

  rankzero COMMAND [...]        such as  rankzero train --config my.yaml  or  rankzero watch runs/
``python -m job COMMAND`` is the same, and so is job/COMMAND.py of a checkout. On several processes of one machine:
  accelerate launch -m job.train [...]
Commands and settings are completed after  eval "$(rankzero --completion)"  in bash, or in zsh after bashcompinit.
Without a checkout, paths such as runs/ and data/ are those of the current directory.
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

COMMANDS = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def main() -> None:
    """Become the command that the first word names: its module runs as if it had been started by itself."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv[:2] = [name]
        words = ["train", "--check"] if name == "check" else [name]
        sys.argv[1:1] = words[1:]
        runpy.run_module(f"job.{words[0]}", run_name="__main__", alter_sys=True)
        return
    if name == "--completion":
        from job.config.plain import flat, to_dict
        from job.config.settings import Config

        words = [*COMMANDS, "--config", *(f"--{key}" for key in flat(to_dict(Config())))]
        print(f"complete -o default -W '{' '.join(words)}' rankzero")
        return
    if name in ("-h", "--help"):
        lines = [f"  {command:10}{_first_line(command)}" for command in COMMANDS]
        print(__doc__, "Commands, each with a --help of its own:", *lines, sep="\n")
        return
    print(f"error: there is no command {name!r}: use {', '.join(COMMANDS[:-1])} or {COMMANDS[-1]}", file=sys.stderr)
    sys.exit(2)


def _first_line(command: str) -> str:
    """What a command says of itself, read without importing what it needs."""
    text = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
