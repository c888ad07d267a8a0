"""The docs are true: their commands and programs run, their links lead to what they name, no flag is left out.

`python tests/test_docs.py` puts the tables of flags in docs/ right again. A link to code names what it leads to, never
a line: [`def gae`](../ppo_fast/algorithm/ppo.py), [`class Agent`](../ppo_fast/train.py), a method as
[`Engine.function`](../ppo_fast/engine/engine.py), a constant as [`CHUNK`](../ppo_fast/engine/rollouts.py); a file as a
whole by its path, [ppo_fast/train.py](../ppo_fast/train.py).

In docs/ and README, a ```bash block is run here, with small sizes; a ```text block is not, since it needs an account, a
scheduler or several machines. A ```python block is run as it stands.
"""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppo_fast.engine import recorded
from ppo_fast.engine.engine import Engine
from ppo_fast.run import cli, health
from ppo_fast.train import Args

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
# [words](../ppo_fast/file.py), with whatever may follow the file
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([\w/]+\.py)([^)]*)\)")
TABLE = re.compile(r"(<!-- flags of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# What makes a training command take a moment. A page may ask for less, never for more.
SMALL = {
    **{"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "eval_episodes": 2, "total_timesteps": 256},
    **{"compile": "off", "quiet": True, "cuda": False},
}
LIMITS = {"episodes": 2, "save_interval": 2}
SLOW = ("torchrun", "--verify", "--profile")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The commands in a page's bash blocks, without comments, continued lines joined; not README's installation."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip() and not line.startswith("pip ")]


# Each once, and named by the page that has it first.
WHERE = {line: page.stem for page in [*PAGES[::-1], ROOT / "README.md"] for line in commands(page)}
COMMANDS = [
    pytest.param(line, marks=pytest.mark.thorough if any(word in line for word in SLOW) else (), id=f"{page}: {line}")
    for line, page in WHERE.items()
]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands are run, as a user's folder fills up: training comes first."""
    return tmp_path_factory.mktemp("docs")


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(place))
    return place


@pytest.fixture
def trained(here: Path) -> Path:
    """Two runs that an evaluation, a picture or a comparison can find."""
    for seed in (1, 2):
        if not list(here.glob(f"runs/CartPole-v1__train__{seed}__*")):
            call(f"python -m ppo_fast.train --seed {seed}")
    return here


def call(line: str) -> None:
    """Run one command in this process, which spares it the start of Python and the import of torch."""
    words = [part for word in shlex.split(line, comments=True) for part in globbed(word)]
    assert words[:2] == ["python", "-m"], f"not a command of ours: {line}"
    program = importlib.import_module(words[2])
    args = cli.parse(program.Args, words[3:], "")
    small = SMALL if words[2].startswith("ppo_fast.train") else LIMITS
    for name, value in {**small, **LIMITS}.items():
        if hasattr(args, name):
            setattr(args, name, value)
    if hasattr(args, "flags_given"):
        args.flags_given |= {name for name in small if hasattr(args, name)}  # or a preset would set them
    main = next(
        getattr(program, name) for name in ("train", words[2].rpartition(".")[2], "main") if hasattr(program, name)
    )
    main(args)


def globbed(word: str) -> list[str]:
    """What a shell makes of a word."""
    found = sorted(str(path) for path in Path().glob(word)) if "*" in word else []
    return found or [word]


# The compiler's own warnings.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("line", COMMANDS)
def test_command_runs(line: str, trained: Path) -> None:
    if not line.startswith("torchrun"):
        call(line)
        return
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    command = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line, comments=True)[1:], *small]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


