"""Health advice: each line of the table on both sides of its threshold, and its persistence over a run."""

import json
import math
from pathlib import Path
from typing import Literal

import pytest

from ppo_fast.run.health import KEYS, RULES, Critic, Health, check
from ppo_fast.train import Args, train

GOOD = {
    "global_step": 1000,
    "charts/episodic_return": 100.0,
    "losses/clipfrac": 0.1,
    "losses/approx_kl": 0.01,
    "losses/explained_variance": 0.9,
    "losses/entropy": 0.4,
}


def keys_of(row, **circumstances):
    defaults = {"warmed_up": True, "max_entropy": math.log(2), "return_is_low": True}
    return [advice.key for advice in check({**GOOD, **row}, **{**defaults, **circumstances})]


def feed(health, rows):
    """The keys of the advice after each row."""
    return [[advice.key for advice in health.update({**GOOD, **row})] for row in rows]


def test_good_numbers_give_no_advice():
    assert keys_of({}) == []


@pytest.mark.parametrize(
    ("key", "metric", "at_threshold", "beyond"),
    [
        ("clip_fraction", "losses/clipfrac", 0.2, 0.21),
        ("approx_kl", "losses/approx_kl", 0.02, 0.0201),
        ("explained_variance", "losses/explained_variance", 0.5, 0.49),
        ("entropy", "losses/entropy", 0.05 * math.log(2), 0.034),
    ],
)
def test_advice_begins_beyond_its_threshold(key, metric, at_threshold, beyond):
    assert keys_of({metric: at_threshold}) == []
    assert keys_of({metric: beyond}) == [key]


def test_a_poor_critic_is_excused_before_warm_up():
    assert keys_of({"losses/explained_variance": 0.1}, warmed_up=False) == []


def test_low_entropy_is_fine_while_returns_are_good():
    assert keys_of({"losses/entropy": 0.001}, return_is_low=False) == []


def test_entropy_is_judged_against_the_largest_possible():
    assert keys_of({"losses/entropy": 0.1}, max_entropy=math.log(2)) == []
    assert keys_of({"losses/entropy": 0.1}, max_entropy=math.log(18)) == ["entropy"]
    six_dimensions = 6 * 0.5 * math.log(2 * math.pi * math.e)
    assert keys_of({"losses/entropy": -3.0}, max_entropy=six_dimensions) == ["entropy"]


@pytest.mark.parametrize(
    ("key", "flags"),
    [
        ("clip_fraction", ["--clip-coef", "--learning-rate"]),
        ("approx_kl", ["--target-kl", "--learning-rate"]),
        ("explained_variance", ["critic"]),
        ("entropy", ["--ent-coef"]),
    ],
)
def test_text_names_value_threshold_and_the_flag_to_turn(key, flags):
    bad = {"losses/clipfrac": 0.37, "losses/approx_kl": 0.37, "losses/explained_variance": 0.37, "losses/entropy": 0.01}
    advice = {a.key: a for a in check(bad, warmed_up=True, max_entropy=math.log(2), return_is_low=True)}[key]
    rule = next(rule for rule in RULES if rule.key == key)
    threshold = rule.threshold * math.log(2) if key == "entropy" else rule.threshold
    assert advice.severity == "warn"
    assert ("0.010" if key == "entropy" else "0.37") in advice.text
    assert f"{threshold:.3f}".rstrip("0") in advice.text
    assert all(flag in advice.text for flag in flags)


@pytest.mark.parametrize("metric", ["losses/clipfrac", "losses/approx_kl"])
def test_a_rate_that_follows_the_kl_needs_no_advice_to_lower_it(metric: str) -> None:
    rows = [{metric: 0.9}] * 10
    assert feed(Health(10_000, 0.7, rate_follows_kl=True), rows)[-1] == []
    assert len(feed(Health(10_000, 0.7), rows)[-1]) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["losses/value_loss", "losses/approx_kl", "losses/clipfrac", "charts/SPS"])
