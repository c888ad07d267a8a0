"""Names and small pure functions that every room may use: columns of a run, one-line error texts, strict JSON.

    row[names.APPROX_KL]               # a column of metrics.jsonl
    names.first_line(problem)          # "No module named 'scipy'"
    json.dumps(names.jsonable(row))    # NaN becomes null

Only the standard library is imported here.
"""

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

# The files of a run folder that other modules than their writer read.
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
POLICY_FILE = "policy.safetensors"
BEST_POLICY_FILE = "best.safetensors"  # of --eval-every

# What config.json, result.json, checkpoints and the policy know each other by; files of earlier versions have none.
RUN_ID = "run_id"

# Columns of metrics.jsonl, one row for each logged iteration. The names are CleanRL's where it has them.
GLOBAL_STEP = "global_step"
EPISODIC_RETURN = "charts/episodic_return"
EPISODIC_LENGTH = "charts/episodic_length"
SPS = "charts/SPS"
LEARNING_RATE = "charts/learning_rate"
POLICY_LOSS = "losses/policy_loss"
VALUE_LOSS = "losses/value_loss"
ENTROPY = "losses/entropy"
OLD_APPROX_KL = "losses/old_approx_kl"
APPROX_KL = "losses/approx_kl"
CLIPFRAC = "losses/clipfrac"
GRAD_NORM = "losses/grad_norm"
EXPLAINED_VARIANCE = "losses/explained_variance"
ELAPSED = "time/elapsed"
COLLECT_TIME = "time/collect"
LEARN_TIME = "time/learn"
EVAL_TIME = "time/eval"
NOT_FINITE = "health/not_finite"

# Figures of result.json: the greedy evaluation and, with the second prefix, the sampled one.
EVAL = "eval/"
EVAL_SAMPLED = "eval/sampled_"
MEAN_RETURN = "eval/mean_return"
STD_RETURN = "eval/std_return"
EPISODES = "eval/episodes"
SAMPLED_MEAN_RETURN = "eval/sampled_mean_return"
SAMPLED_STD_RETURN = "eval/sampled_std_return"


def first_line(problem: BaseException) -> str:
    """What an exception says, its first line only; the name of its class where it says nothing."""
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__


def kind_and_line(problem: BaseException) -> str:
    """An exception in one line with its class: "ValueError: too few rows", or "ValueError" where it says nothing."""
    kind = type(problem).__name__
    return f"{kind}: {first_line(problem)}" if str(problem).strip() else kind


def printable(text: object) -> str:
    """A text out of a file or a folder's name, in one line that a terminal, a picture and UTF-8 take as it is.

    What would move a cursor, break a line, turn the order of letters or stand for nothing is written as Python escapes
    it: "\\x1b[2J", "\\n", "\\u202e", "\\udc80".
    """
    return "".join(_shown(sign) for sign in str(text))


def _shown(sign: str) -> str:
    """One sign, escaped where it is a control, a format, a surrogate or no character (Unicode's C) or ends a line."""
    if sign.isascii():
        return sign if sign.isprintable() else repr(sign)[1:-1]
    hidden = unicodedata.category(sign)[0] == "C" or sign in "\u2028\u2029"
    return sign.encode("unicode_escape").decode("ascii") if hidden else sign


def is_number(value: object) -> bool:
    """Whether a value, such as one of a JSON file, is a finite number. True and False are none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is too large for a float
        return False


def jsonable(value: Any) -> Any:
    """`value` in types of strict JSON, which has no NaN.

    NaN and infinities become None; tensors, arrays, tuples and sets become lists; names become texts; what is anything
    else becomes `str(value)`.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # tensors, NumPy's arrays and scalars
        return jsonable(value.tolist())
    return str(value)
