"""The flags that every training program has: what surrounds the algorithm, from tracking to checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal, Self

from ppo_fast.run.flags import Range
from ppo_fast.run.recipe import Recipe

# Flags that runs of earlier versions did not have, with what they did then.
BEFORE = {"action_bounds": "clip", "hide": (), "env_kwargs": {}}


# How --help groups these flags; those that stand in none of them are under "run".
GROUPS: dict[str, tuple[str, ...]] = {
    "run": (
        *("total_timesteps", "seed", "exp_name", "run_root", "quiet", "preset", "recipe"),
        *("resume", "trust", "save_interval", "keep_checkpoints", "max_runtime", "on_nan"),
    ),
    "evaluation": (
        "eval_episodes",
        "eval_max_steps",
        "eval_seconds",
        "eval_every",
        "eval_every_episodes",
        "capture_video",
    ),
    "environment": (
        *("env_id", "env_kwargs", "backend", "action_bounds", "hide", "stagger_resets"),
        *("env_groups", "env_timeout", "env_restarts"),
    ),
    "tracking": (
        *("track", "wandb_mode", "wandb_project_name", "wandb_entity", "wandb_group", "wandb_name"),
        *("wandb_tags", "wandb_notes", "wandb_artifacts", "tensorboard"),
    ),
    "hardware": ("cuda", "compile", "precision", "torch_deterministic", "verify", "profile"),
}


def saved_flags(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that a run folder, a checkpoint or a crash file holds, and for those that it is too old to have what
    runs did then."""
    return {**BEFORE, "stagger_resets": False, "adv_std_min": 0.0, **saved}


