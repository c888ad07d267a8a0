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
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from ppo_fast import names

WINDOW = 10  # updates looked back on
PERSISTENT = 5  # updates of the window that must agree before a condition is advice
WARM_UP = 0.2  # part of the run in which a critic may still be poor
CRITIC_UPDATES = 30  # a critic that has had fewer is not judged either
LARGE_ERROR = 10.0  # of values, in units of the return: returns are in the tens at least
SMALL_ERROR = 0.01  # a value loss below this part of its largest is that of a critic that has learned
LASTING = 0.25  # part of all updates that makes a condition worth a line in the summary
LOW_ENTROPY = 0.05  # entropy near 0: below this part of the policy's largest
NOT_FINITE = "not_finite"  # the advice that no rule gives
# NaN in these says that there is nothing to measure: no variance among the returns, no episode ended.
MAY_BE_NAN = (names.EXPLAINED_VARIANCE, names.EPISODIC_RETURN, names.EPISODIC_LENGTH)

MetricRow = Mapping[str, float | None]  # metrics by name; None is a NaN that was written to metrics.jsonl


class Critic(NamedTuple):
    """What a run's flags say of how its critic learns."""

    value_clip: float | None = None
    """how far a value may move in an iteration, in units of the return; None for any distance"""
    is_scaled: bool = True
    """whether rewards are scaled"""


class Circumstances(NamedTuple):
    """What a condition's meaning depends on besides its metric."""

    warmed_up: bool
    """the critic has had time to learn, and still errs"""
    return_is_low: bool
    """see `Health`"""
    rate_follows_kl: bool = False
    """the learning rate answers by itself where the policy moves too far"""


def always(now: Circumstances) -> bool:
    """The condition means something whatever the circumstances."""
    return True


class Rule(NamedTuple):
    """One line of the table: a metric beyond a threshold, what that means and what to do."""

    key: str
    """as in the metric health/<key>"""
    metric: str
    bad: Literal["above", "below"]
    threshold: float
    figures: str
    """the value and the threshold in words, as a format of `value` and `threshold`"""
    meaning: str
    action: str
    when: Callable[[Circumstances], bool] = always
    """whether the condition means something now"""
    of_max_entropy: bool = False
    """the threshold is a part of the largest entropy"""

    @property
    def text(self) -> str:
        """What is wrong, as a format of `value` and `threshold`."""
        return f"{self.figures}: {self.meaning}"

    def limit(self, max_entropy: float) -> float:
        """The threshold in units of the metric."""
        return self.threshold * max_entropy if self.of_max_entropy else self.threshold

    def holds(self, value: float | None, now: Circumstances, max_entropy: float) -> bool:
        """Whether `value` is beyond the threshold, under circumstances in which that means something."""
        if value is None or math.isnan(value) or not self.when(now):
            return False
        limit = self.limit(max_entropy)
        return value > limit if self.bad == "above" else value < limit


RULES = (
    Rule(
        key="clip_fraction",
        metric=names.CLIPFRAC,
        bad="above",
        threshold=0.2,
        figures="clip fraction {value:.2f} (> {threshold:g})",
        meaning="updates are too large",
        action="lower --clip-coef or --learning-rate",
        when=lambda now: not now.rate_follows_kl,
    ),
    Rule(
        key="approx_kl",
        metric=names.APPROX_KL,
        bad="above",
        threshold=0.02,
        figures="approximate KL {value:.3f} (> {threshold:g})",
        meaning="the policy moves too far",
        action="set --target-kl 0.02 or lower --learning-rate",
        when=lambda now: not now.rate_follows_kl,
    ),
    Rule(
        key="explained_variance",
        metric=names.EXPLAINED_VARIANCE,
        bad="below",
        threshold=0.5,
        figures="explained variance {value:.2f} (< {threshold:g})",
        meaning="the critic is not learning",
        action="raise --vf-coef or --update-epochs",
        when=lambda now: now.warmed_up,
    ),
    Rule(
        key="entropy",
        metric=names.ENTROPY,
        bad="below",
        threshold=LOW_ENTROPY,
        figures="entropy {value:.3f} (< {threshold:.3f}) while returns are low",
        meaning="the policy stopped exploring",
        action="raise --ent-coef",
        when=lambda now: now.return_is_low,
        of_max_entropy=True,
    ),
)
KEYS = (*(rule.key for rule in RULES), NOT_FINITE)


