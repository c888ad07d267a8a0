"""Evaluation episodes against a plain loop over single environments."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from players import Upright, rule, staircase

from ppo_fast.envs import make
from ppo_fast.run.play import EVAL_SEED, Episodes, evaluate, play


def idle(obs):
    return torch.zeros(len(obs)).long()


def test_the_first_episode_of_every_environment():
    """As single environments of Gymnasium give it, reset with the same seeds and played by the same rule."""
    env = make("CartPole-v1", 12, "cpu", "sync")
    episodes = play(env, rule, seed=5)
    returns, lengths = [], []
    for seed in env.spread(5):  # pyright: ignore[reportAttributeAccessIssue]
        single = gymnasium.make("CartPole-v1")
        obs, total, steps, ended = single.reset(seed=seed)[0], 0.0, 0, False
        while not ended:
            obs, reward, terminated, truncated, _ = single.step(rule(torch.tensor(obs)).item())
            total, steps, ended = total + float(reward), steps + 1, terminated or truncated
        returns.append(total)
        lengths.append(steps)
    assert episodes.returns.tolist() == returns and episodes.lengths.tolist() == lengths
    assert len(set(lengths)) > 3
    env.close()


def test_a_tensor_environment_against_a_plain_loop():
    episodes = play(make("CartPole-v1", 50, "cpu", "tensor"), rule, seed=5)
    env = make("CartPole-v1", 50, "cpu", "tensor")
    obs, first_end = env.reset(seed=5)[0], [0] * 50
    for step in range(1, 501):
        obs, _, terminated, truncated, _ = env.step(rule(obs))
        for i in (terminated | truncated).nonzero().flatten().tolist():
            first_end[i] = first_end[i] or step
    assert episodes.lengths.tolist() == first_end
    assert episodes.returns.tolist() == first_end


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_long_episodes_count_as_much_as_short_ones(mode):
    """The first environment ends 51 episodes while the last plays one. Six episodes counted as they end would all have
    been short."""
    episodes = play(staircase(mode), idle, seed=0)
    lengths = [1, 11, 21, 31, 41, 51]
    assert episodes.lengths.tolist() == lengths
    assert episodes.returns.tolist() == [n * (n + 1) / 2 for n in lengths]


def test_it_stops_when_all_have_ended():
    seen = []
    play(staircase(indices=range(3)), lambda obs: seen.append(1) or idle(obs), seed=0)
    assert len(seen) == 21


def test_max_steps_cuts_what_still_runs():
    episodes = play(staircase(), idle, seed=0, max_steps=12)
    assert episodes.lengths.tolist() == [1, 11, 12, 12, 12, 12]
    assert episodes.returns.tolist() == [1, 66, 78, 78, 78, 78]
    episodes = play(staircase(), idle, seed=0, max_steps=0)
    assert not episodes.lengths.any()


def test_the_same_seed_gives_the_same_episodes():
    env = make("CartPole-v1", 20)
    first, same, other = (play(env, rule, seed).lengths for seed in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_nothing_is_differentiated():
    weight = torch.ones(4, requires_grad=True)

    def act(obs):
        assert not (obs @ weight).requires_grad
        return rule(obs)

    play(make("CartPole-v1", 3), act, seed=0, max_steps=5)


def test_figures():
    returns, lengths = [1.0, 2.0, 6.0], [1, 2, 6]
    figures = Episodes(torch.tensor(returns).double(), torch.tensor(lengths)).figures("eval/")
    assert figures == {
        "eval/mean_return": 3.0,
        "eval/std_return": pytest.approx(np.std(returns)),
        "eval/min_return": 1.0,
        "eval/max_return": 6.0,
        "eval/mean_length": 3.0,
        "eval/episodes": 3,
    }
    assert all(type(x) in (int, float) for x in figures.values())
    assert Episodes(torch.tensor([7.0]).double(), torch.tensor([7])).figures("")["std_return"] == 0.0


def test_evaluation_is_of_greedy_and_of_sampled_episodes():
    """On the same environments, from seeds that training does not use; closed afterwards, and equal for equal seeds."""
    env = make("CartPole-v1", 30)
    figures = evaluate(env, Upright(), seed=3)
    greedy = play(make("CartPole-v1", 30), rule, seed=3 + EVAL_SEED).figures("eval/")
    assert {name: figures[name] for name in greedy} == greedy
    assert figures["eval/sampled_mean_return"] < 0.8 * figures["eval/mean_return"]
    assert figures["eval/sampled_episodes"] == figures["eval/episodes"] == 30
    assert env.closed
    assert evaluate(make("CartPole-v1", 30), Upright(), seed=3) == figures
    assert evaluate(make("CartPole-v1", 30), Upright(), seed=4) != figures
