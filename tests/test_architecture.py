"""The repository keeps the house rules of house_rules.py, and each rule is able to fail.

A rule runs over the repository, where it must find nothing, and over planted violations, where it must find something:
a rule that can't fail guards nothing.
"""

from pathlib import Path

import pytest
from house_rules import (
    FOLDERS,
    Rule,
    arrows_go_one_way,
    circles,
    heavy_imports_are_lazy,
    nesting_is_shallow,
    no_drawer_for_everything,
    no_global,
    no_work_at_import,
    nothing_imports_a_program,
    only_its_twin_imports_wandb,
    public_things_say_what_they_are,
    readme_tree,
    tree_violations,
    uncommented_dependencies,
)

ROOT = Path(__file__).resolve().parent.parent

PACKAGE_ONLY = ("ppo_fast",)
OUR_CODE = ("ppo_fast", "benchmarks")
# rule: the folders that it holds in
RULES: dict[Rule, tuple[str, ...]] = {
    arrows_go_one_way: PACKAGE_ONLY,
    nothing_imports_a_program: PACKAGE_ONLY,
    only_its_twin_imports_wandb: OUR_CODE,
    heavy_imports_are_lazy: OUR_CODE,
    no_global: FOLDERS,
    no_drawer_for_everything: FOLDERS,
    no_work_at_import: OUR_CODE,
    nesting_is_shallow: FOLDERS,
    public_things_say_what_they_are: OUR_CODE,
}

