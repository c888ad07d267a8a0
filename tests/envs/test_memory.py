"""The environments that ask for memory beside their rules, written as plain loops, and what a policy can reach."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from popgym.envs.repeat_first import RepeatFirst
from popgym.envs.repeat_previous import RepeatPrevious

from ppo_fast.envs import make
from ppo_fast.envs.tensor import TensorVectorEnv
from ppo_fast.run.policy import load_policy
from ppo_fast.train import Args, train

N = 64


def tensor_env(env_id, num_envs=N, **kwargs):
    env = make(f"ppo_fast/{env_id}", num_envs, "cpu", "tensor", **kwargs)
    assert isinstance(env, TensorVectorEnv)
    return env


def memory_chain(length, context, query, actions):
    """bsuite's MemoryChain as its source has it: observations, the first one of reset, rewards and ends."""
    time = 0

    def observe():
        obs = [1 - time / length, query if time == length - 1 else 0]
        return obs + ([2 * bit - 1 for bit in context] if time == 0 else [0] * len(context))

    seen, rewards, ends = [observe()], [], []
    for action in actions:
        seen.append(observe())
        time += 1
        is_last = time - 1 == length
        rewards.append((1 if action == context[query] else -1) if is_last else 0)
        ends.append(is_last)
        if is_last:
            break
    return seen, rewards, ends


def repeat_game(cards, decks, actions, asked, unpaid):
    """POPGym's card games: observations, rewards and ends. asked(hand) is the suit to be named, None before there is
    one; all but `unpaid` of the cards share the return of 1."""
    deck = list(cards)
    hand = [deck.pop(0)]
    seen, rewards, ends = [hand[-1]], [], []
    for action in actions:
        wanted = asked(hand)
        share = 1 / (52 * decks - unpaid)
        rewards.append(0 if wanted is None else share if action == wanted else -share)
        ends.append(len(deck) == 1)
        hand.append(deck.pop(0))
        seen.append(hand[-1])
        if ends[-1]:
            break
    return seen, rewards, ends


def previous(k):
    return lambda hand: hand[-k] if len(hand) >= k else None


def first(hand):
    return hand[0]


def play(env, seed=0):
    """One whole episode of each environment with random actions: obs (T + 1, N, D), actions, rewards, ends (T, N)."""
    generator = torch.Generator().manual_seed(seed)
    obs = [env.reset(seed=seed)[0]]
    actions, rewards, ends = [], [], []
    for _ in range(env.max_episode_steps):
        actions.append(torch.randint(int(env.single_action_space.n), (env.num_envs,), generator=generator))
        _, reward, terminated, truncated, info = env.step(actions[-1])
        assert not truncated.any()
        obs.append(info["final_obs"])
        rewards.append(reward)
        ends.append(terminated)
    return torch.stack(obs), torch.stack(actions), torch.stack(rewards), torch.stack(ends)


@pytest.mark.parametrize(("length", "bits"), [(1, 1), (2, 1), (5, 3), (20, 1)])
def test_memory_chain_beside_its_rules(length, bits):
    env = tensor_env("MemoryChain-v0", memory_length=length, num_bits=bits)
    env.reset(seed=0)
    context, query, _ = env.state
    obs, actions, rewards, ends = play(env)
    assert {(-1.0,), (1.0,)} <= set(map(tuple, context[:, :1].tolist())) and set(query.tolist()) == set(range(bits))
    for i in range(N):
        bit_list = [int(bit > 0) for bit in context[i]]
        seen, wanted, ended = memory_chain(length, bit_list, int(query[i]), actions[:, i].tolist())
        np.testing.assert_allclose(obs[:, i], seen, atol=1e-6)
        assert rewards[:, i].tolist() == wanted and ends[:, i].tolist() == ended


@pytest.mark.parametrize(
    ("env_id", "decks", "asked", "unpaid"),
    [
        ("RepeatPrevious-v0", 1, previous(4), 4),
        ("RepeatPreviousMedium-v0", 2, previous(32), 32),
        ("RepeatFirst-v0", 1, first, 1),
        ("RepeatFirstMedium-v0", 8, first, 1),
    ],
)
def test_games_of_cards_beside_their_rules(env_id, decks, asked, unpaid):
    env = tensor_env(env_id, 16)
    obs, actions, rewards, ends = play(env)
    assert torch.equal(obs.sum(-1), torch.ones(obs.shape[:2]))
    cards = obs.argmax(-1)
    for i in range(env.num_envs):
        assert np.bincount(cards[:, i]).tolist() == [13 * decks] * 4, "all cards of all decks are dealt"
        seen, wanted, ended = repeat_game(cards[:, i].tolist(), decks, actions[:, i].tolist(), asked, unpaid)
        assert cards[:, i].tolist() == seen
        np.testing.assert_allclose(rewards[:, i], wanted, rtol=1e-6)
        assert ends[:, i].tolist() == ended


