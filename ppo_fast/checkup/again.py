"""The same environment again: with the same seed and actions, a second time, beside another, its observations
overwritten. What should be equal is compared step by step."""

import contextlib
import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from ppo_fast.checkup.findings import Findings
from ppo_fast.checkup.player import Player
from ppo_fast.checkup.values import leaves
from ppo_fast.checkup.walk import SEED
from ppo_fast.envs.closing import close_all
from ppo_fast.envs.masks import MASK, METHOD, Masks, flat_mask
from ppo_fast.envs.seeds import seed_process, seed_spaces
from ppo_fast.envs.spaces import ObservationEncoder
from ppo_fast.names import kind_and_line
from ppo_fast.stops import is_of_code

SHORT = 2000  # letters of a value of a class or a module that are compared


class Event(NamedTuple):
    """What a reset or a step gave, to be compared."""

    place: str
    obs: bytes
    reward: str
    ends: str

    def differs_in(self, other: "Event") -> str:
        """What is another one, in words."""
        if self.obs != other.obs:
            return "the observation"
        return "the reward" if self.reward != other.reward else "the end"


Make = Callable[[], gymnasium.Env]


class Again:
    """Compares instances of one environment.

    Args:
        make: makes one.
        encoder, masks: of all.
        actions: that are taken, again and again.
        found: gets what is wrong.
        goes_on: whether there is time for one more comparison.
        closing: seconds that closing one may take.
    """

    def __init__(
        self,
        make: Make,
        encoder: ObservationEncoder,
        masks: Masks,
        actions: Sequence[Any],
        found: Findings,
        goes_on: Callable[[], bool],
        closing: float,
    ) -> None:
        self._make = make
        self._encoder = encoder
        self._masks = masks
        self._actions = actions
        self._found = found
        self._goes_on = goes_on
        self._closing = closing

    def compare(self) -> None:
        """Make all comparisons that time allows."""
        self._found.at("made again")
        with self._one() as env:
            class_before = values_shared_by(env)
            seed_process(1)
            before = generators()
            first = self._trace(env, SEED)
            drawn_from = [name for name, state in generators().items() if state != before[name]]
        self._note_generators(drawn_from)
        is_equal = self._compare_instances(first, drawn_from, class_before)
        if is_equal and self._there_is_time("whether instances share a state"):
            self._compare_beside_another(first, class_before)
        if is_equal and self._there_is_time("whether observations share memory with the state"):
            self._compare_overwritten(first)

    def _there_is_time(self, what: str) -> bool:
        if not self._goes_on():
            self._found.left_out.append(f"{what} (no time left; --seconds)")
        return self._goes_on()

    @contextlib.contextmanager
    def _one(self) -> Iterator[gymnasium.Env]:
        """An instance, closed at the end."""
        env = self._make()
        try:
            yield env
        finally:
            close_all([env], self._closing)

    # The comparisons.

    def _note_generators(self, drawn_from: Sequence[str]) -> None:
        if not drawn_from:
            return
        what = f"draws from {' and '.join(drawn_from)}, which all code of a process shares"
        advice = "draw from self.np_random; ppo_fast seeds these too, others do not"
        self._found.warn("global-random", "", what, advice)

    def _compare_instances(self, first: list[Event], drawn_from: Sequence[str], class_before: dict[str, str]) -> bool:
        """Whether a second instance gives the same with the same seed; also where it needs help for that."""
        with self._one() as env:
            seed_process(2)
            wrong = difference(first, self._trace(env, SEED))
            if wrong is None and self._there_is_time("whether reset(seed) begins the same episodes again"):
                self._compare_resets(env, first)
            if wrong is None and self._there_is_time("whether other seeds give other episodes"):
                self._compare_seeds(env, first)
        if wrong is None:
            return True
        seed_process(3)
        with self._one() as env:
            one = self._trace(env, SEED, helped=True)
        seed_process(3)
        with self._one() as env:
            other = self._trace(env, SEED, helped=True)
            changed = [name for name, value in values_shared_by(env).items() if class_before.get(name) != value]
        if difference(one, other) is None:
            if not drawn_from:
                what = f"two instances with the same seed differ ({wrong}): it draws from what a seed does not reach"
                advice = "call super().reset(seed=seed), and seed the spaces that it samples from; ppo_fast does both"
                self._found.warn("seed-ignored", "", what, advice)
        elif changed:
            self._found.error("shared-state", "", f"two instances share {', '.join(changed)}: {wrong}", SHARED)
        else:
            what = f"two instances with the same seed and the same actions differ: {wrong}"
            advice = "draw from self.np_random, seeded by super().reset(seed=seed); equal runs are not equal without"
            self._found.warn("seed-ignored", "", what, advice)
        return False

    def _compare_resets(self, env: gymnasium.Env, first: list[Event]) -> None:
        """Whether the same instance gives the same again, after episodes."""
        wrong = difference(first, self._trace(env, SEED))
        if wrong is not None:
            what = f"reset(seed) after some episodes does not begin the same ones again: {wrong}"
            advice = "something of the episodes before is left in it: set all of the state in reset"
            self._found.warn("reset-leaks", "", what, advice)

    def _compare_seeds(self, env: gymnasium.Env, first: list[Event]) -> None:
        """Whether another seed makes a difference."""
        others = self._trace(env, SEED + 1)
        if difference(first, others) is None:
            what = "other seeds give the same episodes"
            self._found.note("seed-without-effect", "", what, "right if nothing in it is random; else seed what is")

    def _compare_beside_another(self, first: list[Event], class_before: dict[str, str]) -> None:
        """Whether an instance gives the same while another one is stepped in turn with it."""
        with self._one() as env:
            try:
                another = self._make()
            except BaseException as problem:
                if not is_of_code(problem):
                    raise
                reason = getattr(problem, "reason", kind_and_line(problem))
                what = f"a second one can't be made beside the first: it {reason}"
                self._found.warn("one-instance", "", what, "--num-envs 1, or --backend async --num-workers N")
                return
            try:
                wrong = difference(first, self._trace(env, SEED, beside=Companion(another, self._masks)))
            finally:
                close_all([another], self._closing)
            if wrong is not None:
                changed = [name for name, value in values_shared_by(env).items() if class_before.get(name) != value]
                of = f" ({', '.join(changed)} changed)" if changed else ""
                what = f"stepped in turn with another instance it gives something else{of}: {wrong}"
                self._found.error("shared-state", "", what, SHARED)

    def _compare_overwritten(self, first: list[Event]) -> None:
        """Whether it goes on as before where whoever gets an observation writes into it."""
        with self._one() as env:
            wrong = difference(first, self._trace(env, SEED, overwrite=True))
        if wrong is not None:
            what = f"its observations share memory with its state: writing into one changes what comes next ({wrong})"
            advice = "return a copy; here observations are copied at once, other libraries normalise them in place"
            self._found.note("obs-is-state", "", what, advice)

    # Playing.

    def _trace(
        self,
        env: gymnasium.Env,
        seed: int,
        helped: bool = False,
        overwrite: bool = False,
        beside: "Companion | None" = None,
    ) -> list[Event]:
        """What the actions lead to from a seed on. It ends early where something is raised.

        Args:
            helped: seed also what `reset(seed)` may leave to chance, as training does.
            overwrite: write into each observation once it was looked at.
            beside: is stepped before each step.
        """
        events: list[Event] = []
        try:
            if helped:
                seed_spaces(env, seed)
            result = env.reset(seed=seed)
            events.append(self._event("its first reset", env, result[0], overwrite))
            for number, action in enumerate(self._actions, 1):
                if beside is not None:
                    beside.step()
                result: Any = env.step(np.copy(action) if np.ndim(action) else action)
                obs, reward, terminated, truncated, _ = result
                ends = (float(np.ravel(reward)[0]), bool(terminated), bool(truncated))
                events.append(self._event(f"step {number}", env, obs, overwrite, *ends))
                if terminated or truncated:
                    events.append(self._event(f"the reset after step {number}", env, env.reset()[0], overwrite))
        except BaseException as problem:
            if not is_of_code(problem):
                raise
            events.append(Event(f"after {events[-1].place if events else 'nothing'}", b"", kind_and_line(problem), ""))
        return events

    def _event(
        self,
        place: str,
        env: gymnasium.Env,
        obs: Any,
        overwrite: bool,
        reward: float = 0.0,
        terminated: bool = False,
        truncated: bool = False,
    ) -> Event:
        """What is to be compared of it."""
        row = np.zeros(self._encoder.space.shape, np.float32)
        self._encoder.write_one(obs, row)
        if overwrite:
            _overwrite(env.observation_space, obs)
        return Event(place, digest(row), repr(reward), f"{terminated} {truncated}")


