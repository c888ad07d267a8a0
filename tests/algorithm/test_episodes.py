"""Episode statistics against a plain loop over every step of every environment."""

import itertools

import pytest
import torch

from ppo_fast.algorithm.episodes import episode_stats


def by_loop(reward, done, valid, carry_return, carry_length):
    """(return, length) of each ended episode by its place (t, n), and the carries, in Python floats."""
    ended, returns, lengths = {}, carry_return.tolist(), carry_length.tolist()
    for t in range(reward.shape[0]):
        for n in range(reward.shape[1]):
            if valid is not None and not valid[t, n]:
                continue
            returns[n] += reward[t, n].item()
            lengths[n] += 1
            if done[t, n]:
                ended[t, n] = (returns[n], lengths[n])
                returns[n], lengths[n] = 0.0, 0
    return ended, returns, lengths


def random_rollout(generator, steps, envs, p_done, p_junk, scale):
    done = torch.rand(steps, envs, generator=generator) < p_done
    valid = torch.rand(steps, envs, generator=generator) >= p_junk
    reward = torch.randint(-9, 10, (steps, envs), generator=generator).float() * scale
    return reward, done, valid


def assert_matches_loop(stats, expected, tolerance):
    ended, carry_return, carry_length = expected
    assert stats.count.item() == len(ended)
    assert stats.length_sum.item() == sum(length for _, length in ended.values())
    assert stats.return_sum.item() == pytest.approx(sum(value for value, _ in ended.values()), abs=tolerance)
    for place, (value, _) in ended.items():
        assert stats.returns[place].item() == pytest.approx(value, abs=tolerance)
    assert stats.carry_return.tolist() == pytest.approx(carry_return, abs=tolerance)
    assert stats.carry_length.tolist() == carry_length


def test_integer_rewards_are_exact_over_many_rollouts():
    generator = torch.Generator().manual_seed(7)
    for steps, envs in [(1, 1), (1, 5), (33, 1), (17, 6)]:
        for p_done, p_junk in itertools.product([0.0, 0.05, 0.5, 1.0], [0.0, 0.3]):
            carry = torch.zeros(envs, dtype=torch.float64), torch.zeros(envs, dtype=torch.int64)
            for _ in range(12):
                rollout = random_rollout(generator, steps, envs, p_done, p_junk, scale=1.0)
                stats = episode_stats(*rollout, *carry)
                assert_matches_loop(stats, by_loop(*rollout, *carry), tolerance=0.0)
                carry = stats.carry_return, stats.carry_length


def test_any_reward_magnitude_is_right_to_float64_rounding():
    generator = torch.Generator().manual_seed(3)
    for scale in (1e-6, 0.1, 1e6, 1e12):
        rollout = random_rollout(generator, 200, 4, 0.05, 0.1, scale)
        carry = torch.full((4,), 3.0 * scale, dtype=torch.float64), torch.full((4,), 2)
        assert_matches_loop(episode_stats(*rollout, *carry), by_loop(*rollout, *carry), tolerance=1e-11 * scale)


def test_a_reward_that_is_not_finite_spoils_its_own_environment_alone():
    generator = torch.Generator().manual_seed(5)
    reward, done, valid = random_rollout(generator, 30, 3, 0.1, 0.0, 1.0)
    carry = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    wanted = episode_stats(reward, done, valid, *carry)
    reward[10, 1] = torch.nan
    found = episode_stats(reward, done, valid, *carry)
    assert torch.equal(found.returns[:, [0, 2]], wanted.returns[:, [0, 2]])
    assert torch.equal(found.returns[:10], wanted.returns[:10]) and found.returns[10:, 1].isnan().all()
    assert found.carry_return[1].isnan() and torch.equal(found.carry_length, wanted.carry_length)
    # A junk row may hold anything.
    valid[10, 1] = False
    assert episode_stats(reward, done, valid, *carry).returns.isfinite().all()


def test_an_episode_over_three_rollouts_keeps_its_return_and_length():
    carry = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    reward = torch.ones(500, 1)
    for last in (False, False, True):
        done = torch.zeros(500, 1, dtype=torch.bool)
        done[-1] = last
        stats = episode_stats(reward, done, None, *carry)
        carry = stats.carry_return, stats.carry_length
    assert (stats.return_sum.item(), stats.length_sum.item(), stats.count.item()) == (1500.0, 1500.0, 1)
    assert carry[0].item() == 0.0 and carry[1].item() == 0


def test_large_sums_stay_exact_where_float32_would_not():
    reward = torch.ones(100, 1)
    done = torch.zeros(100, 1, dtype=torch.bool)
    done[-1] = True
    start = torch.tensor([2.0**24], dtype=torch.float64), torch.tensor([2**24])
    stats = episode_stats(reward, done, None, *start)
    assert stats.return_sum.item() == 2**24 + 100
    assert stats.length_sum.item() == 2**24 + 100


def test_a_junk_row_adds_nothing_and_ends_nothing():
    reward = torch.tensor([[1.0], [100.0], [2.0]])
    done = torch.tensor([[True], [True], [True]])
    valid = torch.tensor([[True], [False], [True]])
    carry = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    stats = episode_stats(reward, done, valid, *carry)
    assert (stats.return_sum.item(), stats.length_sum.item(), stats.count.item()) == (3.0, 2.0, 2)


def test_types_and_shapes():
    carry = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    stats = episode_stats(torch.ones(4, 3), torch.ones(4, 3, dtype=torch.bool), None, *carry)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in stats._asdict().items()} == {
        "return_sum": (torch.float64, ()),
        "length_sum": (torch.float64, ()),
        "count": (torch.int64, ()),
        "returns": (torch.float64, (4, 3)),
        "carry_return": (torch.float64, (3,)),
        "carry_length": (torch.int64, (3,)),
    }


def test_it_is_one_graph_without_data_dependence():
    """fullgraph tracing fails on a host sync (`.item()`), a data-dependent shape or a Python branch on a tensor."""
    traced = torch.compile(episode_stats, fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(1)
    rollout = random_rollout(generator, 16, 3, 0.2, 0.1, 1.0)
    carry = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    for ours, eager in zip(traced(*rollout, *carry), episode_stats(*rollout, *carry), strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_is_captured_as_a_cuda_graph():
    generator = torch.Generator().manual_seed(1)
    inputs = [tensor.cuda() for tensor in random_rollout(generator, 128, 64, 0.05, 0.1, 1.0)]
    inputs += [torch.zeros(64, dtype=torch.float64).cuda(), torch.zeros(64, dtype=torch.int64).cuda()]
    episode_stats(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = episode_stats(*inputs)
    for copy, fresh in zip(inputs[:3], random_rollout(generator, 128, 64, 0.05, 0.1, 1.0), strict=True):
        copy.copy_(fresh)
    graph.replay()
    for ours, eager in zip(captured, episode_stats(*inputs), strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=0)