class Advice(NamedTuple):
    """One finding in plain words."""

    key: str
    """as in the metric health/<key>"""
    severity: Literal["warn", "stop"]
    """stop where going on is a waste"""
    text: str
    """the finding with its figure and its threshold, and what to do"""


def check(row: MetricRow, *, warmed_up: bool, max_entropy: float, return_is_low: bool) -> list[Advice]:
    """The advice that one row of metrics gives, looked at alone.

    Args:
        row: what is absent, None or NaN gives no advice of its own rule.
        warmed_up: whether the critic has had time to learn.
        max_entropy: entropy of the widest policy in nats: the sum of log(n) over discrete components; for a Gaussian
            over d dimensions that of unit variance, 1.4189 * d, where training starts. At 5 % of it a policy of two
            actions is 99.4 % sure of one, and a Gaussian has a standard deviation of 0.26.
        return_is_low: see `Health`.

    Returns:
        A single "stop" if anything is NaN or infinite, otherwise one "warn" for each line of `RULES` that holds.
    """
    broken = not_finite(row)
    if broken:
        return [_stop(broken, row)]
    now = Circumstances(warmed_up, return_is_low)
    advice = []
    for rule in RULES:
        value = row.get(rule.metric)
        if rule.holds(value, now, max_entropy):
            advice.append(_warn(rule, value, max_entropy))
    return advice