def env_view(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's flags says what its environments are, as `ppo_fast.envs.make` takes it, besides their id:
    wherever the policy plays, it plays with these."""
    return {name: flags.get(name, before) for name, before in BEFORE.items()}


@dataclass
class RunFlags:
    """Plumbing, not algorithm. A program's `Args` adds its own flags to these."""

    flags_given: ClassVar[frozenset[str] | None] = None  # no flag itself
    """The fields that were named, on the command line or in the call; None where nobody knows, as after
    dataclasses.replace: then those that differ from their default count."""

    has_presets: ClassVar[bool] = True  # no flag either
    """Whether the tuned flags of presets.py are for this program."""

    by_kind: ClassVar[Recipe | None] = None  # nor this
    """The program's recipe, if it has one (see recipe.py)."""

    env_id: str = "CartPole-v1"
    """gymnasium id; `module:Env-v0` imports the module first"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """keywords for the environment: --env-kwargs is_slippery=False max_episode_steps=200"""
    backend: str = "auto"
    """how the environments run: auto, tensor, entry_point, sync, async or envpool"""
    action_bounds: Literal["auto", "rescale", "clip"] = "auto"
    """clip actions to their bounds, map them there from [-1, 1], or auto: map only to bounds unlike a policy's range"""
    hide: Annotated[tuple[int, ...], Range(0)] = ()
    """numbers of the observation that the policy is not shown: --hide 1 3 of CartPole leaves position and angle"""
    stagger_resets: bool = False
    """truncate the environments' first episodes at different lengths, so that they do not stay at the same step"""
    total_timesteps: Annotated[int, Range(1)] = 500_000
    """environment steps, all environments together"""
    exp_name: str = ""
    """name of the experiment, part of the run folder's name; that of the program's file unless given"""
    seed: Annotated[int, Range(0, 2**31)] = 1
    """seed of the networks, the actions, the minibatches and the environments"""
    torch_deterministic: bool = True
    """ask cuDNN for deterministic kernels"""
    cuda: bool = True
    """use a CUDA device where there is one"""
    track: bool = False
    """send the rows of metrics.jsonl to Weights & Biases too"""
    wandb_mode: Literal["online", "offline"] = "online"
    """online falls back to offline when W&B cannot be reached or has no key"""
    wandb_project_name: str = "ppo_fast"
    """W&B project"""
    wandb_entity: str | None = None
    """W&B entity (team)"""
    wandb_group: str | None = None
    """W&B group, which gathers runs that belong together, such as the seeds of one configuration"""
    wandb_name: str | None = None
    """name of the W&B run, that of the run folder when not given"""
    wandb_tags: tuple[str, ...] = ()
    """W&B tags"""
    wandb_notes: str | None = None
    """W&B notes"""
    wandb_artifacts: bool = False
    """upload the package's code, the policy and the newest checkpoint to W&B"""
    tensorboard: bool = False
    """write the rows of metrics.jsonl to a TensorBoard event file in the run folder too (extra `tensorboard`)"""
    capture_video: bool = False
    """record a greedy episode after each quarter of training into the run folder's videos/ (extra `video`)"""
    run_root: str = "runs"
    """folder that holds the run folders"""
    quiet: bool = False
    """print warnings and one line at the end only"""
    eval_episodes: Annotated[int, Range(0)] = 100
    """episodes of the final evaluation, greedy and as many sampled; 0 skips it"""
    eval_max_steps: Annotated[int, Range(1)] = 100_000
    """steps of an episode of the final evaluation, at most; then it counts with what it has gathered"""
    eval_seconds: Annotated[float, Range(0, above=True)] = 600.0
    """seconds of the final evaluation, at most; then all episodes count with what they have gathered"""
    eval_every: Annotated[int, Range(0)] = 0
    """environment steps between two evaluations during training, greedy; best.safetensors is the best; 0: none"""
    eval_every_episodes: Annotated[int, Range(1)] = 20
    """episodes of each evaluation by --eval-every, which --eval-max-steps and --eval-seconds bound as well"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto only where it pays within this run, else a CPU records; on a GPU CUDA graphs unless off"""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """of the networks' products: tf32 (GPU) rounds their inputs to 10 bits of mantissa, bf16 to 7; the rest is fp32"""
    verify: Annotated[int, Range(0)] = 0
    """instead of training, run this many iterations compiled and eagerly in fp32; exit status 4 if they differ"""
    profile: bool = False
    """profile three iterations after training: a table, and a trace in the run folder"""
    preset: bool = True
    """set what nobody names: by the preset of the environment's id, where it has one, else by the recipe of its kind"""
    recipe: bool = False
    """set it by the recipe even where there is a preset"""
    resume: str = ""
    """go on with a run: its folder, a checkpoint, latest, or auto: the newest unfinished one like this, else new"""
    trust: bool = False
    """let a run that goes on import its environment's module wherever that lies, even in a run folder"""
    save_interval: Annotated[int, Range(1)] = 100
    """iterations between two checkpoints; one more is saved at the end and at every stop"""
    keep_checkpoints: Annotated[int, Range(1)] = 3
    """newest checkpoints that are kept, besides the best one"""
    max_runtime: Annotated[float | None, Range(0, above=True)] = None
    """seconds after which the run saves and stops with exit status 5, to be resumed"""
    on_nan: Literal["stop", "rollback"] = "stop"
    """at NaN or infinity: stop, or go back to the last checkpoint with half the learning rate, 3 times at most"""
    env_groups: Annotated[int, Range(1)] = 1
    """groups that step at the same time, the policy acting for one while another steps; with async and envpool"""
    env_timeout: Annotated[float, Range(0, above=True)] = 60.0
    """seconds after which a silent worker of --backend async counts as dead"""
    env_restarts: Annotated[int, Range(0)] = 0
    """how often environments whose worker died are started again; then the run saves and stops with exit status 6"""

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Note which flags a call names."""
        args = super().__new__(cls)
        names = [field.name for field in fields(cls)]
        given = frozenset(names[: len(values)]) | frozenset(named)
        args.flags_given = given if len(given) < len(names) else None  # type: ignore[misc]
        return args

    @property
    def env_options(self) -> dict[str, Any]:
        """What `ppo_fast.envs.make` takes of them besides the environment and the backend."""
        own = {"timeout": self.env_timeout, "groups": self.env_groups, "stagger_resets": self.stagger_resets}
        return {**own, **env_view(vars(self))}
