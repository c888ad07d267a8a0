# Tensors unbound into arguments and heads that are one of three: pyright can't count or tell them.
# pyright: reportCallIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
"""The compiled path against the eager one: same numbers, no graph breaks, no recompiles, no look at the device.

Most tests compile with the backend "aot_eager": dynamo and autograd trace the same graphs, with the same guards and the
spellings meant for the compiler, but their kernels are torch's own, which costs a tenth of the time. One tiny case goes
through the compiler as it is. Letters: T steps, N envs, M minibatch.
"""

import copy
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from ppo_fast.engine.distributed import Ranks
from ppo_fast.engine.graphs import CPU_OPTIONS, Compiled
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_fast import train
from ppo_fast.algorithm import ppo
from ppo_fast.engine import capture, crew
from ppo_fast.run import session
from ppo_fast.train import Args, Batch

# torch warns of what torch.compile itself does: it instantiates an autograd.Function, and imports torch.jit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]

CPU = torch.device("cpu")
KL = train.METRICS.index("losses/approx_kl")
CLIPFRAC = train.METRICS.index("losses/clipfrac")
STEPS = train.METRICS.index("steps")

# Compiled and eager kernels order their sums differently and use another tanh (error up to 4e-7): what float32 rounding
# makes of numbers of size 1. Adam divides a gradient by its own size, so a rounding difference in a gradient moves a
# parameter by up to that relative size times the learning rate, not more: over some tens of updates deviations of 1e-6
# were measured, and ten times that is allowed. A wrong term in the loss moves parameters by the learning rate, 2.5e-3.
TOLERANCE = 1e-5


def small(**flags):
    sizes = {"num_envs": 8, "num_steps": 4, "num_minibatches": 4, "update_epochs": 4, "total_timesteps": 8 * 4 * 10}
    return Args(**(sizes | {"learning_rate": 2.5e-3, "cuda": False} | flags))


def built(args, fast=False):
    """Learner and one iteration of a run with these flags."""
    envs, agent, learner = train.setup(args, CPU)
    return learner, train.make_iteration(args, envs, agent, learner, fast)


def run(learner, iteration, count, args):
    """Iterations with the learning rate annealed as in training: metrics (count, len(METRICS)) and theta after each."""
    metrics, thetas = [], []
    for i in range(count):
        if args.lr_schedule == "linear":
            learner.learning_rate.fill_(args.learning_rate * (1 - i / args.num_iterations))
        metrics.append(iteration().clone())
        thetas.append(learner.theta.clone())
    return torch.stack(metrics), torch.stack(thetas)


class Graphs(CompileCounterWithBackend):
    """Counts the graphs compiled, and how often dynamo was asked whether it has one."""

    def __init__(self):
        super().__init__("aot_eager")
        self.asked = 0


def counted_graphs(monkeypatch):
    """Replaces the compiler's kernels by torch's; counts the graphs compiled, which must be whole functions."""
    counter, compiler = Graphs(), torch.compile

    def torchs_kernels(function, *, fullgraph, dynamic, options):
        assert fullgraph and dynamic is False
        compiled = compiler(function, fullgraph=fullgraph, dynamic=dynamic, backend=counter)

        def ask(*args):
            counter.asked += 1
            return compiled(*args)

        return ask

    monkeypatch.setattr(torch, "compile", torchs_kernels)
    torch.compiler.reset()
    counters.clear()
    yield counter
    assert not counters["graph_break"]
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch):
    yield from counted_graphs(monkeypatch)


def assert_same_run(args, fast, slow):
    """Parameters and metrics after every iteration; the metrics of a rollout exactly, so the actions were the same."""
    (metrics, theta), (wanted_metrics, wanted_theta) = fast, slow
    assert (theta - wanted_theta).abs().max() <= TOLERANCE
    assert (wanted_theta[-1] - wanted_theta[0]).abs().max() > 100 * TOLERANCE
    torch.testing.assert_close(metrics, wanted_metrics, rtol=1e-4, atol=1e-4, equal_nan=True)
    # A NEXT_STEP environment has junk rows, which are no steps.
    assert (metrics[:, STEPS] == args.batch_size).all() or args.env_id == "odd_envs:NextStep-v0"
    if args.env_id == "CartPole-v1":
        names = [train.METRICS.index(name) for name in ("returns", "lengths", "episodes")]
        assert torch.equal(metrics[:, names], wanted_metrics[:, names])