def not_finite(row: MetricRow) -> list[str]:
    """Names of the metrics that are NaN or infinite and may not be, in the row's order."""
    return [name for name, value in row.items() if value is not None and _is_broken(name, value)]


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
        critic: by which the cause is named that is the likeliest.
        rate_follows_kl: whether the learning rate is lowered by itself where an update has moved the policy too far
            (`--lr-schedule kl`); then neither the KL nor the fraction of clipped ratios is judged.
    """

    def __init__(
        self, total_steps: int, max_entropy: float, critic: Critic | None = None, rate_follows_kl: bool = False
    ) -> None:
        self.total_steps = total_steps
        self.max_entropy = max_entropy
        self._conditions = [_Condition(rule) for rule in RULES]
        self._updates = 0
        self._active: list[Advice] = []
        self._returns = _Returns()
        self._largest_value_loss = 0.0
        self._critic = critic or Critic()
        self._rate_follows_kl = rate_follows_kl
        self._value_error = 0.0  # of the last update, in units of the return

    def update(self, row: MetricRow) -> list[Advice]:
        """Take in the row of one iteration (with "global_step") and say what is wrong now."""
        broken = not_finite(row)
        if broken:
            self._active = [_stop(broken, row)]
            return list(self._active)
        self._updates += 1
        critic_errs = self._critic_errs(row.get(names.VALUE_LOSS))
        step = row.get(names.GLOBAL_STEP) or 0
        now = Circumstances(
            warmed_up=critic_errs and step >= WARM_UP * self.total_steps and self._updates >= CRITIC_UPDATES,
            return_is_low=self._returns.are_low(row.get(names.EPISODIC_RETURN)),
            rate_follows_kl=self._rate_follows_kl,
        )
        self._active = []
        for condition in self._conditions:
            mean = condition.update(row, now, self.max_entropy)
            if mean is not None:
                self._active.append(_warn(condition.rule, mean, self.max_entropy, self._action(condition.rule)))
        return list(self._active)

    def metrics(self) -> dict[str, int]:
        """One 0 or 1 for each kind of advice, 1 where the last `update` gave it."""
        active = {advice.key for advice in self._active}
        return {f"health/{key}": int(key in active) for key in KEYS}

    def summary(self) -> list[Advice]:
        """What is wrong at the end, and what was wrong in at least a quarter of all updates, unless those are few."""
        if self._updates < WINDOW:  # too short to tell
            return [advice for advice in self._active if advice.severity == "stop"]
        advice = list(self._active)
        active = {known.key for known in advice}
        for condition in self._conditions:
            rule = condition.rule
            share = condition.held / self._updates
            if rule.key in active or share < LASTING:
                continue
            name = rule.key.replace("_", " ")
            sign = ">" if rule.bad == "above" else "<"
            limit = rule.limit(self.max_entropy)
            text = (
                f"{name} {sign} {limit:.3g} in {share:.0%} of the updates, though not at the end; {self._action(rule)}"
            )
            advice.append(Advice(rule.key, "warn", text))
        return advice

    def _critic_errs(self, value_loss: float | None) -> bool:
        """Whether the value loss is more than a small part of the largest so far. Without one, it may be."""
        if value_loss is None:
            return True
        self._value_error = math.sqrt(2 * max(0.0, value_loss))  # the loss is half of the mean square
        self._largest_value_loss = max(self._largest_value_loss, value_loss)
        return value_loss > SMALL_ERROR * self._largest_value_loss

    def _action(self, rule: Rule) -> str:
        """What to do; for a critic that does not learn, first what its likely cause asks for."""
        clip, error = self._critic.value_clip, self._value_error
        if rule.metric != names.EXPLAINED_VARIANCE or self._critic.is_scaled:
            return rule.action
        if clip is not None and error > clip:
            return (
                f"values are off by {error:.3g} and --clip-vloss lets them move by {clip:g} an iteration: "
                "add --norm-reward or --no-clip-vloss"
            )
        return f"values are off by {error:.3g}: add --norm-reward" if error > LARGE_ERROR else rule.action


class _Condition:
    """In which updates of a run one rule held."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.held = 0  # in how many updates of the whole run
        self._recent = deque[float | None](maxlen=WINDOW)  # the metric where the rule held, None elsewhere

    def update(self, row: MetricRow, now: Circumstances, max_entropy: float) -> float | None:
        """Take in one row; the metric's mean over the recent updates where the rule held, if those are enough."""
        value = row.get(self.rule.metric)
        holds = self.rule.holds(value, now, max_entropy)
        self.held += int(holds)
        self._recent.append(value if holds else None)
        values = [value for value in self._recent if value is not None]
        return sum(values) / len(values) if len(values) >= PERSISTENT else None


class _Returns:
    """The mean returns of a run: the first and the best average over 10 updates, and the last."""

    def __init__(self) -> None:
        self._recent = deque[float](maxlen=WINDOW)
        self._first: float | None = None
        self._best = -math.inf

    def are_low(self, episodic_return: float | None) -> bool:
        """Take in the mean return of one update, None or NaN where no episode ended."""
        if episodic_return is not None and not math.isnan(episodic_return):
            self._recent.append(episodic_return)
        if len(self._recent) < WINDOW:
            return False
        now = sum(self._recent) / WINDOW
        if self._first is None:
            self._first = now
        self._best = max(self._best, now)
        return now <= self._first + (self._best - self._first) / 2


def _is_broken(name: str, value: float) -> bool:
    """Whether a metric is NaN or infinite and may not be."""
    if math.isnan(value):
        return name not in MAY_BE_NAN
    return math.isinf(value)


def _warn(rule: Rule, value: float | None, max_entropy: float, action: str | None = None) -> Advice:
    found = rule.text.format(value=value, threshold=rule.limit(max_entropy))
    return Advice(rule.key, "warn", f"{found}; {rule.action if action is None else action}")


def _stop(broken: list[str], row: MetricRow) -> Advice:
    named = ", ".join(f"{name} is {row[name]}" for name in broken[:3])
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    return Advice(
        NOT_FINITE,
        "stop",
        f"{named}{more}: training cannot recover from this; look for NaN in the environment's rewards and "
        "observations, or lower --learning-rate",
    )