SHARED = "keep all state in self, none in the class, in a default argument or in the module"


class Companion:
    """Another instance, which takes random actions of its own."""

    def __init__(self, env: gymnasium.Env, masks: Masks) -> None:
        self._env = env
        self._masks = masks
        self._player = Player(env.action_space, SEED + 2)
        obs, info = env.reset(seed=SEED + 2)
        self._mask = self._mask_of(obs, info)

    def step(self) -> None:
        """Step it, and reset it where an episode ends."""
        obs, _, terminated, truncated, info = self._env.step(self._player.draw(self._mask))
        if terminated or truncated:
            obs, info = self._env.reset()
        self._mask = self._mask_of(obs, info)

    def _mask_of(self, obs: Any, info: Any) -> np.ndarray | None:
        if not self._masks.size:
            return None
        if self._masks.source == "method":
            given = self._env.get_wrapper_attr(METHOD)()
        else:
            given = obs[MASK] if self._masks.source == "observation" else info.get(MASK)
        return flat_mask(given, self._masks.sizes)


def difference(one: list[Event], other: list[Event]) -> str | None:
    """The first difference of two traces in words; None where they are equal."""
    for a, b in zip_longest(one, other):
        if a != b:
            if a is None or b is None or a.place != b.place:
                raised = [event for event in (b, a) if event is not None and event.place.startswith("after")]
                return f"{raised[0].place} one raises {raised[0].reward}" if raised else "one ends an episode earlier"
            return f"{a.differs_in(b)} of {a.place}"
    return None


