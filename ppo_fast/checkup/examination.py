"""The examination of an environment: each form in which it exists, as a single one and as a vector."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from ppo_fast import envs as environments
from ppo_fast.checkup.again import Again
from ppo_fast.checkup.ends import Ends, KnownLimits, ends_of, limits_of, look_at_ends, look_at_resets
from ppo_fast.checkup.findings import Finding, Findings, Tell, within
from ppo_fast.checkup.numbers import Figures, look_at_observations, look_at_rewards
from ppo_fast.checkup.pace import Pace, measure
from ppo_fast.checkup.record import Record
from ppo_fast.checkup.values import look_at_action_space
from ppo_fast.checkup.vectors import Vector
from ppo_fast.checkup.walk import SEED, Walk
from ppo_fast.envs import factory, keywords
from ppo_fast.envs.closing import LEAST, call_within
from ppo_fast.envs.fitting import FIRST_RESET, begun, short_space
from ppo_fast.envs.masks import Masks, find_masks, masks_in_observation
from ppo_fast.envs.settings import theirs_of
from ppo_fast.envs.singles import made
from ppo_fast.envs.spaces import ObservationEncoder, presented_actions
from ppo_fast.names import first_line, kind_and_line
from ppo_fast.stops import is_of_code

CLOSING = 5.0  # seconds that close() may take
SLOW_RESET = 1.0  # seconds
SLOW_STEP = 100  # times the median
AGAIN = 8  # how often the steps are made once more to be compared, at most
COMPARED = 500  # steps that are
WALKING = 0.4  # of the seconds of one form go into its first walk
VECTOR_ENVS = 8
SEVERAL = 64  # environments that are timed: as many as training has
FEW = 8  # where one takes long to make
SLOW_TO_MAKE = 0.05  # seconds
SUBJECTS = {"tensor": "tensor environment", "entry_point": "vector entry point", "envpool": "envpool"}


class Limits(NamedTuple):
    """What the examination may take."""

    steps: int  # of the first walk
    seconds: float  # of all but the timing of backends
    timeout: float  # that one call of an environment may take


class Seconds(NamedTuple):
    """How long calls of a single environment take."""

    median_step: float
    longest_step: float
    median_reset: float
    longest_reset: float


@dataclass
class Facts:
    """What is known of one form of an environment. What is None was not found out."""

    subject: str
    observation_space: str = ""
    action_space: str = ""
    masks: str = ""
    seen_observations: str = ""
    seen_actions: str = ""
    autoreset: str = ""
    render_modes: str = ""
    steps: int = 0
    ends: Ends | None = None
    reward: Figures | None = None
    numbers: dict[str, Figures] = field(default_factory=dict)
    seconds: Seconds | None = None


@dataclass
class Diagnosis:
    """All that was found out about an environment."""

    env_id: str
    auto: str
    """the backend that `auto` takes"""
    backends: tuple[str, ...]
    max_episode_steps: int | None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    facts: list[Facts] = field(default_factory=list)
    paces: list[Pace] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """what was not looked at"""
    training: tuple[str, ...] = ()
    """the flags that training sets here, in lines"""

    def add(self, found: Findings) -> None:
        """Take over what was found about one subject."""
        self.findings += found.all
        self.left_out += [f"{found.subject}: {what}" for what in found.left_out]


def examine(
    env_id: str,
    backend: str,
    limits: Limits,
    tell: Tell | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Look at an environment as a single one, where it is one, and as the vector that a backend steps.

    Raises:
        ValueError: naming --env-id, --env-kwargs or --backend: there is no such environment, it does not take a
            keyword, or it has no such backend.
    """
    kwargs = keywords.checked(env_kwargs or {})
    found = Findings(env_id, tell)
    found.at("imported")
    try:
        backends = factory.available_backends(env_id)
        spec = factory.find_spec(env_id)
        auto = factory.auto_backend(env_id, kwargs)
    except ValueError:
        raise
    except BaseException as problem:  # of the module that registers it
        found.raised(problem, "imported")
        return Diagnosis(env_id, "", (), None, findings=found.all)
    chosen = auto if backend == "auto" else backend
    if chosen not in backends:
        raise ValueError(f"--backend: {env_id} has no {chosen} backend; it has {', '.join(backends)}")
    if kwargs:
        _refuse_keywords(env_id, chosen, kwargs)
    if spec is not None:
        spec = _with_keywords(spec, kwargs)
    diagnosis = Diagnosis(env_id, auto, backends, None if spec is None else spec.max_episode_steps, kwargs)
    is_vector = chosen in SUBJECTS
    share = limits._replace(seconds=limits.seconds / (1 + (is_vector and "sync" in backends)))
    if spec is not None and "sync" in backends:
        single = SingleExamination(env_id, spec, share, tell)
        single.run()
        diagnosis.facts.append(single.facts)
        diagnosis.add(single.found)
    if is_vector:
        _examine_vector(diagnosis, chosen, share, tell)
    return diagnosis


