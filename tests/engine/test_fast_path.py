# Tensors unbound into arguments and heads that are one of three: pyright can't count or tell them.
# pyright: reportCallIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
"""The compiled path against the eager one: same numbers, no graph breaks, no recompiles, no look at the device.

Most tests compile with the backend "aot_eager": dynamo and autograd trace the same graphs, with the same guards and the
spellings meant for the compiler, but their kernels are torch's own, which costs a tenth of the time. One tiny case goes
through the compiler as it is. Letters: T steps, N envs, M minibatch.
"""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from iterations import CPU, VARIANTS, Ran, built, once, run, small
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_fast import train
from ppo_fast.algorithm import adam, ppo, scan
from ppo_fast.algorithm.statistics import Statistics
from ppo_fast.engine import plan, process
from ppo_fast.engine.compiled import CPU_OPTIONS, Compiled
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.flat import flatten_parameters
from ppo_fast.engine.gradients import Gradient, LossModule, part_gradient
from ppo_fast.engine.ranks import Ranks
from ppo_fast.run import verification
from ppo_fast.train import Batch, Executables

# torch warns of what torch.compile itself does: it instantiates an autograd.Function, and imports torch.jit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]

# Compiled and eager kernels order their sums differently and use another tanh (error up to 4e-7): what float32 rounding
# makes of numbers of size 1. Adam divides a gradient by its own size, so a rounding difference in a gradient moves a
# parameter by up to that relative size times the learning rate, not more: over some tens of updates deviations of 1e-6
# were measured, and ten times that is allowed. A wrong term in the loss moves parameters by the learning rate, 2.5e-3.
TOLERANCE = 1e-5


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


def assert_same_run(args, fast: Ran, slow: Ran):
    """Parameters and metrics after every iteration; the metrics of a rollout exactly, so the actions were the same."""
    assert (fast.theta - slow.theta).abs().max() <= TOLERANCE
    assert (slow.theta[-1] - slow.theta[0]).abs().max() > 100 * TOLERANCE
    for metrics, wanted in zip(fast.metrics, slow.metrics, strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-4, abs=1e-4, nan_ok=True)
        # A NEXT_STEP environment has junk rows, which are no steps.
        assert metrics["steps"] == args.batch_size or args.env_id == "odd_envs:NextStep-v0"
        if args.env_id == "CartPole-v1":
            assert all(metrics[name] == wanted[name] for name in ("returns", "lengths", "episodes"))


COLUMNS = [name for name in train.Rollout._fields if name != "valid"]  # of environments without junk rows


SLOW = pytest.mark.slow


# By default the one that differs most, three more in the slow tests, all in the thorough ones, by the real compiler.
@pytest.mark.parametrize(
    "name", ["normalised", *(pytest.param(name, marks=SLOW) for name in ("uneven", "early stop", "continuous"))]
)
def test_compiled_is_eager_without_recompiling(graphs, name):
    """Four iterations; nothing compiles in them, though the learning rate changes, and dynamo is not even asked."""
    args = small(**VARIANTS[name])
    args.total_timesteps = args.batch_size * 10
    slow = run(built(args), 4, args)
    fast = built(args, "compiled")
    compiled = graphs.frame_count
    asked = graphs.asked
    assert compiled >= 5  # a chunk of the rollout, values, an epoch's order, a gradient, a step
    with torch.compiler.set_stance("fail_on_recompile"):
        ran = run(fast, 4, args)
    assert graphs.frame_count == compiled and graphs.asked == asked
    assert_same_run(args, ran, slow)
    assert fast.engine.report().words == "compiled, 5 functions"


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


@SLOW
def test_two_runs_in_one_process_have_their_own_graphs(graphs):
    """Another run's flags are constants in its graphs: they must neither be reused nor force the first to recompile."""
    first, second = small(), small(clip_coef=0.05, ent_coef=0.5)
    slow = [run(built(args), 3, args) for args in (first, second)]
    pairs = [built(args, "compiled") for args in (first, second)]
    compiled = graphs.frame_count
    with torch.compiler.set_stance("fail_on_recompile"):
        fast = [run(pair, 3, args) for pair, args in zip(pairs, (first, second), strict=True)]
    assert graphs.frame_count == compiled
    for args, a, b in zip((first, second), fast, slow, strict=True):
        assert_same_run(args, a, b)
    assert (fast[0][1] - fast[1][1]).abs().max() > 100 * TOLERANCE


