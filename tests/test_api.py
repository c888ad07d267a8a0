"""docs/api.md: the names and signatures that it promises are those of the code, and none of a class's is left out."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import ppo_fast
from ppo_fast.deploy.policy import Memory, Policy
from ppo_fast.run.callback import Moment

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
CALLS = re.findall(r"^\| `(ppo_fast[\w.]*)\((.*?)\)` \|", PAGE, re.MULTILINE)
CLASSES: list[type] = [Moment, Policy, Memory]


def found(path: str) -> Any:
    """What stands behind a dotted name."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def signature(function: Any) -> str:
    """Names and defaults alone, without `self`."""
    plain = inspect.signature(function)
    kept = [x.replace(annotation=inspect.Parameter.empty) for x in plain.parameters.values() if x.name != "self"]
    return str(plain.replace(parameters=kept, return_annotation=inspect.Signature.empty))[1:-1]


@pytest.mark.parametrize(("path", "parameters"), CALLS)
def test_a_call_is_as_the_code_has_it(path: str, parameters: str) -> None:
    assert signature(found(path)) == parameters


def test_every_program_is_called_here() -> None:
    assert len(CALLS) == 8 and ppo_fast.__version__ and "`ppo_fast.__version__`" in PAGE


def public_names(owner: type) -> set[str]:
    """Methods, properties and what `__init__` sets, that begin with no underscore."""
    names = {name for name in vars(owner) if not name.startswith("_")}
    tree = ast.parse(inspect.getsource(owner))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("owner", CLASSES)
def test_a_class_has_these_names_and_no_others(owner: type) -> None:
    head = f"| `{owner.__module__}.{owner.__name__}` | |\n"
    table = PAGE.split(head)[1].split("\n\n")[0]
    cells = [re.findall(r"`([^`]+)`", line.split(" | ")[0]) for line in table.splitlines()[1:]]
    said = {cell.partition("(")[0]: cell for row in cells for cell in row}
    said.pop("policy", None)  # the object itself, which is called
    assert set(said) == public_names(owner)
    for name, cell in said.items():
        if "(" in cell:
            assert cell == f"{name}({signature(getattr(owner, name))})"
    if owner is Policy:
        assert f"`policy({signature(Policy.__call__)})`" in table
