"""The command `ppo_fast`, and `python -m ppo_fast`: lists the programs, or runs one.

ppo_fast train --num-envs 64       like python -m ppo_fast.train --num-envs 64
ppo_fast train --help
ppo_fast --version
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path

PROGRAMS = ("train", "train_lstm", "evaluate", "plot", "compare", "export", "doctor", "replay")


def main() -> None:
    """Do what the words of the command line say, and exit with the program's status."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        _say(*_list())
        return
    if words[0] in ("--version", "-V", "version"):
        from ppo_fast.run import help_text

        _say(help_text.version())
        return
    name = words[0].replace("-", "_")
    if name not in PROGRAMS:
        near = difflib.get_close_matches(name, PROGRAMS, n=1)
        advice = f"did you mean {near[0]}?" if near else "ppo_fast lists them"
        from ppo_fast.run import streams

        streams.complain(f"error: no program {words[0]!r}; {advice}")
        raise SystemExit(2)
    del sys.argv[1]
    runpy.run_module(f"ppo_fast.{name}", run_name="__main__", alter_sys=True)


def _say(*lines: str) -> None:
    """Print as a program does, with its ends where nobody reads."""
    from ppo_fast.run import streams

    streams.prepare()
    try:
        streams.say(*lines)
        streams.flush()
    except streams.ReaderGone:
        raise SystemExit(141) from None
    except streams.OutputLost as problem:
        streams.complain(f"error: {problem}")
        raise SystemExit(1) from None


def _list() -> list[str]:
    """The programs with a line each, which is the first one of what they say of themselves."""
    lines = ["ppo_fast PROGRAM [--flag value ...], or python -m ppo_fast.PROGRAM", ""]
    for name in PROGRAMS:
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        lines.append(f"  {name:<12}{(ast.get_docstring(ast.parse(source)) or '').splitlines()[0]}")
    return [*lines, "", "ppo_fast PROGRAM --help shows what it takes; --version what is installed."]


if __name__ == "__main__":
    main()