def _refuse_keywords(env_id: str, backend: str, kwargs: Mapping[str, Any]) -> None:
    """ValueError where the environment does not take one of the keywords: that is no finding. Others are made later."""
    try:
        environments.make(env_id, 1, "cpu", backend, env_kwargs=kwargs).close()
    except ValueError as problem:
        if str(problem).startswith("--env-kwargs"):
            raise
    except environments.EnvironmentFault:
        return


def _with_keywords(spec: EnvSpec, kwargs: Mapping[str, Any]) -> EnvSpec:
    """The spec of an environment that is made with these keywords."""
    own = dict(kwargs)
    limit = own.pop(keywords.LIMIT, spec.max_episode_steps)
    return replace(spec, kwargs={**spec.kwargs, **own}, max_episode_steps=None if limit == -1 else limit)


def time_backends(diagnosis: Diagnosis, seconds: float, timeout: float, tell: Tell | None = None) -> None:
    """Add the pace of each backend to a diagnosis."""
    keys = {finding.key for finding in diagnosis.findings if finding.severity == "error"}
    single = next((facts for facts in diagnosis.facts if facts.subject == SingleExamination.SUBJECT), None)
    if keys & FATAL and len(diagnosis.facts) == 1:
        diagnosis.left_out.append("the pace of the backends: it does not run")
        return
    made_slowly = single is not None and single.seconds is not None and single.seconds.longest_reset > SLOW_TO_MAKE
    only_one = any(finding.key == "one-instance" for finding in diagnosis.findings)
    for backend in diagnosis.backends:
        if only_one and backend in ("sync", "async"):
            num_envs = 1
        else:
            num_envs = FEW if made_slowly and backend in ("sync", "async") else SEVERAL
        found = Findings(f"backend {backend}", tell)
        diagnosis.paces.append(
            measure(diagnosis.env_id, backend, num_envs, seconds, timeout, found, diagnosis.env_kwargs)
        )
        for finding in found.all:
            severity = "error" if backend == diagnosis.auto else "warning"
            if not any(other.key == finding.key and other.what == finding.what for other in diagnosis.findings):
                diagnosis.findings.append(Finding(severity, finding.key, finding.where, finding.what, finding.advice))


# Findings after which an environment can't be stepped further.
FATAL = {"raises", "misfit", "hangs", "unsupported", "space-changes", "dies"}