def digest(*arrays: np.ndarray) -> bytes:
    """A few bytes that are equal where arrays are: pictures of hundreds of steps need no room."""
    return hashlib.blake2b(b"".join(array.tobytes() for array in arrays), digest_size=16).digest()


def generators() -> dict[str, bytes]:
    """The states of the generators that all code of a process shares, by their names."""
    numpy_state: Any = np.random.get_state(legacy=True)
    return {
        "random": repr(hash(random.getstate())).encode(),
        "np.random": numpy_state[1].tobytes() + repr(numpy_state[2:]).encode(),
        "torch's own generator": torch.get_rng_state().numpy().tobytes(),
    }


def values_shared_by(env: gymnasium.Env) -> dict[str, str]:
    """What all instances of an environment share and may change: plain values of its classes and its module, by name.

    Those of Gymnasium and of this package are left out.
    """
    found: dict[str, str] = {}
    for owner in type(env.unwrapped).__mro__:
        if owner.__module__.startswith(("gymnasium", "builtins", "typing", "ppo_fast")):
            continue
        for name, value in vars(owner).items():
            if not name.startswith("__") and name != "metadata" and _is_plain(value):
                found[f"{owner.__name__}.{name}"] = repr(value)[:SHORT]
        for name, value in vars(sys.modules[owner.__module__]).items():
            if not name.startswith("__") and _is_plain(value):
                found[f"{owner.__module__}.{name}"] = repr(value)[:SHORT]
    return found


def _is_plain(value: object) -> bool:
    """Whether a value's text says what it is."""
    return isinstance(value, (bool, int, float, str, np.ndarray, np.generic, list, dict, set))


def _overwrite(space: gymnasium.Space, obs: Any) -> None:
    """Write something else into the arrays of an observation."""
    for _, _, value in leaves(space, obs):
        if isinstance(value, np.ndarray) and value.flags.writeable and value.size:
            value[...] = value + 1 if value.dtype.kind != "b" else ~value