@pytest.mark.parametrize(
    ("original", "decks", "asked", "unpaid"),
    [
        (RepeatPrevious(num_decks=1, k=4), 1, previous(4), 4),
        (RepeatPrevious(num_decks=2, k=32), 2, previous(32), 32),
        (RepeatFirst(num_decks=1), 1, first, 1),
    ],
    ids=["previous", "previous of two decks", "first"],
)
def test_the_rules_of_the_games_are_popgyms(original, decks, asked, unpaid):
    """Those that the test above plays by."""
    for seed in range(20):
        original.action_space.seed(seed)
        cards, actions, rewards, ends = [original.reset(seed=seed)[0]], [], [], [False]
        while not ends[-1]:
            actions.append(original.action_space.sample())
            card, reward, terminated, truncated, _ = original.step(actions[-1])
            assert not truncated
            cards.append(card)
            rewards.append(reward)
            ends.append(terminated)
        seen, wanted, ended = repeat_game(cards, decks, actions, asked, unpaid)
        assert (cards, ends[1:]) == (seen, ended)
        np.testing.assert_allclose(rewards, wanted, rtol=1e-9)


def test_cards_come_as_from_a_shuffled_deck():
    """Pairs of neighbours are of one suit with probability 12 / 51, the first and the last card too."""
    cards = play(tensor_env("RepeatFirst-v0", 4000))[0].argmax(-1)  # (52, N)
    same = {"first two": cards[0] == cards[1], "last two": cards[50] == cards[51], "ends": cards[0] == cards[51]}
    for name, pairs in same.items():
        assert abs(float(pairs.float().mean()) - 12 / 51) < 0.027, name  # 4 deviations
    for suit in range(4):
        assert abs(float((cards[25] == suit).float().mean()) - 1 / 4) < 0.027


@pytest.mark.parametrize(
    ("env_id", "chance"), [("MemoryChain-v0", 0.0), ("RepeatPrevious-v0", -0.5), ("RepeatFirst-v0", -0.5)]
)
def test_best_return_is_one_and_chance_is_as_said(env_id, chance):
    env = tensor_env(env_id, 1000)
    _, _, rewards, _ = play(env)
    assert abs(float(rewards.sum(0).mean()) - chance) < 0.12

    obs = env.reset(seed=1)[0]
    seen, total = [obs], 0
    for step in range(env.max_episode_steps):
        if env_id.startswith("MemoryChain"):
            action = (seen[0][:, 2] > 0).long()
        else:
            action = seen[0 if env_id.startswith("RepeatFirst") else max(0, step - 3)].argmax(-1)
        obs, reward, terminated, _, _ = env.step(action)
        seen.append(obs)
        total += reward
    assert terminated.all()
    torch.testing.assert_close(total, torch.ones(1000))


def test_a_limit_truncates_and_the_end_terminates():
    for env_id, length in (("MemoryChain5-v0", 6), ("RepeatPrevious-v0", 51)):
        env = tensor_env(env_id, 2, max_episode_steps=length - 1)
        env.reset(seed=0)
        ends = [env.step(torch.zeros(2).long())[2:4] for _ in range(length - 1)]
        assert not any(terminated.any() for terminated, _ in ends)
        assert [bool(truncated.all()) for _, truncated in ends] == [False] * (length - 2) + [True]


def test_arguments_that_can_not_be_are_refused():
    wrong: Any
    for name, wrong in (("memory_length", 0), ("num_bits", 0), ("num_bits", True), ("memory_length", None)):
        with pytest.raises(ValueError, match=rf"{name}: a whole number of at least 1, got {wrong}"):
            tensor_env("MemoryChain-v0", **{name: wrong})
    for k in (52, 1.5, "4"):
        with pytest.raises(ValueError, match=f"k: a whole number from 1 to 51, got {k!r}"):
            tensor_env("RepeatPrevious-v0", k=k)
    made: Any = tensor_env("RepeatPrevious-v0", k=np.int64(3))
    assert made.k == 3
    with pytest.raises(ValueError, match="num_decks: a whole number of at least 1"):
        tensor_env("RepeatFirst-v0", num_decks=0)
    with pytest.raises(ValueError, match="did you mean ppo_fast/MemoryChain-v0"):
        make("MemoryChain-v0", 1)


def test_lengths_by_name_and_by_argument():
    assert tensor_env("MemoryChain50-v0").max_episode_steps == 51
    assert tensor_env("MemoryChain-v0").max_episode_steps == 21
    made: Any = gymnasium.make_vec("ppo_fast/MemoryChain-v0", num_envs=2, memory_length=7)
    assert made.max_episode_steps == 8


@pytest.mark.parametrize("env_id", ["MemoryChain5-v0", "RepeatPrevious-v0", "RepeatFirst-v0", "CartPoleNoVel-v1"])
def test_a_run_goes_on_bit_for_bit_and_is_played(env_id, tmp_path):
    flags = {"env_id": f"ppo_fast/{env_id}", "num_envs": 4, "num_steps": 16, "anneal_lr": False, "eval_episodes": 4}

    def run(root, steps, **more):
        result = train(Args(total_timesteps=steps, run_root=str(tmp_path / root), quiet=True, **{**flags, **more}))
        (policy,) = (tmp_path / root).glob("*/policy.safetensors")
        return result, load_policy(policy)[0]

    straight, wanted = run("straight", 768)
    run("parts", 384)
    resumed, weights = run("parts", 768, resume="latest")
    assert straight["eval/episodes"] == 4 and resumed["eval/mean_return"] == straight["eval/mean_return"]
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