DEEP = "def f():\n for x in y:\n  if x:\n   with x:\n    while x:\n     x()\n"
# rule: sources (with their module's name) that it must find fault with
PLANTED: dict[Rule, list[tuple[str, str]]] = {
    arrows_go_one_way: [
        ("ppo_fast.algorithm.ppo", "from ppo_fast.engine.flat import views"),
        ("ppo_fast.algorithm.ppo", "from ppo_fast.run import cli"),
        ("ppo_fast.algorithm.ppo", "import ppo_fast.envs.host as h"),
        ("ppo_fast.algorithm.ppo", "from ..envs import host"),
        ("ppo_fast.algorithm.ppo", "def f():\n    from ..engine.flat import views\n"),
        ("ppo_fast.algorithm.ppo", "importlib.import_module('ppo_fast.engine.flat')"),
        ("ppo_fast.envs.host", "from ppo_fast.algorithm import ppo"),
        ("ppo_fast.pictures.panels", "from ppo_fast.run import health"),
        ("ppo_fast.checkup.walk", "from ppo_fast.run import cli"),
        ("ppo_fast.run.session", "from ppo_fast.checkup import walk"),
        ("ppo_fast.engine.verify", "from ppo_fast.run import console"),
        ("ppo_fast.engine.verify", "from ppo_fast import train"),
        ("ppo_fast.names", "from ppo_fast.run import cli"),
        ("ppo_fast.names", "from ppo_fast import jsonl"),
        ("ppo_fast.__init__", "from .algorithm.ppo import gae"),
    ],
    nothing_imports_a_program: [
        ("ppo_fast.algorithm.ppo", "from ppo_fast.train import Args"),
        ("ppo_fast.train_lstm", "from ppo_fast import train"),
        ("ppo_fast.evaluate", "from .train_atari import Agent"),
    ],
    only_its_twin_imports_wandb: [
        ("ppo_fast.train", "def f():\n    import wandb\n"),
        ("ppo_fast.run.console", "from wandb.sdk import x"),
    ],
    heavy_imports_are_lazy: [
        ("ppo_fast.run.tracking", "import wandb"),
        ("ppo_fast.run.tracking", "try:\n    from matplotlib import pyplot\nexcept ImportError:\n    pass\n"),
    ],
    no_global: [("ppo_fast.algorithm.ppo", "def f():\n    global x\n    x = 1\n")],
    no_drawer_for_everything: [("ppo_fast.utils", ""), ("ppo_fast.envs.common", ""), ("tests.utils.x", "")],
    no_work_at_import: [
        ("ppo_fast.algorithm.ppo", "print(1)"),
        ("ppo_fast.algorithm.ppo", "torch.manual_seed(1)"),
        ("ppo_fast.algorithm.ppo", "ZERO = torch.zeros(3)"),
        ("ppo_fast.algorithm.ppo", "for x in y:\n    x()\n"),
        ("ppo_fast.algorithm.ppo", "try:\n    import x\nexcept ImportError:\n    x = None\n"),
        ("ppo_fast.algorithm.ppo", "if torch.cuda.is_available():\n    device = 'cuda'\n"),
    ],
    nesting_is_shallow: [
        ("ppo_fast.algorithm.ppo", DEEP),
        ("ppo_fast.algorithm.ppo", DEEP.replace("def", "async def").replace("for", "async for")),
        ("ppo_fast.algorithm.ppo", "def f():\n if a:\n  try:\n   x()\n  except E:\n   if b:\n    if c:\n     x()\n"),
        ("ppo_fast.algorithm.ppo", "def f():\n if a:\n  pass\n elif b:\n  if c:\n   if d:\n    if e:\n     x()\n"),
        ("ppo_fast.algorithm.ppo", "def f():\n if a:\n  if b:\n   match c:\n    case 1:\n     if d:\n      x()\n"),
    ],
    public_things_say_what_they_are: [
        ("ppo_fast.algorithm.ppo", "x = 1"),
        ("ppo_fast.algorithm.ppo", '"""Doc."""\ndef f(): ...'),
        ("ppo_fast.algorithm.ppo", '"""Doc."""\nclass A: ...'),
        ("ppo_fast.algorithm.ppo", '"""Doc."""\nclass A:\n    """Doc."""\n    def f(self): ...'),
    ],
}
# rule: sources that it must accept
ACCEPTED: dict[Rule, list[tuple[str, str]]] = {
    arrows_go_one_way: [
        ("ppo_fast.train", "from ppo_fast.algorithm import ppo\nfrom ppo_fast.run import cli"),
        ("ppo_fast.run.session", "from ppo_fast.engine import plan\nfrom ppo_fast.pictures import panels"),
        ("ppo_fast.envs.host", "from ppo_fast.envs.spaces import x\nfrom ppo_fast.names import first_line"),
        ("ppo_fast.envs.__init__", "from .host import x"),
        ("ppo_fast.engine.verify", "from ppo_fast import names"),
        ("ppo_fast.algorithm.ppo", "import torch\nfrom torch import nn"),
    ],
    nothing_imports_a_program: [("ppo_fast.train", "from ppo_fast.evaluation import x")],
    only_its_twin_imports_wandb: [("ppo_fast.run.wandb_twin", "import wandb")],
    heavy_imports_are_lazy: [("ppo_fast.run.tracking", "def f():\n    import wandb\n")],
    no_work_at_import: [
        ("ppo_fast.x", '"""Doc."""\nimport a\nA: int = 1\nB = float("nan")\nC = [Preset(lr=1e-3)]\n'),
        ("ppo_fast.x", "if __name__ == '__main__':\n    main()\n"),
        ("ppo_fast.x", "gymnasium.register(id='x')\n_register_tensor_environments()\n"),
        ("ppo_fast.x", "if TYPE_CHECKING:\n    import a\n"),
    ],
    nesting_is_shallow: [
        ("ppo_fast.x", DEEP.replace("    while x:\n     x()", "    x()")),
        ("ppo_fast.x", "def f():\n if a:\n  pass\n" + "".join(f" elif b{i}:\n  x()\n" for i in range(9))),
        ("ppo_fast.x", "def f():\n if a:\n  if b:\n   if c:\n    def g():\n     if d:\n      x()\n"),
    ],
    public_things_say_what_they_are: [
        ("ppo_fast.x", '"""Doc."""\nclass A:\n    """Doc."""\n    def __init__(self): ...\n    def _f(self): ...'),
        ("ppo_fast.x", '"""Doc."""\ndef f():\n    """Doc."""\n    def g(): ...\n'),
        ("ppo_fast.x", '"""Doc."""\nclass A(B):\n    """Doc."""\n    def f(self): ...'),
    ],
}


def sources(folders: tuple[str, ...]) -> list[tuple[str, str]]:
    """Module name and source of each Python file under `folders`."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts), path.read_text()) for path in paths]


def planted(table: dict[Rule, list[tuple[str, str]]]) -> list:
    """One test case for each entry of PLANTED or ACCEPTED."""
    return [
        pytest.param(rule, *case, id=f"{rule.__name__}-{index}")
        for rule, cases in table.items()
        for index, case in enumerate(cases)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_repository_keeps_the_rule(rule: Rule) -> None:
    found = [violation for module, source in sources(RULES[rule]) for violation in rule(module, source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("rule", "module", "source"), planted(PLANTED))
def test_rule_finds_a_planted_violation(rule: Rule, module: str, source: str) -> None:
    assert rule(module, source)


@pytest.mark.parametrize(("rule", "module", "source"), planted(ACCEPTED))
def test_rule_accepts_what_is_right(rule: Rule, module: str, source: str) -> None:
    assert not rule(module, source)


def test_no_imports_in_a_circle() -> None:
    found = circles({module.removesuffix(".__init__"): source for module, source in sources(PACKAGE_ONLY)})
    assert not found, found


def test_a_circle_is_found() -> None:
    a = "from ppo_fast.run.b import x"
    b = "def f():\n    from ppo_fast.run.a import y"
    assert circles({"ppo_fast.run.a": a, "ppo_fast.run.b": b, "ppo_fast.run.c": a})
    assert not circles({"ppo_fast.run.a": a, "ppo_fast.run.b": "", "ppo_fast.run.c": a})


def test_every_rule_has_a_planted_violation() -> None:
    assert set(PLANTED) == set(RULES)


def test_rules_look_at_the_whole_repository() -> None:
    modules = {module for module, _ in sources(FOLDERS)}
    assert {"ppo_fast.__init__", "benchmarks.peers", "tests.test_architecture"} <= modules


TREE = """
Words before.