PROGRAMS = [
    pytest.param(text, id=f"{page.stem}-{index}") for page in PAGES for index, text in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("text", PROGRAMS)
def test_program_runs(text: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(trained)
    os.utime(max(trained.glob("runs/CartPole-v1__train__1__*/policy.safetensors")))  # so that it is the "latest"
    name = re.match(r"# (\w+)\.py", text)  # the next program may import it by this name
    path = trained / f"{name[1] if name else 'program'}.py"
    path.write_text(text)
    importlib.import_module(name[1]) if name else runpy.run_path(str(path), run_name="__main__")


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) > 20 and len(PROGRAMS) >= 2


def names_in(source: str) -> set[str]:
    """What a module defines, as links name it: "def f", "class C", "C.method", "CONSTANT"."""
    return set(defined(ast.parse(source), ""))


def defined(tree: ast.Module | ast.ClassDef, owner: str) -> Iterator[str]:
    """The names that the body of a module or, with `owner` "C.", of a class C defines."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield f"{owner}{node.name}" if owner else f"def {node.name}"
        elif isinstance(node, ast.ClassDef):
            yield f"class {node.name}"
            yield from defined(node, f"{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (f"{owner}{target.id}" for target in targets if isinstance(target, ast.Name))


def wrong_links(text: str) -> list[str]:
    """Links of a page to code that do not lead to what they name."""
    wrong = []
    for words, path, rest in LINK.findall(text):
        if rest:
            wrong.append(f"{path}{rest}: a link names what it leads to, no line")
        elif not (ROOT / path).is_file():
            wrong.append(f"{path} is not there")
        elif words != path and words.strip("`") not in names_in((ROOT / path).read_text()):
            wrong.append(f"{path} defines no {words}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_what_they_name(page: Path) -> None:
    assert not wrong_links(page.read_text())


def test_a_wrong_link_is_found() -> None:
    for right in ("`class Agent`", "`Agent.act`", "`def collect`", "ppo_fast/train.py"):
        assert not wrong_links(f"[{right}](../ppo_fast/train.py)"), right
    for wrong in ("`class Agents`", "`Agent.collect`", "`def act`", "`collect`", "the program"):
        assert wrong_links(f"[{wrong}](../ppo_fast/train.py)"), wrong
    assert wrong_links("[`class Agent`](../ppo_fast/train.py#L100)")
    assert wrong_links("[`class Agent`](../ppo_fast/gone.py)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_links_to_are_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [page.name for page in PAGES if f"(docs/{page.name})" not in readme]


def test_the_engine_has_the_methods_that_its_page_shows() -> None:
    text = (ROOT / "docs" / "engine.md").read_text()
    shown = dict(re.findall(r"`engine\.(\w+)\(([^`]*)\)`", text))
    offered = {}
    for name, method in inspect.getmembers(Engine, inspect.isfunction):
        parameters = list(inspect.signature(method).parameters.values())
        offered[name] = ", ".join(str(parameter).partition(":")[0] for parameter in parameters[1:])
    assert shown == {name: words for name, words in offered.items() if not name.startswith("_")}


@pytest.mark.parametrize("page", ["engine", "environments"])
def test_the_calls_at_which_replays_are_compared(page: str) -> None:
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text().split())
    assert set(re.findall(r"(\d*00)th\b", text.replace(",", ""))) == {str(count) for count in recorded.COMPARED}


def flag_table(kind: type) -> str:
    """The flags that a dataclass adds, with defaults and the docstrings under them, as Markdown."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    defaults |= {name: "" for name, value in defaults.items() if value is dataclasses.MISSING}  # an empty dictionary
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
            if field.target.id not in defaults:  # a ClassVar is no flag
                continue
            value = defaults[field.target.id]
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            name, meaning = field.target.id.replace("_", "-"), str(text.value.value).replace("|", "\\|")
            rows.append(f"| `--{name}` | {f'`{shown}`' if shown else ''} | {meaning} |")
    return "\n".join(rows) + "\n"


def with_flag_tables(text: str) -> str:
    """A page with its tables of flags as the programs have them now."""
    kinds = {"train": Args, "runs": cli.RunFlags}
    return TABLE.sub(lambda found: found[1] + flag_table(kinds[found[2]]) + found[3], text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_of_flags_are_those_of_the_program(page: Path) -> None:
    assert with_flag_tables(page.read_text()) == page.read_text(), "run `python tests/test_docs.py`"


def test_every_metric_is_explained(trained: Path) -> None:
    text = (ROOT / "docs" / "train.md").read_text()
    rows = [line for path in trained.glob("runs/*/metrics.jsonl") for line in path.read_text().splitlines()]
    names = {name for row in rows for name in re.findall(r'"([a-zA-Z_/]+)":', row)}
    assert {"global_step", "losses/approx_kl", "health/entropy"} <= names
    own = {name for name in names if name.startswith("my/")}  # of an example's callback
    assert not [name for name in names - own if f"`{name}`" not in text]


def test_diagnostics_have_the_thresholds_that_are_warned_of() -> None:
    text = (ROOT / "docs" / "diagnostics.md").read_text()
    for rule in health.RULES:
        threshold = f"{rule.threshold:.0%}".replace("%", " %") if rule.key == "entropy" else f"{rule.threshold:g}"
        assert f"`{rule.metric}`" in text
        assert re.search(rf"\b{rule.bad} {re.escape(threshold)}", text), f"{rule.bad} {threshold}"


def test_exit_statuses_are_those_of_the_command_line() -> None:
    text = (ROOT / "docs" / "many-machines.md").read_text()
    statuses = re.findall(r"^\| (\d+) +\|", cli.__doc__ or "", re.MULTILINE)
    assert statuses and not [status for status in statuses if f"| {status} |" not in text]


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_flag_tables(path.read_text()))