class SingleExamination:
    """A single environment: what it is and what is wrong with it.

    Attributes:
        found, facts: filled by `run`.
    """

    SUBJECT = "single environment"

    def __init__(self, env_id: str, spec: EnvSpec, limits: Limits, tell: Tell | None) -> None:
        self.found = Findings(self.SUBJECT, tell)
        self.facts = Facts(self.SUBJECT)
        self._env_id = env_id
        self._spec = spec
        self._limits = limits
        self._end = time.monotonic() + limits.seconds
        self._walk: Walk | None = None
        self._known = KnownLimits(spec.max_episode_steps, {}, frozenset())

    def run(self) -> None:
        """Look at everything that time allows."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of its first walk are heard there
            self._run()

    def _run(self) -> None:
        within(self._limits.seconds + self._limits.timeout, self._look, self.found)
        walk = self._walk
        if walk is None:
            return
        self.facts.steps = len(walk.actions)
        describe(self.facts, walk.record, self._known, _bounds(walk.encoder.space, walk.record), self.found)
        look_at_resets(walk.record, self.found)
        if walk.step_seconds:
            self.facts.seconds = _look_at_seconds(walk, self.found)
        steps = self._steps_to_compare(walk)
        if not walk.finished:
            return
        if not steps:
            self.found.left_out.append("whether the same comes out again (no time left; --seconds)")
            return
        goes_on = lambda: time.monotonic() < self._end  # noqa: E731
        closing = LEAST if self.found.has("close") else CLOSING
        actions = walk.actions[:steps]
        again = Again(self._make, walk.encoder, walk.masks, actions, self.found, goes_on, closing)
        seconds = max(1.0, self._end - time.monotonic()) + self._limits.timeout
        within(seconds, again.compare, self.found, "warning")
        within(seconds, self._try_what_is_not_done, self.found, "warning")

    def _make(self) -> gymnasium.Env:
        make = partial(gymnasium.make, self._spec, disable_env_checker=True)
        return made(make, None, theirs_of(self._env_id))

    def _look(self) -> None:
        """Make it, reset it, step it, close it."""
        self.found.at("made")
        env = self._make()
        try:
            self.found.at(FIRST_RESET)
            masks = self._look_at_spaces(env)
            if masks is not None:
                self._walk = Walk(env, masks, self.found)
                self._walk.go(self._limits.steps, self._limits.seconds * WALKING)
        finally:
            self._close(env)

    def _look_at_spaces(self, env: gymnasium.Env) -> Masks | None:
        """Its masks; None where training could not take its spaces."""
        self.facts.observation_space = short_space(env.observation_space)
        self.facts.action_space = short_space(env.action_space)
        self.facts.render_modes = ", ".join(map(str, env.metadata.get("render_modes") or ())) or "none"
        try:
            self.facts.seen_actions = short_space(presented_actions(env.action_space, self._env_id))
            masks = masks_in_observation(env.observation_space, env.action_space, self._env_id)
            ObservationEncoder(env.observation_space, self._env_id)
        except ValueError as problem:
            what = first_line(problem).removeprefix("--env-id: ")
            self.found.error("unsupported", "", what, "see docs/environments.md")
            return None
        look_at_action_space(env.action_space, self.found)
        info = begun(env.reset(seed=SEED))[1]
        self._known = limits_of(env, self._spec.max_episode_steps)
        if not masks.size:
            masks = find_masks(env, info)
        encoder = ObservationEncoder(env.observation_space, self._env_id, masks)
        self.facts.seen_observations = short_space(encoder.space)
        self.facts.masks = f"in the {masks.source}" if masks.source in ("info", "observation") else masks.source
        if masks.source == "method":
            self.facts.masks = "by action_masks()"
        return masks

    def _close(self, env: gymnasium.Env) -> None:
        try:
            call_within(CLOSING, env.close)
        except TimeoutError:
            self.found.warn("close", "close()", f"did not return within {CLOSING:.0f} s", "end what it waits for")
        except BaseException as problem:
            self.found.raised(problem, "close()", "close", "warning")

    def _steps_to_compare(self, walk: Walk) -> int:
        """So many that all comparisons fit into the time that is left."""
        taken = sum(walk.step_seconds) + sum(walk.reset_seconds)
        left = max(0.0, self._end - time.monotonic())
        steps = min(COMPARED, len(walk.actions))
        return min(steps, int(len(walk.actions) * left / (AGAIN * taken))) if taken > 0 else steps

    def _try_what_is_not_done(self) -> None:
        """A first reset without a seed, and an action that its mask forbids."""
        assert self._walk is not None
        self.found.at("a first reset without a seed")
        env = self._make()
        try:
            action = self._walk.forbidden_action(env)
        except BaseException as problem:
            self.found.raised(problem, self.found.place, "unseeded", "warning")
            action = None
        if action is not None:
            self._try_forbidden(env, action)
        self._close(env)

    def _try_forbidden(self, env: gymnasium.Env, action: Any) -> None:
        """Take an action that its mask forbids."""
        self.found.at("a forbidden action")
        try:
            env.step(action)
        except BaseException as problem:
            if not is_of_code(problem):
                raise
            self.found.note("forbidden", "", f"an action that its mask forbids raises {kind_and_line(problem)}")
            return
        self.found.note("forbidden", "", "actions that its mask forbids can be taken, too")


def _bounds(space: spaces.Box, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of the numbers that are kept."""
    kept = record.columns.kept
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    return low[kept].astype(np.float64), high[kept].astype(np.float64)