def test_trying_out_leaves_no_trace(graphs):
    """Compiling runs an iteration; afterwards learner, environments and random numbers are as at the start."""
    iteration, plain = built(small(), "compiled").iteration, built(small()).iteration
    mine, others = iteration.state.saved(), plain.state.saved()
    assert mine.keys() == others.keys()
    for name, tensor in others.items():
        assert torch.equal(mine[name], tensor), name
    for ours, theirs in zip(iteration.generators, plain.generators, strict=True):
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("mode", ["eager", "recorded", pytest.param("compiled", marks=SLOW)])
@pytest.mark.parametrize("flags", [{"num_steps": 10}, {"backend": "sync"}], ids=["tensor", "host"])
def test_rollouts_follow_on_one_another(graphs, flags, mode):
    """From step to step, from chunk to chunk and from iteration to iteration; each action with its own probability."""
    args = small(**flags)
    agent, _, iteration, _ = built(args, mode)
    ends, state = 0, iteration.state
    for _ in range(6):
        before = state.environments["obs"].clone()
        iteration.collect()
        rollout = train.Rollout(**{"valid": None} | {name: state.rollout[name].clone() for name in COLUMNS})
        goes_on = ~(rollout.terminated | rollout.truncated)
        following = torch.cat([rollout.obs[1:], state.environments["obs"][None]])
        assert torch.equal(rollout.obs[0], before)
        assert torch.equal(following[goes_on], rollout.final_obs[goes_on])
        assert (following[~goes_on] != rollout.final_obs[~goes_on]).any(-1).all()
        with torch.no_grad():
            log_prob = agent(rollout.obs, rollout.action)[0]
        torch.testing.assert_close(log_prob, rollout.log_prob, rtol=0, atol=1e-6)
        assert (rollout.reward == 1).all()
        iteration.learn()
        ends += int((~goes_on).sum())
    assert ends > 3


