"""Training diagnostics turned into plain advice: what is wrong, and which flag to turn.

    health = Health(total_steps=500_000, max_entropy=math.log(2))
    advice = health.update(row)      # once per logged iteration
    row |= health.metrics()          # {"health/clip_fraction": 0, ...}

All thresholds stand in `RULES`: rules of thumb for the diagnostics that Huang et al. list (2022, "The 37 Implementation
Details of Proximal Policy Optimization").
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

WINDOW = 10  # updates looked back on
PERSISTENT = 5  # updates of the window that must agree before a condition is advice
WARM_UP = 0.2  # part of the run in which a critic may still be poor
SMALL_ERROR = 0.01  # a value loss below this part of its largest is that of a critic that has learned
LASTING = 0.25  # part of all updates that makes a condition worth a line in the summary
LOW_ENTROPY = 0.05  # entropy near 0: below this part of the policy's largest
# NaN in these says that there is nothing to measure: no variance among the returns, no episode ended.
MAY_BE_NAN = ("losses/explained_variance", "charts/episodic_return", "charts/episodic_length")


class Rule(NamedTuple):
    """One line of the table. `only_when` names the circumstance without which the condition means nothing."""

    key: str
    metric: str
    bad: str  # "above" or "below" the threshold
    threshold: float
    only_when: str  # "", "warmed_up" or "return_is_low"
    text: str


RULES = (
    Rule(
        "clip_fraction",
        "losses/clipfrac",
        "above",
        0.2,
        "",
        "clip fraction {value:.2f} (> {threshold:g}): updates are too large; lower --clip-coef or --learning-rate",
    ),
    Rule(
        "approx_kl",
        "losses/approx_kl",
        "above",
        0.02,
        "",
        "approximate KL {value:.3f} (> {threshold:g}): the policy moves too far; set --target-kl 0.02 "
        "or lower --learning-rate",
    ),
    Rule(
        "explained_variance",
        "losses/explained_variance",
        "below",
        0.5,
        "warmed_up",
        "explained variance {value:.2f} (< {threshold:g}): the critic is not learning; raise --vf-coef or "
        "--update-epochs",
    ),
    Rule(
        "entropy",
        "losses/entropy",
        "below",
        LOW_ENTROPY,  # times max_entropy
        "return_is_low",
        "entropy {value:.3f} (< {threshold:.3f}) while returns are low: the policy stopped exploring; raise --ent-coef",
    ),
)
KEYS = (*(rule.key for rule in RULES), "not_finite")


class Advice(NamedTuple):
    """One finding in plain words."""

    key: str  # as in the metric "health/<key>"
    severity: str  # "warn", or "stop" where going on is a waste
    text: str  # the finding with its figure and its threshold, and what to do


def check(row: Mapping[str, float | None], *, warmed_up: bool, max_entropy: float, return_is_low: bool) -> list[Advice]:
    """The advice that one row of metrics gives, looked at alone.

    Args:
        row: metrics by name; what is absent, None or NaN gives no advice of its own rule.
        warmed_up: whether the critic has had time to learn.
        max_entropy: entropy of the widest policy in nats: the sum of log(n) over discrete components; for a Gaussian
            over d dimensions that of unit variance, 1.4189 * d, where training starts. At 5 % of it a policy of two
            actions is 99.4 % sure of one, and a Gaussian has a standard deviation of 0.26.
        return_is_low: see `Health`.

    Returns:
        A single "stop" if anything is NaN or infinite, otherwise one "warn" for each line of `RULES` that holds.
    """
    if broken := not_finite(row):
        return [_stop(broken, row)]
    circumstances = {"": True, "warmed_up": warmed_up, "return_is_low": return_is_low}
    return [
        Advice(rule.key, "warn", rule.text.format(value=row[rule.metric], threshold=_threshold(rule, max_entropy)))
        for rule in RULES
        if circumstances[rule.only_when] and _holds(rule, row.get(rule.metric), max_entropy)
    ]


def not_finite(row: Mapping[str, float | None]) -> list[str]:
    """Names of the metrics that are NaN or infinite and may not be, in the row's order."""
    return [
        name
        for name, value in row.items()
        if value is not None and not math.isfinite(value) and not (name in MAY_BE_NAN and math.isnan(value))
    ]