def test_nan_and_infinity_stop_at_once_and_are_named(metric, value):
    (advice,) = check({**GOOD, metric: value}, warmed_up=True, max_entropy=0.7, return_is_low=False)
    assert advice.severity == "stop"
    assert metric in advice.text
    assert feed(Health(1000, 0.7), [{metric: value}]) == [["not_finite"]]


def test_many_broken_metrics_are_counted_not_listed():
    (advice,) = check({f"losses/{i}": math.nan for i in range(9)}, warmed_up=True, max_entropy=1, return_is_low=False)
    assert "losses/2" in advice.text and "losses/3" not in advice.text and "6 more" in advice.text


def test_nothing_to_measure_is_no_fault():
    row = {"losses/explained_variance": math.nan, "charts/episodic_return": math.nan, "charts/episodic_length": None}
    assert keys_of(row) == []
    assert check({"losses/explained_variance": math.inf}, warmed_up=True, max_entropy=1, return_is_low=False)


def test_missing_metrics_give_no_advice():
    assert check({}, warmed_up=True, max_entropy=0.7, return_is_low=True) == []


def test_advice_needs_five_of_the_last_ten_and_goes_again():
    bad, good = {"losses/clipfrac": 0.5}, {}
    health = Health(10_000, math.log(2))
    told = feed(health, [bad, good] * 5)  # bad at updates 1, 3, 5, 7, 9
    assert told == [[]] * 8 + [["clip_fraction"]] * 2
    assert feed(health, [good] * 2) == [[], []]  # update 1 has left the window


def test_one_outlier_gives_no_advice():
    assert feed(Health(10_000, 0.7), [{"losses/clipfrac": 0.9}] * 4 + [{}] * 20) == [[]] * 24


def test_metrics_mirror_the_advice():
    health = Health(10_000, 0.7)
    feed(health, [{"losses/approx_kl": 0.5}] * 5)
    assert health.metrics() == {f"health/{key}": int(key == "approx_kl") for key in KEYS}
    feed(health, [{"losses/approx_kl": math.nan}])
    assert health.metrics() == {f"health/{key}": int(key == "not_finite") for key in KEYS}


def test_warm_up_is_a_fifth_of_the_run():
    poor = {"losses/explained_variance": 0.1}
    health = Health(200, 0.7)
    assert not any(feed(health, [{**poor, "global_step": step} for step in range(40)]))
    told = feed(health, [{**poor, "global_step": step} for step in range(40, 45)])
    assert told == [[]] * 4 + [["explained_variance"]]


def test_a_critic_whose_error_has_vanished_is_not_called_poor():
    """The end of a solved CartPole: every return alike, an explained variance of nothing, a value loss of nothing."""
    start = [{"losses/value_loss": 30.0, "global_step": 1}] * 30
    flat = {"losses/explained_variance": 0.1, "global_step": 90}
    assert feed(Health(100, 0.7), [*start, *[{**flat, "losses/value_loss": 0.29}] * 10])[-1] == []
    assert feed(Health(100, 0.7), [*start, *[{**flat, "losses/value_loss": 0.31}] * 10])[-1] == ["explained_variance"]
    assert feed(Health(100, 0.7), [*start, *[flat] * 10])[-1] == ["explained_variance"]


def entropy_advice(returns):
    """Whether a run with these mean returns, whose entropy is always 0, ends with the advice to explore more."""
    rows = [{"losses/entropy": 0.0, "charts/episodic_return": value} for value in returns]
    return feed(Health(10**9, math.log(2)), rows)[-1] == ["entropy"]


def test_returns_are_low_when_they_never_rose():
    assert entropy_advice([-200.0] * 30)
    assert entropy_advice([0.0] * 30)


def test_returns_are_low_when_the_gain_was_lost():
    assert entropy_advice([20.0] * 10 + [500.0] * 20 + [100.0] * 20)