@SLOW
def test_the_real_compiler_on_a_gradient():
    """Part of a run, so that it takes seconds: what the compiler makes of loss and backward beside autograd."""
    torch.compiler.reset()
    counters.clear()
    args = small(hidden_sizes=(8,))
    run = rolled_out(args)
    rows = minibatches(args, run.batch)[0]
    module = LossModule(train.loss, run.agent, args)
    fast = Compiled(partial(part_gradient, module))
    with torch.no_grad():
        wanted = part_gradient(module, run.learner.theta, rows, 1.0)
        for _ in range(2):  # the second time straight to its code
            found = fast(run.learner.theta, rows, 1.0)
            assert found.names == wanted.names
            torch.testing.assert_close(found.sums, wanted.sums, rtol=1e-4, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", VARIANTS)
def test_the_real_compiler_on_every_kind_of_run(name):
    torch.compiler.reset()
    args = small(**VARIANTS[name])
    args.total_timesteps = args.batch_size * 10
    slow = run(built(args), 5, args)
    fast = built(args, "compiled")
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same_run(args, run(fast, 5, args), slow)


@pytest.mark.thorough
def test_the_real_compilers_mathematics():
    """One minibatch of equal advantages, one of a single row: zeros after normalisation, in compiled code too."""
    torch.compiler.reset()
    fast = torch.compile(ppo.normalize_advantage, fullgraph=True, dynamic=False)
    for size in (1, 33):
        assert not fast(torch.full((size,), 1234.5678)).any()
        assert not fast(torch.full((size,), 0.1), torch.ones(size).bool()).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", VARIANTS)
def test_captured_is_eager_on_a_gpu(name):
    args, runs = small(**VARIANTS[name]), []
    for mode, compiling in (("compiled", "on"), ("eager", "auto"), ("eager", "off")):  # the second captured as it is
        own = replace(args, compile=compiling)
        ran = run(built(own, mode, Ranks(torch.device("cuda"))), 4, args)
        runs.append(Ran(ran.metrics, ran.theta.cpu()))
    *fast, slow = runs
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


class RolledOut:
    """A run after its first rollout, before any update, and its functions as they are."""

    def __init__(self, args):
        self.args = args
        self.envs, self.agent, self.learner = train.setup(args, CPU)
        obs = self.envs.reset(seed=0)[0].clone()
        draw = torch.Generator().manual_seed(0)
        noise = self.agent.head.draw_noise((args.num_steps, args.num_envs), draw)
        carry = train.Carry(self.envs.state, obs)
        self.run = self.executables()
        with torch.no_grad():
            noise = train.Noise(noise, self.envs.draw_noise(args.num_steps))
            carry, self.rollout = train.collect(self.agent, self.envs, carry, noise)
            self.batch = train.advantages(args, self.agent, self.learner, self.rollout, carry.obs, self.run)

    def executables(self, args=None, learner=None, parts=1):
        """The functions of an iteration as they are written."""
        args, learner = args or self.args, learner or self.learner
        module = LossModule(train.loss, self.agent, args)

        def each(calls):
            return [part_gradient(module, *call) for call in calls]

        return Executables(
            value=self.agent.value,
            shuffled=partial(train.shuffled, args, None),
            gradient=Gradient(each, learner.theta, parts, 1, None),
            descend=partial(train.descend, args),
            reduce=None,
        )


def rolled_out(args):
    """Learner, agent and the batch of a first rollout, from the program's own pieces."""
    return RolledOut(args)


def minibatches(args, batch, seed=0):
    """An epoch's, from the program's own pieces."""
    order = torch.randperm(args.batch_size, generator=torch.Generator().manual_seed(seed))
    shuffled = train.shuffled(args, None, batch, order)
    return ppo.split(shuffled, ppo.even_sizes(args.batch_size, args.num_minibatches))


def copied(learner):
    return type(learner)(*(x.clone() for x in learner))


def updated(run, learner, minibatch, parts=1):
    """One update of one process on a minibatch in parts: what is logged of it."""
    for mine, x in zip(run.learner, learner, strict=True):
        mine.copy_(x)  # the agent's parameters are views of this learner's
    functions = run.executables(parts=parts)
    gradient, losses = functions.gradient(minibatch)
    norm = functions.descend(run.learner, gradient, losses.numbers)
    for x, mine in zip(learner, run.learner, strict=True):
        x.copy_(mine)
    return torch.cat([losses.numbers, norm[None]])


def ratios(run, minibatch):
    """The ratios of a minibatch and what is logged of it, by name."""
    log_prob, _, _ = run.agent(minibatch.obs, minibatch.action)
    return (log_prob - minibatch.log_prob).exp(), train.loss(run.agent, run.args, minibatch)[1]


@pytest.mark.parametrize("name", FIRST)
def test_the_first_minibatch_has_ratio_1(name):
    """Within 1e-6, in every row; KL 0 within 1e-7, and no row clipped. After an update all three have moved."""
    args = small(num_envs=64, num_steps=16, **FIRST[name])
    run = rolled_out(args)
    first, *others = minibatches(args, run.batch)
    assert len(first.obs) == 256 and len(others) == 3
    with torch.no_grad():
        for minibatch in (first, *others):
            ratio, row = ratios(run, minibatch)
            assert (ratio - 1).abs().max() <= 1e-6
            assert all(abs(row[kl].item()) < 1e-7 for kl in ("approx_kl", "old_approx_kl"))
            assert row["clipfrac"].item() == 0.0
            # Each minibatch's advantages have mean 0 once normalised, those of its rows alone, and so has the loss at
            # ratio 1.
            assert row["policy_loss"].item() == pytest.approx(0.0, abs=1e-6)
            assert minibatch.advantage.std().item() == pytest.approx(1.0, abs=1e-5)
        for _ in range(20):
            updated(run, run.learner, first)
        ratio, row = ratios(run, first)
    assert (ratio - 1).abs().max() > 1e-3 and row["approx_kl"].item() > 1e-6 and row["policy_loss"].item() < -1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_an_update_in_parts_is_that_of_the_whole(masked):
    """Of parts with unlike numbers of valid rows: gradient, statistics and so the parameters after it."""
    args = small(num_envs=64, num_steps=16)
    run = rolled_out(args)
    batch = run.batch
    if masked:
        batch = batch._replace(valid=torch.rand(args.batch_size, generator=torch.Generator().manual_seed(2)) < 0.5)
    minibatch = minibatches(args, batch)[0]
    start, found = copied(run.learner), []
    with torch.no_grad():
        for parts in (1, 2, 3):
            own = copied(start)
            row = updated(run, own, minibatch, parts)
            found.append(torch.cat([own.moment1 / own.moment1.abs().max(), row]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "flags",
    [{}, *(pytest.param(flags, marks=SLOW) for flags in ({"env_id": "Pendulum-v1"}, {"shared_backbone": True}))],
    ids=str,
)
def test_the_first_update_of_a_compiled_iteration_has_kl_0(graphs, flags):
    """With one epoch of one minibatch the metrics are those of the first minibatch. Rollout and update are different
    graphs, with products of different sizes."""
    args = small(update_epochs=1, num_minibatches=1, **flags)
    metrics = once(built(args, "compiled").iteration)
    assert abs(metrics["losses/approx_kl"]) < 1e-7 and metrics["losses/clipfrac"] == 0.0


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
    iteration = built(args).iteration
    with Looks() as looks:
        iteration.collect()
        iteration.learn()
    epochs = {None: 0, 1e6: args.update_epochs, 1e-9: 1}[target_kl]
    assert (looks.numbers, looks.shapes) == (epochs, 1)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Takes the branches that are written for a GPU, on CPU tensors."""
    sum_up = scan.linear_scan

    def without_numpy(*args, **kwargs):
        with patch.object(torch.compiler, "is_compiling", lambda: True):
            return sum_up(*args, **kwargs)

    monkeypatch.setattr(ppo, "linear_scan", without_numpy)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))


def built_of_fakes(args):
    """One iteration; as `setup` makes it, less the agent's move to its device, which fake parameters can't make."""
    envs = train.environments.make(args.env_id, args.num_envs, CPU)
    agent = train.Agent(envs, args)
    learner = adam.new_learner(flatten_parameters(agent), args.learning_rate)
    return train.make_iteration(args, envs, agent, learner, Engine(args, Ranks(CPU), "eager"))


@pytest.mark.parametrize("target_kl", [None, 0.02])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_an_iteration_on_a_gpu_never_looks_at_the_device(as_on_a_gpu, monkeypatch, env_id, target_kl):
    """Fake tensors have shapes and no contents, so whatever would read one raises."""
    monkeypatch.setattr(process, "fast_products_are_exact", lambda: False)  # it tries a product
    with FakeTensorMode(allow_non_fake_inputs=False):
        iteration = built_of_fakes(small(env_id=env_id, target_kl=target_kl))
        iteration.collect()
        metrics = iteration.learn()
        assert len(metrics.means) == 9 and len(metrics.sums) == 5
        with pytest.raises(DataDependentOutputException):
            metrics.means["losses/value_loss"].item()


def test_a_look_would_be_seen(monkeypatch):
    """The branch for a CPU looks at the truncated rows, which the test above would refuse."""
    monkeypatch.setattr(process, "fast_products_are_exact", lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=False), pytest.raises(DynamicOutputShapeException):
        iteration = built_of_fakes(small())
        iteration.collect()
        iteration.learn()


def test_the_gpus_branches_compute_the_same(monkeypatch):
    """Values of all final observations instead of the truncated ones only: the same up to rounding."""
    args = small(env_id="Pendulum-v1", num_steps=205)  # truncated at 200
    cpu = rolled_out(args).batch
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    gpu = rolled_out(args).batch
    for name in ("advantage", "returns", "value"):
        torch.testing.assert_close(getattr(gpu, name), getattr(cpu, name), rtol=1e-6, atol=1e-4)


# The epochs of an iteration.


@pytest.mark.parametrize("gpu", [False, True])
def test_early_stop(monkeypatch, gpu):
    """With a limit that the first epoch exceeds, its four updates are the only ones: learner and statistics are those
    of one epoch without a limit. On a CPU the epochs end; on a GPU the other updates change nothing."""
    args = small(num_envs=64, num_steps=16, learning_rate=0.01)
    run = rolled_out(args)
    start = copied(run.learner)
    if gpu:
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))

    def learned(**flags):
        changed = replace(args, **flags)
        for mine, x in zip(run.learner, start, strict=True):
            mine.copy_(x)
        functions = run.executables(changed)
        calls = []

        def gradient(minibatch):
            calls.append(len(minibatch.obs))
            return functions.gradient(minibatch)

        with torch.no_grad():
            draw = torch.Generator().manual_seed(0)
            means = train.epochs(changed, run.learner, run.batch, draw, functions._replace(gradient=gradient))
        return copied(run.learner), means, calls

    limited, means, calls = learned(target_kl=1e-6)
    single, single_means, _ = learned(update_epochs=1)
    free, _, all_calls = learned()
    assert calls == [256] * (16 if gpu else 4) and all_calls == [256] * 16
    assert limited.step.item() == 4 and free.step.item() == 16
    for a, b in zip(limited[:4], single[:4], strict=True):
        assert torch.equal(a, b)
    for name, x in single_means.items():
        torch.testing.assert_close(means[name], x)
    generous, _, _ = learned(target_kl=1e6)
    assert torch.equal(generous.theta, free.theta)


@pytest.mark.parametrize(("batch", "count"), [(130, 4), (64, 4), (7, 7), (5, 1)])
def test_every_row_is_learned_from_once_an_epoch(batch, count):
    """Minibatches differ by one row at most; a row keeps its columns together."""
    args = small(num_envs=batch, num_steps=1, num_minibatches=count, update_epochs=3, norm_adv=False)
    seen = []

    def gradient(minibatch):
        seen.append(minibatch)
        return torch.zeros(1), Statistics(("approx_kl",), torch.zeros(1))

    rows = torch.arange(float(batch))
    learner, draw = adam.new_learner(torch.zeros(1), 0.0), torch.Generator().manual_seed(0)
    functions = Executables(
        value=lambda obs: obs,
        shuffled=partial(train.shuffled, args, None),
        gradient=gradient,
        descend=partial(train.descend, args),
        reduce=None,
    )
    train.epochs(args, learner, Batch(*[rows] * 6, None), draw, functions)
    assert all(torch.equal(column, minibatch.obs) for minibatch in seen for column in minibatch[:-1])
    epochs = torch.cat([minibatch.obs for minibatch in seen]).view(3, batch)
    assert len(seen) == 3 * count
    assert all(torch.equal(epoch.sort().values, rows) for epoch in epochs)
    if batch > 5:
        assert not torch.equal(epochs[0], epochs[1])
    sizes = [len(minibatch.obs) for minibatch in seen]
    assert max(sizes) - min(sizes) <= 1


def test_equal_seeds_give_equal_runs():
    """Bit for bit; another seed gives another run. The learning rate is annealed in both."""
    args, other = small(), small(seed=2)
    first, same, different = (run(built(a), 3, a).theta for a in (args, args, other))
    assert torch.equal(first, same)
    assert not torch.equal(first[-1], different[-1])


def test_verify_says_at_once_what_takes_so_long(graphs, capsys):
    said = []

    def compiles(args, envs, agent, learner, engine):
        said.append(capsys.readouterr().out)
        return train.make_iteration(args, envs, agent, learner, engine)

    result = verification.compare_paths(small(verify=3), train.setup, compiles, CPU)
    assert said[0] == f"compiling CartPole-v1 ({plan.COMPILING}); then 3 updates of both paths\n"
    assert result == {"verified": True, "exit_status": 0} and "the two paths agree" in capsys.readouterr().out


def test_actions_and_environments_draw_from_streams_of_their_own():
    """With one seed: the first numbers of one are not the first numbers of the other, whatever their order."""
    iteration = built(small(num_envs=64)).iteration
    draw, environments = iteration.generators
    mine = torch.rand(1000, generator=draw)
    theirs = torch.rand(1000, generator=environments.manual_seed(1))
    assert not torch.isin(mine, theirs).any()
    again = built(small(num_envs=64)).iteration.generators[0]
    assert torch.equal(torch.rand(1000, generator=again), mine)