class Health:
    """`check` over a whole run, without flicker: advice is what held in 5 of the last 10 updates, and NaN at once.

    Returns are low when at most half of the best improvement over the start is left,
    `now <= first + (best - first) / 2`, each an average over 10 updates. That is true of a run that never improved and
    of one that lost what it had gained, in any unit of reward, without knowing the environment. A policy that starts at
    its best counts as low too, which only matters if its entropy is near 0 as well.

    The critic is judged after its warm-up, and only while its value loss is above 1 % of the largest in the run. A
    solved environment whose episodes all end alike leaves next to no variance to explain, and what is left is noise.

    Args:
        total_steps: environment steps of the whole run; the first fifth is the critic's warm-up.
        max_entropy: see `check`.
    """

    def __init__(self, total_steps: int, max_entropy: float) -> None:
        self.total_steps = total_steps
        self.max_entropy = max_entropy
        self._recent = {
            rule.key: deque[float](maxlen=WINDOW) for rule in RULES
        }  # the metric where the rule held, NaN elsewhere
        self._held = dict.fromkeys(self._recent, 0)
        self._updates = 0
        self._active: dict[str, Advice] = {}
        self._returns = deque[float](maxlen=WINDOW)
        self._first: float | None = None
        self._best = -math.inf
        self._largest_value_loss = 0.0

    def update(self, row: Mapping[str, float | None]) -> list[Advice]:
        """Take in the row of one iteration (with "global_step") and say what is wrong now."""
        if broken := not_finite(row):
            self._active = {"not_finite": _stop(broken, row)}
            return list(self._active.values())
        self._updates += 1
        step = row.get("global_step") or 0
        circumstances = {
            "": True,
            "warmed_up": self._critic_errs(row.get("losses/value_loss")) and step >= WARM_UP * self.total_steps,
            "return_is_low": self._return_is_low(row.get("charts/episodic_return")),
        }
        self._active = {}
        for rule in RULES:
            value, recent = row.get(rule.metric), self._recent[rule.key]
            held = circumstances[rule.only_when] and _holds(rule, value, self.max_entropy)
            recent.append(value if held and value is not None else math.nan)
            self._held[rule.key] += held
            values = [value for value in recent if not math.isnan(value)]
            if len(values) >= PERSISTENT:
                text = rule.text.format(value=sum(values) / len(values), threshold=_threshold(rule, self.max_entropy))
                self._active[rule.key] = Advice(rule.key, "warn", text)
        return list(self._active.values())

    def metrics(self) -> dict[str, int]:
        """One 0 or 1 for each kind of advice, 1 where the last `update` gave it."""
        return {f"health/{key}": int(key in self._active) for key in KEYS}

    def summary(self) -> list[Advice]:
        """What is wrong at the end, and what was wrong in at least a quarter of all updates, unless those are few."""
        advice = list(self._active.values())
        for rule in RULES:
            share = self._held[rule.key] / max(1, self._updates)
            if rule.key not in self._active and share >= LASTING and self._updates >= WINDOW:
                sign = ">" if rule.bad == "above" else "<"
                threshold = _threshold(rule, self.max_entropy)
                name, action = rule.key.replace("_", " "), rule.text.rpartition("; ")[2]
                text = f"{name} {sign} {threshold:.3g} in {share:.0%} of the updates, though not at the end; {action}"
                advice.append(Advice(rule.key, "warn", text))
        return advice

    def _critic_errs(self, value_loss: float | None) -> bool:
        if value_loss is None:
            return True
        self._largest_value_loss = max(self._largest_value_loss, value_loss)
        return value_loss > SMALL_ERROR * self._largest_value_loss

    def _return_is_low(self, episodic_return: float | None) -> bool:
        if episodic_return is not None and not math.isnan(episodic_return):
            self._returns.append(episodic_return)
        if len(self._returns) < WINDOW:
            return False
        now = sum(self._returns) / WINDOW
        self._first = now if self._first is None else self._first
        self._best = max(self._best, now)
        return now <= self._first + (self._best - self._first) / 2


def _threshold(rule: Rule, max_entropy: float) -> float:
    return rule.threshold * max_entropy if rule.key == "entropy" else rule.threshold


def _holds(rule: Rule, value: float | None, max_entropy: float) -> bool:
    if value is None or math.isnan(value):
        return False
    threshold = _threshold(rule, max_entropy)
    return value > threshold if rule.bad == "above" else value < threshold


def _stop(broken: list[str], row: Mapping[str, float | None]) -> Advice:
    named = ", ".join(f"{name} is {row[name]}" for name in broken[:3])
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    return Advice(
        "not_finite",
        "stop",
        f"{named}{more}: training cannot recover from this; look for NaN in the environment's rewards and "
        "observations, or lower --learning-rate",
    )