```bash
pip install -e .
```

```
ppo_fast/
  train.py      PROGRAM  trains
  names.py      columns
  envs/         environments
    host.py     the adapter
benchmarks/
  peers.py      beside others
tests/          the same rooms
pyproject.toml  packaging
```
"""
FILES = {"ppo_fast/train.py", "ppo_fast/names.py", "ppo_fast/envs/host.py", "benchmarks/peers.py", "pyproject.toml"}
TREE_FOLDERS = {"ppo_fast/", "ppo_fast/envs/", "benchmarks/", "tests/"}


def test_readme_tree_is_true() -> None:
    files, folders = listing()
    found = tree_violations((ROOT / "README.md").read_text(), files, folders)
    assert not found, "\n".join(found)


def listing() -> tuple[set[str], set[str]]:
    """Files and folders (with a `/`) of FOLDERS and at the root; not what runs and tools leave."""
    inside = [path for folder in FOLDERS for path in [ROOT / folder, *(ROOT / folder).rglob("*")]]
    paths = [path for path in [*inside, *ROOT.iterdir(), *(ROOT / ".ci").iterdir()] if "__pycache__" not in path.parts]
    files = {path.relative_to(ROOT).as_posix() for path in paths if path.is_file()}
    folders = {f"{path.relative_to(ROOT).as_posix()}/" for path in paths if path.is_dir()}
    return files, folders


def test_readme_tree_is_read_as_documented() -> None:
    assert readme_tree(TREE)["ppo_fast/envs/host.py"] == "the adapter"
    # __init__.py and files that are not Python need no line.
    assert not tree_violations(
        TREE, {*FILES, "ppo_fast/__init__.py", "benchmarks/LOG.md", "tests/test_x.py"}, TREE_FOLDERS
    )


@pytest.mark.parametrize(
    ("readme", "extra", "expected"),
    [
        (TREE, {"ppo_fast/load.py"}, "load.py is not in"),
        (TREE, {"ppo_fast/envs/tensor.py"}, "tensor.py is not in"),
        (TREE, {"benchmarks/golden.py"}, "golden.py is not in"),
        (TREE.replace("host.py ", "gone.py "), set(), "gone.py, which is not there"),
        (TREE.replace("the adapter", ""), set(), "host.py has no caption"),
        (TREE.replace("PROGRAM  trains", "trains"), set(), "calls ppo_fast/train.py 'trains'"),
        (TREE.replace("columns", "PROGRAM"), set(), "calls ppo_fast/names.py 'PROGRAM'"),
    ],
)
def test_readme_tree_can_be_wrong(readme: str, extra: set[str], expected: str) -> None:
    found = tree_violations(readme, FILES | extra, TREE_FOLDERS)
    assert any(expected in violation for violation in found), found


def test_readme_without_a_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="no code block"):
        readme_tree("# ppo_fast")
    with pytest.raises(ValueError, match="twice"):
        readme_tree(TREE.replace("  names.py ", "  train.py "))


def test_every_dependency_says_why() -> None:
    assert not uncommented_dependencies((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    ("pyproject", "wrong"),
    [
        ('[project]\ndependencies = [\n  # tensors\n  "torch>=2",\n  "numpy",\n]\n', ["numpy has no comment"]),
        ('[project]\ndependencies = ["numpy"]\n', ["numpy has no comment"]),
        ('[project.optional-dependencies]\nx = [\n  "a[b]",\n]\n', ["a[b] has no comment"]),
        ('[project]\ndependencies = [\n  "numpy",  # arrays\n]\n', []),
    ],
)
def test_uncommented_dependencies_are_found(pyproject: str, wrong: list[str]) -> None:
    assert uncommented_dependencies(pyproject) == wrong
