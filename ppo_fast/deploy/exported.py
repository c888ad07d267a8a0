"""A policy as one module of plain operations, for files that other programs run: raw observations in, the environment's
own actions out. export.py writes such a file.

Letters: N rows, S shape of an encoded observation.
"""

import copy
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from ppo_fast.algorithm import lstm, mlp
from ppo_fast.deploy.agents import Rebuilt
from ppo_fast.envs import spaces_json
from ppo_fast.run import play
from ppo_fast.run.agent_player import AgentPlayer

ROWS = 1000  # that a file is tried on
BATCHES = (1, 2, 97, 400, 500)  # of these sizes, one step after the other
LARGEST = 100.0  # of a number in an observation that it is tried on: some spaces are as large as float32
CLOSE = 1e-4  # relative to the largest number: of actions in a Box, values, log-probabilities, memories


@dataclass(frozen=True)
class Wanted:
    """What a file is to give."""

    sampled: bool = False
    """actions drawn with the input `noise`, else the most likely ones"""
    value: bool = False
    log_prob: bool = False


class Port(NamedTuple):
    """An input or an output."""

    name: str
    shape: tuple[int, ...]  # of one row
    dtype: str
    meaning: str


class ExportedPolicy(nn.Module):
    """Takes the tensors that `inputs` names, (N, ...) each, and gives those that `outputs` names.

    Args:
        rebuilt: the agent, and the spaces of its environment.
        wanted: see there.

    Raises:
        ValueError: the agent rounds its products to bfloat16, which not every program can run.
    """

    def __init__(self, rebuilt: Rebuilt, wanted: Wanted) -> None:
        super().__init__()
        if rebuilt.flags.precision == "bf16":
            raise ValueError("--to: a policy of --precision bf16 can't be exported")
        own = rebuilt.own
        self.agent = _plain(rebuilt.agent)
        self.wanted = wanted
        encoder = own.encoder()
        kept = own.kept()
        self._kept = None if kept is None else torch.tensor(kept)
        self._has_mask = own.masks.size > 0
        decoder = own.decoder()
        action = own.action
        self._box_map = None if decoder.box_map is None else decoder.box_map.on(torch.device("cpu"))
        self._action_type = torch.from_numpy(np.empty(0, action.dtype)).dtype
        self._action_shape = action.shape or ()
        start = getattr(action, "start", None)
        self._start = None if start is None else torch.as_tensor(np.asarray(start))
        self.inputs, self.outputs = self._ports(rebuilt, encoder.space.shape)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of `inputs` to tensors in the order of `outputs`."""
        given = list(inputs)
        obs = given.pop(0)
        if self._has_mask:
            obs = torch.cat([obs, given.pop(0).to(obs.dtype)], -1)
        if self._kept is not None:
            obs = obs.index_select(-1, self._kept)
        noise = given.pop(0) if self.wanted.sampled else None
        action, outputs, *after = self.agent.act(obs, noise, *given)
        found = [self._decoded(action)]
        if self.wanted.log_prob:
            found.append(self.agent.head.log_prob(outputs, action))
        if self.wanted.value:
            found.append(self.agent.value(obs, *given))
        return (*found, *after)

    def _decoded(self, action: Tensor) -> Tensor:
        """As spaces.ActionDecoder does it."""
        if self._box_map is not None:
            action = self._box_map(action)
        action = action.to(self._action_type).reshape(-1, *self._action_shape)
        return action if self._start is None else action + self._start

    def _ports(self, rebuilt: Rebuilt, shape: tuple[int, ...]) -> tuple[list[Port], list[Port]]:
        """What goes in and comes out."""
        own, head = rebuilt.own, rebuilt.agent.head
        size = own.masks.size
        shape = (shape[0] - size,) if size else shape
        inputs = [Port("obs", shape, "float32", "the observation, flat unless it is a Box; as it comes")]
        if size:
            inputs.append(Port("mask", (size,), "float32", "1 where an action is allowed, 0 where not"))
        if self.wanted.sampled:
            noise = AgentPlayer(rebuilt.agent).draw(np.random.default_rng(0), 1)
            kind = "standard normal numbers" if isinstance(own.action, spaces.Box) else "uniform numbers from 0 to 1"
            inputs.append(Port("noise", noise.shape[1:], str(noise.dtype), kind))
        outputs = [Port("action", self._action_shape, str(own.action.dtype), "what the environment takes")]
        if self.wanted.log_prob:
            outputs.append(Port("log_prob", (), "float32", "of the action, in nats; before it is put into bounds"))
        if self.wanted.value:
            outputs.append(Port("value", (), "float32", "of the observation"))
        for i, x in enumerate(play.initial_memory(rebuilt.agent, 1)):
            memory = tuple(x.shape[1:])
            inputs.append(Port(f"memory_{i}", memory, "float32", "next_memory of the step before; 0 at first"))
            outputs.append(Port(f"next_memory_{i}", memory, "float32", "the memory for the next step"))
        assert head.action_shape is not None
        return inputs, outputs


def metadata(policy: ExportedPolicy, rebuilt: Rebuilt) -> str:
    """What a file says of itself, as JSON."""
    flags = rebuilt.saved.facts
    ports = {kind: [port._asdict() for port in ports] for kind, ports in
             (("inputs", policy.inputs), ("outputs", policy.outputs))}  # fmt: skip
    facts = {name: flags.get(name) for name in ("env_id", "program", "run_id", "seed")}
    columns = {name: [part.start, part.stop] for name, part in rebuilt.own.encoder().columns.items()}
    more = {"spaces": spaces_json.to_json(rebuilt.own), "columns": columns, "batch": "the first dimension of each"}
    return json.dumps({**facts, **ports, **more})


def trial(rebuilt: Rebuilt, policy: ExportedPolicy, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Inputs by name, without memory, for ROWS observations in batches of BATCHES."""
    own, encoder = rebuilt.own, rebuilt.own.encoder()
    rng = np.random.default_rng(seed)
    own.observation.seed(seed)
    size = own.masks.size
    found: list[dict[str, np.ndarray]] = []
    for rows in BATCHES:
        encoded = np.empty((rows, *(encoder.space.shape or ())), np.float32)
        masks = [None] * rows
        encoder.write_list([own.observation.sample() for _ in range(rows)], encoded, masks)
        encoded = np.clip(encoded, -LARGEST, LARGEST)
        given = {"obs": encoded[:, :-size] if size else encoded}
        if size:
            given["mask"] = _random_masks(rng, rows, own.masks.sizes)
        if policy.wanted.sampled:
            given["noise"] = AgentPlayer(rebuilt.agent).draw(rng, rows)
        found.append(given)
    return found