RUNS = {
    "discrete": {},
    "normalised": {"norm_obs": True, "norm_reward": True, "lr_schedule": "kl"},
    "shared backbone": {"shared_backbone": True},
    "plain value loss": {"clip_vloss": False, "norm_adv": False},
    "early stop": {"target_kl": 0.003},
    "continuous": {"env_id": "Pendulum-v1"},
    "host": {"backend": "sync"},
    # 13 x 10 rows in 4 minibatches: 33, 33, 32, 32; and 10 steps in chunks of 8 and 2.
    "uneven": {"num_envs": 13, "num_steps": 10},
}
# The graphs of a run: a chunk of the rollout (or one policy step), the values, the shuffled epoch with its normalised
# advantages, the update of a minibatch; and one more of each that comes in a second shape, of the uneven run a shorter
# chunk and a smaller minibatch. Of the normalised run dynamo analyses the update twice before it has its one graph.
GRAPHS = {"uneven": 6, "normalised": 5}


@pytest.mark.parametrize("name", RUNS)
def test_compiled_is_eager_without_recompiling(graphs, name):
    """Four iterations; nothing compiles in them, though the learning rate changes, and dynamo is not even asked."""
    args = small(**RUNS[name])
    args.total_timesteps = args.batch_size * 10
    slow = run(*built(args), 4, args)
    learner, iteration = built(args, fast=True)
    assert graphs.frame_count == GRAPHS.get(name, 4)
    asked = graphs.asked
    with torch.compiler.set_stance("fail_on_recompile"):
        fast = run(learner, iteration, 4, args)
    assert graphs.frame_count == GRAPHS.get(name, 4) and graphs.asked == asked
    assert_same_run(args, fast, slow)


def test_a_recompile_would_be_seen(graphs):
    """The two counts above can fail: a number in place of the learning rate's tensor recompiles when it changes."""

    def step(x, rate):
        return x * rate

    compiled = Compiled(step)
    for rate in (0.5, 0.5, 0.25):
        compiled(torch.ones(3), rate)
    assert graphs.frame_count == 2
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="recompile"):
        compiled(torch.ones(4), 0.25)


def test_known_shapes_go_straight_to_their_code(graphs):
    """Shapes, strides, types, numbers and None, however deep in tuples and lists, decide which code that is."""

    def total(offset, x, pairs):
        terms = (1.5 if y is None else y.sum() * (2 if rate is None else rate) for y, rate in pairs)
        return sum(terms, x.sum() + offset) * len(x)

    compiled, x, y = Compiled(partial(total, 100.0)), torch.arange(12.0), torch.ones(12)
    cases = [
        (x, ((y, 1.0),)),
        (x[::2], ((y, 1.0),)),
        (x, ((y[::3], 1.0),)),
        (x, ((y, 2.0),)),
        (x, ((y, 1.0), (y[3:], 2.0))),
        (x.view(3, 4), ((y, 1.0),)),
        (x.double(), ((y, 1.0),)),
        (x, ((None, y),)),
        (x, ((y, None),)),
    ]
    with torch._dynamo.config.patch(recompile_limit=len(cases)):
        for case in cases:
            torch.testing.assert_close(compiled(*case), total(100.0, *case))
    assert graphs.asked == graphs.frame_count == len(cases)
    x, y = 3 * x.flip(0), y.cumsum(0)
    again = ((x, ((y, 2.0),)), (x[::2], [(y, 1.0)]), (x.view(3, 4), ((y, 1.0),)), (x, ((y, 1.0), (y[3:], 2.0))))
    for case in (*again, (x.double(), [(y, 1.0)]), (x, ((None, y),)), (x, ((y, None),))):
        torch.testing.assert_close(compiled(*case), total(100.0, *case))
    assert graphs.asked == graphs.frame_count == len(cases)


