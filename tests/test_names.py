"""ppo_fast/names.py: one-line texts of exceptions, finite numbers, strict JSON."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from ppo_fast import names


class Silent(Exception):
    """Says nothing."""


@pytest.mark.parametrize(
    ("problem", "line", "with_kind"),
    [
        (ValueError("too few rows"), "too few rows", "ValueError: too few rows"),
        (RuntimeError("\n  first\nsecond\n"), "first", "RuntimeError: first"),
        (OSError(2, "No such file"), "[Errno 2] No such file", "FileNotFoundError: [Errno 2] No such file"),
        (Silent(), "Silent", "Silent"),
        (Silent(" \n"), "Silent", "Silent"),
    ],
)
def test_an_exception_in_one_line(problem: Exception, line: str, with_kind: str) -> None:
    assert names.first_line(problem) == line
    assert names.kind_and_line(problem) == with_kind


def test_what_is_a_number() -> None:
    for value in (0, -3, 2.5, np.float64(1.0)):
        assert names.is_number(value), value
    for value in (True, False, None, "1", [1], math.nan, math.inf, -math.inf):
        assert not names.is_number(value), value


def test_strict_json() -> None:
    value = {
        1: math.nan,
        "inf": [math.inf, -math.inf, 1.5],
        "tensor": torch.tensor([1.0, math.nan]),
        "scalar": np.float32(0.5),
        "flag": True,
        "none": None,
        "inner": {"tuple": (1, 2), "set": {3}},
        "other": torch.float32,
    }
    assert json.loads(json.dumps(names.jsonable(value), allow_nan=False)) == {
        "1": None,
        "inf": [None, None, 1.5],
        "tensor": [1.0, None],
        "scalar": 0.5,
        "flag": True,
        "none": None,
        "inner": {"tuple": [1, 2], "set": [3]},
        "other": "torch.float32",
    }


def test_it_imports_the_standard_library_only() -> None:
    """Loaded alone, without the package around it."""
    code = (
        "import runpy, sys; before = set(sys.modules); runpy.run_path(sys.argv[1]);"
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    found = subprocess.run([sys.executable, "-c", code, names.__file__], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_texts_of_files_are_made_harmless_and_readable():
    for text, shown in {
        "CartPole-v1 $x_1^2$ \\alpha, größer 環境 ±": "CartPole-v1 $x_1^2$ \\alpha, größer 環境 ±",
        "\x1b]0;owned\x07\x1b[2J": r"\x1b]0;owned\x07\x1b[2J",
        "a\r\nb\tc\x7f\x9b1m": r"a\r\nb\tc\x7f\x9b1m",
        "\u202egnp.exe\u2028\u2066\ufeff": r"\u202egnp.exe\u2028\u2066\ufeff",
        "\udc80\ud83d": r"\udc80\ud83d",
        7: "7",
    }.items():
        assert names.printable(text) == shown
        names.printable(text).encode("utf-8")