def describe(
    facts: Facts, record: Record, known: KnownLimits, bounds: tuple[np.ndarray, np.ndarray], found: Findings
) -> None:
    """The figures of what was recorded, and what is wrong with them."""
    if not len(record):
        return
    facts.ends = ends_of(record)
    if not found.has(*FATAL):
        look_at_ends(record, known, found)
    facts.reward = look_at_rewards(record, found)
    facts.numbers = look_at_observations(record, bounds, found)


def _look_at_seconds(walk: Walk, found: Findings) -> Seconds:
    steps, resets = np.array(walk.step_seconds), np.array(walk.reset_seconds)
    seconds = Seconds(float(np.median(steps)), float(steps.max()), float(np.median(resets)), float(resets.max()))
    is_slow = seconds.median_reset > max(SLOW_TO_MAKE, SLOW_STEP * seconds.median_step)
    if is_slow or seconds.longest_reset > SLOW_RESET:
        what = f"a reset took {seconds.longest_reset:.2g} s, a step {seconds.median_step:.2g} s"
        found.note("slow-reset", "", what, "all environments of a process wait for it: --backend async")
    later = steps[1:]  # in the first one much is made that lasts
    if len(later) and later.max() > max(0.05, SLOW_STEP * seconds.median_step):
        place = f"step {int(later.argmax()) + 2}"
        what = f"took {later.max():.2g} s, the median is {seconds.median_step:.2g} s"
        found.note("slow-step", place, what, "all environments of a process wait for it")
    return seconds


def _examine_vector(diagnosis: Diagnosis, backend: str, limits: Limits, tell: Tell | None) -> None:
    """Look at the vector that a backend steps."""
    found = Findings(SUBJECTS[backend], tell)
    facts = Facts(found.subject)
    end = time.monotonic() + limits.seconds
    make: Callable[..., Any] = partial(
        environments.make, diagnosis.env_id, VECTOR_ENVS, "cpu", backend, env_kwargs=diagnosis.env_kwargs
    )
    vector = Vector(make, found)
    goes_on = lambda: time.monotonic() < end  # noqa: E731

    def work() -> None:
        vector.examine(limits.steps, limits.seconds * WALKING, goes_on)

    within(limits.seconds + limits.timeout, work, found)
    diagnosis.facts.append(facts)
    walk = vector.walk
    if walk is not None:
        facts.seen_observations = short_space(walk.envs.single_observation_space)
        facts.seen_actions = short_space(walk.envs.single_action_space)
        facts.autoreset = vector.autoreset
        facts.masks = "in the observation" if walk.envs.mask_size else ""
        facts.steps = int(walk.record.valid.sum())
        bounds = _bounds(walk.envs.single_observation_space, walk.record)
        limit = diagnosis.max_episode_steps
        if limit is None and not walk.record.episodes():  # else an end at its own limit may be what the task is
            limit = getattr(getattr(walk.envs, "envs", walk.envs), "max_episode_steps", None) or None
        known = KnownLimits(limit, {}, frozenset())
        describe(facts, walk.record, known, bounds, found)
        if vector.limit_is_kept:
            _drop(found, "no-limit")
    diagnosis.add(found)


def _drop(found: Findings, key: str) -> None:
    found.all[:] = [finding for finding in found.all if finding.key != key]