def test_two_runs_in_one_process_have_their_own_graphs(graphs):
    """Another run's flags are constants in its graphs: they must neither be reused nor force the first to recompile."""
    first, second = small(), small(clip_coef=0.05, ent_coef=0.5)
    slow = [run(*built(args), 3, args) for args in (first, second)]
    pairs = [built(args, fast=True) for args in (first, second)]
    with torch.compiler.set_stance("fail_on_recompile"):
        fast = [run(*pair, 3, args) for pair, args in zip(pairs, (first, second), strict=True)]
    assert graphs.frame_count == 8
    for args, a, b in zip((first, second), fast, slow, strict=True):
        assert_same_run(args, a, b)
    assert (fast[0][1] - fast[1][1]).abs().max() > 100 * TOLERANCE


def test_trying_out_leaves_no_trace(graphs):
    """Compiling runs an iteration; afterwards learner, environments and random numbers are as at the start."""
    learner, iteration = built(small(), fast=True)
    other, plain = built(small())
    assert all(torch.equal(a, b) for a, b in zip(learner, other, strict=True))
    assert iteration.state.keys() == plain.state.keys()
    for name, tensor in plain.state.items():
        assert name.startswith("rollout.") or torch.equal(iteration.state[name], tensor), name
    for ours, theirs in zip(iteration.generators, plain.generators, strict=True):
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("fast", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("flags", [{"num_steps": 10}, {"backend": "sync"}], ids=["tensor", "host"])
def test_rollouts_follow_on_one_another(graphs, flags, fast):
    """From step to step, from chunk to chunk and from iteration to iteration; each action with its own probability."""
    args = small(**flags)
    envs, agent, learner = train.setup(args, CPU)
    iteration = train.make_iteration(args, envs, agent, learner, fast)
    ends, state = 0, iteration.state
    for _ in range(6):
        before = state["obs"].clone()
        iteration.collect()
        rollout = train.Rollout(*(state[f"rollout.{name}"].clone() for name in train.Rollout._fields))
        goes_on = ~(rollout.terminated | rollout.truncated)
        following = torch.cat([rollout.obs[1:], state["obs"][None]])
        assert torch.equal(rollout.obs[0], before)
        assert torch.equal(following[goes_on], rollout.final_obs[goes_on])
        assert (following[~goes_on] != rollout.final_obs[~goes_on]).any(-1).all()
        with torch.no_grad():
            log_prob = agent(rollout.obs, rollout.action)[0]
        torch.testing.assert_close(log_prob, rollout.log_prob, rtol=0, atol=1e-6)
        assert rollout.valid.all() and (rollout.reward == 1).all()
        iteration.learn()
        ends += int((~goes_on).sum())
    assert ends > 3


def test_the_real_compiler():
    """Two rollout steps, so that it takes seconds: parameters, metrics, no graph breaks, no recompiles."""
    torch.compiler.reset()
    counters.clear()
    args = small(num_steps=2, num_minibatches=2, total_timesteps=16 * 10)
    slow = run(*built(args), 5, args)
    learner, iteration = built(args, fast=True)
    compiled = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        fast = run(learner, iteration, 5, args)
    assert compiled == counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]
    assert_same_run(args, fast, slow)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared backbone", "early stop", "continuous", "uneven", "host"])