def test_returns_are_not_low_while_most_of_the_gain_stands():
    assert not entropy_advice([20.0] * 10 + [500.0] * 30)
    assert not entropy_advice([20.0] * 10 + [500.0] * 20 + [400.0] * 20)
    assert not entropy_advice([-1600.0] * 10 + [-200.0] * 30)


def test_iterations_without_an_ended_episode_do_not_count_as_returns():
    assert entropy_advice([math.nan, -200.0] * 20)
    assert not entropy_advice([math.nan] * 30)


def test_summary_tells_what_lasted_and_not_what_passed():
    health = Health(10_000, 0.7)
    feed(health, [{"losses/clipfrac": 0.5}] * 30 + [{}] * 70)
    (advice,) = health.summary()
    assert advice.key == "clip_fraction" and "30%" in advice.text and "--clip-coef" in advice.text
    feed(health, [{}] * 100)
    assert health.summary() == []


def test_summary_of_a_few_updates_claims_nothing_lasting():
    health = Health(10_000, 0.7)
    feed(health, [{"losses/clipfrac": 0.5}] * 4)
    assert health.summary() == []
    feed(health, [{"losses/clipfrac": 0.5}] * 5)
    assert health.summary() == []
    feed(health, [{"losses/clipfrac": 0.5}])
    assert [advice.key for advice in health.summary()] == ["clip_fraction"]
    feed(broken := Health(10_000, 0.7), [{"losses/clipfrac": math.nan}])
    assert [advice.key for advice in broken.summary()] == ["not_finite"]


def test_a_critic_of_a_short_run_is_not_judged():
    """A run of a few iterations, all of them behind its first fifth."""
    poor = {"losses/explained_variance": 0.1, "losses/value_loss": 50.0, "global_step": 90}
    health = Health(100, 0.7)
    assert feed(health, [poor] * 29) == [[]] * 29 and health.summary() == []
    assert feed(health, [poor] * 5)[-1] == ["explained_variance"]


@pytest.mark.parametrize(
    ("critic", "value_loss", "says"),
    [
        (Critic(0.2, False), 5000.0, "values are off by 100 and --clip-vloss lets them move by 0.2"),
        (Critic(None, False), 5000.0, "values are off by 100: add --norm-reward"),
        (Critic(0.2, False), 0.01, "raise --vf-coef"),
        (Critic(None, True), 5000.0, "raise --vf-coef"),
        (None, 5000.0, "raise --vf-coef"),
    ],
)
def test_the_likely_cause_of_a_poor_critic_comes_first(critic, value_loss, says):
    health = Health(100, 0.7, critic)
    poor = {"losses/explained_variance": 0.1, "losses/value_loss": value_loss, "global_step": 90}
    feed(health, [poor] * 60)
    (advice,) = health.summary()
    assert says in advice.text
    feed(health, [{"losses/value_loss": value_loss}] * 20)
    (lasting,) = health.summary()
    assert "though not at the end" in lasting.text and says in lasting.text


def test_summary_has_the_advice_of_the_end_once():
    health = Health(10_000, 0.7)
    feed(health, [{"losses/clipfrac": 0.5}] * 30)
    assert [advice.key for advice in health.summary()] == ["clip_fraction"]


@pytest.mark.parametrize(("schedule", "advised"), [("kl", 0), ("constant", 1)])
def test_a_run_says_which_rate_it_has(tmp_path: Path, schedule: Literal["kl", "constant"], advised: int) -> None:
    """Nearly every ratio is clipped."""
    small = {"num_envs": 4, "num_steps": 16, "total_timesteps": 64 * 12, "eval_episodes": 0, "compile": "off"}
    train(Args(**small, quiet=True, clip_coef=1e-6, lr_schedule=schedule, run_root=str(tmp_path)))
    (path,) = tmp_path.glob("*/metrics.jsonl")
    assert json.loads(path.read_text().splitlines()[-1])["health/clip_fraction"] == advised