def _random_masks(rng: np.random.Generator, rows: int, sizes: tuple[int, ...]) -> np.ndarray:
    """Masks (rows, n) that allow at least one action of each dimension."""
    parts = []
    for size in sizes:
        part = rng.random((rows, size)) < 0.6
        part[np.arange(rows), rng.integers(size, size=rows)] = True
        parts.append(part)
    return np.concatenate(parts, 1).astype(np.float32)


@torch.no_grad()
def difference(rebuilt: Rebuilt, policy: ExportedPolicy, run: Any) -> str | None:
    """Where a file gives something else than the policy, in words; None where it doesn't.

    Args:
        run: takes the file's inputs by name as arrays, and gives its outputs in order.
    """
    agent, own = AgentPlayer(rebuilt.agent), rebuilt.own
    kept, decode = own.kept(), own.decoder()
    for given in trial(rebuilt, policy):
        rows = len(given["obs"])
        memory = agent.begin(rows)
        for step in range(2):
            named = {f"memory_{i}": x for i, x in enumerate(memory)}
            obs = np.concatenate([given["obs"], given["mask"]], 1) if "mask" in given else given["obs"]
            obs = obs if kept is None else obs[:, kept]
            action, outputs, after = agent.act(obs, given.get("noise"), memory)
            wanted = {"action": decode(action), **{f"next_memory_{i}": x for i, x in enumerate(after)}}
            tensors = (torch.tensor(obs), *map(torch.tensor, memory))
            if policy.wanted.value:
                wanted["value"] = rebuilt.agent.value(*tensors).numpy()
            if policy.wanted.log_prob:
                wanted["log_prob"] = rebuilt.agent.head.log_prob(torch.tensor(outputs), torch.tensor(action)).numpy()
            found = dict(zip([port.name for port in policy.outputs], run({**given, **named}), strict=True))
            wrong = [name for name, x in wanted.items() if not _is_same(found[name], x)]
            if wrong:
                return f"{wrong[0]} of {rows} observations, step {step}"
            memory = after
    return None


def _is_same(found: np.ndarray, wanted: np.ndarray) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if wanted.dtype.kind != "f":
        return np.array_equal(found, wanted)
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    return float(np.abs(found - wanted).max(initial=0)) <= CLOSE * scale


class _PlainMLP(nn.Module):
    """An mlp.MLP without the forms that it has for torch's compiler."""

    def __init__(self, network: mlp.MLP) -> None:
        super().__init__()
        self.layers = network.layers
        self.activate_last = network.activate_last

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            x = F.linear(x, layer.weight, layer.bias)
            if self.activate_last or i < len(self.layers) - 1:
                x = torch.tanh(x)
        return x


class _PlainLSTM(nn.Module):
    """One step of an lstm.LSTM, likewise."""

    def __init__(self, network: lstm.LSTM) -> None:
        super().__init__()
        self.size = network.size
        self.input = network.input
        self.recurrent = network.recurrent

    def step(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """As LSTM.step."""
        numbers = self.input(x) + self.recurrent(hidden)
        output_gate, input_gate, forget_gate = numbers[..., : 3 * self.size].sigmoid().chunk(3, -1)
        cell = forget_gate * cell + input_gate * numbers[..., 3 * self.size :].tanh()
        return output_gate * cell.tanh(), cell


def _plain(agent: nn.Module) -> Any:
    """A copy of an agent, of parameters of their own, with plain operations in the place of those of ppo_fast."""
    copied = copy.deepcopy(agent)
    for parameter in copied.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, mlp.MLP):
                setattr(module, name, _PlainMLP(child))
            elif isinstance(child, lstm.LSTM):
                setattr(module, name, _PlainLSTM(child))
    return copied.requires_grad_(False)