def test_the_real_compiler_on_every_kind_of_run(name):
    torch.compiler.reset()
    args = small(**RUNS[name])
    args.total_timesteps = args.batch_size * 10
    slow = run(*built(args), 5, args)
    learner, iteration = built(args, fast=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same_run(args, run(learner, iteration, 5, args), slow)


@pytest.mark.slow
def test_the_real_compilers_mathematics():
    """One minibatch of equal advantages, one of a single row: zeros after normalisation, in compiled code too."""
    torch.compiler.reset()
    fast = torch.compile(ppo.normalize_advantage, fullgraph=True, dynamic=False)
    for size in (1, 33):
        assert not fast(torch.full((size,), 1234.5678)).any()
        assert not fast(torch.full((size,), 0.1), torch.ones(size).bool()).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", RUNS)
def test_captured_is_eager_on_a_gpu(name):
    device = torch.device("cuda")
    args, runs = small(**RUNS[name]), []
    for fast, compiling in ((True, "on"), (False, "auto"), (False, "off")):  # compiled, captured as it is, eager
        own = replace(args, compile=compiling)
        envs, agent, learner = train.setup(own, device)
        runs.append(run(learner, train.make_iteration(own, envs, agent, learner, fast), 4, args))
    *fast, slow = [(metrics.cpu(), theta.cpu()) for metrics, theta in runs]
    for one in fast:
        assert_same_run(args, one, slow)


def test_a_processor_has_its_own_options_beside_a_card(monkeypatch):
    """`--no-cuda` on a machine with a GPU: the tensors say where code is to run."""
    seen = []

    def compiler(function, *, options, **_):
        seen.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    Compiled(lambda x: x + 1)(torch.ones(3))
    Compiled(lambda x: x + 1)(torch.ones(3, device="meta"))
    assert seen == [CPU_OPTIONS, None]


# The first minibatch: nothing has changed yet, so the new policy is the old one.

FIRST = {
    "discrete": {},
    "discrete, shared": {"shared_backbone": True},
    "continuous": {"env_id": "Pendulum-v1"},
    "continuous, shared": {"env_id": "Pendulum-v1", "shared_backbone": True},
}


def rolled_out(args):
    """Learner, agent and the batch of a first rollout, from the program's own pieces."""
    envs, agent, learner = train.setup(args, CPU)
    draw, obs = torch.Generator().manual_seed(0), envs.reset(seed=0)[0].clone()
    noise = agent.head.draw_noise((args.num_steps, args.num_envs), draw), envs.draw_noise(args.num_steps)
    with torch.no_grad():
        rollout = train.new_rollout(args, envs, agent)
        train.collect(agent, envs, (*envs.state, obs), rollout[:-1], noise)
        value = agent.value(torch.cat([rollout.obs, obs[None]]))
        return learner, agent, train.advantages(agent, args, rollout, value, None)[0]


def minibatches(args, batch, seed=0):
    """An epoch's, from the program's own pieces."""
    order = torch.randperm(args.batch_size, generator=torch.Generator().manual_seed(seed))
    shuffled = train.shuffled(args, None, batch, order)
    return ppo.split(shuffled, ppo.minibatch_sizes(args.batch_size, args.num_minibatches))


def updated(agent, args, learner, parts):
    """One update of one process on a minibatch in parts."""
    find = crew.in_turn(partial(train.gradient, agent, args))
    return train.update(args, learner, Ranks(CPU), find, train.step, parts)


def statistics(args, agent, learner, batch):
    shapes = {name: p.shape for name, p in agent.named_parameters()}
    parameters = train.networks.unflatten(learner.theta, shapes)
    log_prob, _, _ = functional_call(agent, parameters, (batch.obs, batch.action))
    row = dict(zip(train.STATISTICS, train.loss(parameters, agent, args, batch)[1], strict=False))
    return (log_prob - batch.log_prob).exp(), row


@pytest.mark.parametrize("name", FIRST)
def test_the_first_minibatch_has_ratio_1(name):
    """Within 1e-6, in every row; KL 0 within 1e-7, and no row clipped. After an update all three have moved."""
    args = small(num_envs=64, num_steps=16, **FIRST[name])
    learner, agent, batch = rolled_out(args)
    first, *others = minibatches(args, batch)
    assert len(first.obs) == 256 and len(others) == 3
    with torch.no_grad():
        for minibatch in (first, *others):
            ratio, row = statistics(args, agent, learner, minibatch)
            assert (ratio - 1).abs().max() <= 1e-6
            assert all(abs(row[kl].item()) < 1e-7 for kl in ("approx_kl", "old_approx_kl"))
            assert row["clipfrac"].item() == 0.0
            # Each minibatch's advantages have mean 0 once normalised, those of its rows alone, and so has the loss at
            # ratio 1.
            assert row["policy_loss"].item() == pytest.approx(0.0, abs=1e-6)
            assert minibatch.advantage.std().item() == pytest.approx(1.0, abs=1e-5)
        for _ in range(20):
            updated(agent, args, learner, [first])
        ratio, row = statistics(args, agent, learner, first)
    assert (ratio - 1).abs().max() > 1e-3 and row["approx_kl"].item() > 1e-6 and row["policy_loss"].item() < -1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_an_update_in_parts_is_that_of_the_whole(masked):
    """Of parts with unlike numbers of valid rows: gradient, statistics and so the parameters after it."""
    args = small(num_envs=64, num_steps=16)
    learner, agent, batch = rolled_out(args)
    if masked:
        batch = batch._replace(valid=torch.rand(args.batch_size, generator=torch.Generator().manual_seed(2)) < 0.5)
    minibatch = minibatches(args, batch)[0]
    found = []
    with torch.no_grad():
        for sizes in ([256], [128, 128], [1, 200, 55]):
            own = type(learner)(*(x.clone() for x in learner))
            row = updated(agent, args, own, ppo.split(minibatch, sizes))
            found.append(torch.cat([own.moment1 / own.moment1.abs().max(), row]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flags", [{}, {"env_id": "Pendulum-v1"}, {"shared_backbone": True}], ids=str)
def test_the_first_update_of_a_compiled_iteration_has_kl_0(graphs, flags):
    """With one epoch of one minibatch the metrics are those of the first minibatch. Rollout and update are different
    graphs, with products of different sizes."""
    args = small(update_epochs=1, num_minibatches=1, **flags)
    _, iteration = built(args, fast=True)
    metrics = iteration()
    assert abs(metrics[KL].item()) < 1e-7 and metrics[CLIPFRAC].item() == 0.0


# Host synchronisation.


class Looks(TorchDispatchMode):
    """Counts what makes the host wait for a device: a number read, or a shape that depends on the data."""

    def __init__(self):
        super().__init__()
        self.numbers = self.shapes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.numbers += func is torch.ops.aten._local_scalar_dense.default
        self.shapes += func in (torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("target_kl", [None, 1e6, 1e-9])
def test_looks_of_an_iteration_on_a_cpu(target_kl):
    """One for the truncated rows, and with a KL limit one after every epoch: on a CPU neither waits for anything."""
    args = small(target_kl=target_kl)
    _, iteration = built(args)
    with Looks() as looks:
        iteration()
    epochs = {None: 0, 1e6: args.update_epochs, 1e-9: 1}[target_kl]
    assert (looks.numbers, looks.shapes) == (epochs, 1)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Takes the branches that are written for a GPU, on CPU tensors."""
    sum_up = ppo._reverse_sum

    def without_numpy(*args):
        with patch.object(torch.compiler, "is_compiling", lambda: True):
            return sum_up(*args)

    monkeypatch.setattr(ppo, "_reverse_sum", without_numpy)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))


def built_of_fakes(args):
    """One iteration; as `setup` makes it, less the agent's move to its device, which fake parameters can't make."""
    envs = train.environments.make(args.env_id, args.num_envs, CPU)
    agent = train.Agent(envs, args)
    learner = ppo.new_learner(train.networks.flatten_parameters(agent), args.learning_rate)
    return train.make_iteration(args, envs, agent, learner, fast=False)


@pytest.mark.parametrize("target_kl", [None, 0.02])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_an_iteration_on_a_gpu_never_looks_at_the_device(as_on_a_gpu, monkeypatch, env_id, target_kl):
    """Fake tensors have shapes and no contents, so whatever would read one raises."""
    monkeypatch.setattr(capture, "fast_products", lambda function: function)  # it probes a product
    with FakeTensorMode(allow_non_fake_inputs=False):
        iteration = built_of_fakes(small(env_id=env_id, target_kl=target_kl))
        assert iteration().shape == (len(train.METRICS),)
        with pytest.raises(DataDependentOutputException):
            iteration().tolist()


def test_a_look_would_be_seen(monkeypatch):
    """The branch for a CPU looks at the truncated rows, which the test above would refuse."""
    monkeypatch.setattr(capture, "fast_products", lambda function: function)
    with FakeTensorMode(allow_non_fake_inputs=False), pytest.raises(DynamicOutputShapeException):
        built_of_fakes(small())()


def test_the_gpus_branches_compute_the_same(monkeypatch):
    """Values of all final observations instead of the truncated ones only: the same up to rounding."""
    args = small(env_id="Pendulum-v1", num_steps=205)  # truncated at 200
    cpu = rolled_out(args)[2]
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    gpu = rolled_out(args)[2]
    for name in ("advantage", "returns", "value"):
        torch.testing.assert_close(getattr(gpu, name), getattr(cpu, name), rtol=1e-6, atol=1e-4)


# The epochs of an iteration.


@pytest.mark.parametrize("gpu", [False, True])
def test_early_stop(monkeypatch, gpu):
    """With a limit that the first epoch exceeds, its four updates are the only ones: learner and statistics are those
    of one epoch without a limit. On a CPU the epochs end; on a GPU the other updates change nothing."""
    args = small(num_envs=64, num_steps=16, learning_rate=0.01)
    learner, agent, batch = rolled_out(args)
    if gpu:
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))

    def learned(**flags):
        changed = copy.deepcopy(args)
        for name, value in flags.items():
            setattr(changed, name, value)
        own = type(learner)(*(x.clone() for x in learner))
        calls = []

        def update(parts):
            calls.append([len(part.obs) for part in parts])
            return updated(agent, changed, own, parts)

        with torch.no_grad():
            shuffle = partial(train.shuffled, changed, None)
            means = train.learn(changed, shuffle, update, batch, own, torch.Generator().manual_seed(0))
        return own, means, calls

    limited, means, calls = learned(target_kl=1e-6)
    single, single_means, _ = learned(update_epochs=1)
    free, _, all_calls = learned()
    assert calls == [[256]] * (16 if gpu else 4) and all_calls == [[256]] * 16
    assert limited.step.item() == 4 and free.step.item() == 16
    for a, b in zip(limited[:4], single[:4], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(means, single_means)
    generous, _, _ = learned(target_kl=1e6)
    assert torch.equal(generous.theta, free.theta)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("batch", "count"), [(130, 4), (64, 4), (7, 7), (5, 1)])
def test_every_row_is_learned_from_once_an_epoch(batch, count, parts):
    """Minibatches and their parts differ by one row at most; a row keeps its columns together."""
    args = small(num_envs=batch, num_steps=1, num_minibatches=count, update_epochs=3, norm_adv=False)
    seen = []

    def update(parts):
        seen.append(parts)
        return torch.zeros(len(train.STATISTICS))

    rows = torch.arange(float(batch))
    learner, draw = ppo.new_learner(torch.zeros(1), 0.0), torch.Generator().manual_seed(0)
    shuffle = partial(train.shuffled, args, None)
    train.learn(args, shuffle, update, Batch(*[rows] * 6, None), learner, draw, parts)
    assert all(torch.equal(column, part.obs) for pieces in seen for part in pieces for column in part[:-1])
    epochs = torch.cat([part.obs for pieces in seen for part in pieces]).view(3, batch)
    assert len(seen) == 3 * count
    assert all(torch.equal(epoch.sort().values, rows) for epoch in epochs)
    if batch > 5:
        assert not torch.equal(epochs[0], epochs[1])
    sizes = [[len(part.obs) for part in pieces] for pieces in seen]
    assert all(len(pieces) == parts and max(pieces) - min(pieces) <= 1 for pieces in sizes)
    assert max(map(sum, sizes)) - min(map(sum, sizes)) <= 1


def test_equal_seeds_give_equal_runs():
    """Bit for bit; another seed gives another run. The learning rate is annealed in both."""
    args, other = small(), small(seed=2)
    first, same, different = (run(*built(a), 3, a)[1] for a in (args, args, other))
    assert torch.equal(first, same)
    assert not torch.equal(first[-1], different[-1])


def test_verify_says_at_once_what_takes_so_long(graphs, capsys):
    said = []

    def compiles(args, envs, agent, learner, fast, ranks):
        said.append(capsys.readouterr().out)
        return train.make_iteration(args, envs, agent, learner, fast, ranks)

    result = session.compare_paths(small(verify=3), train.setup, compiles, train.METRICS, CPU)
    assert said[0] == f"compiling CartPole-v1 ({capture.COMPILING}); then 3 updates of both paths\n"
    assert result == {"verified": True, "exit_status": 0} and "the two paths agree" in capsys.readouterr().out
