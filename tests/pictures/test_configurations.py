"""Which runs belong together, and the labels that tell them apart."""

from run_folders import config, write_run

from ppo_fast.pictures import configurations
from ppo_fast.pictures.configurations import group_runs, labels_of
from ppo_fast.pictures.records import read_run
from ppo_fast.run import cli

ROWS = [{"global_step": 64}]


def test_seeds_of_one_configuration_belong_together(tmp_path):
    different = [
        config(),
        config(seed=2, device="cuda", wandb_group="x", quiet=True),
        config(seed=3, gamma=0.9),
        config(seed=1, gamma=0.9, ent_coef=0.0),
        None,
    ]
    runs = [read_run(write_run(tmp_path, f"run{i}", ROWS, c)) for i, c in enumerate(different)]
    groups = group_runs(runs)
    assert [[run.folder.name for run in group] for group in groups.values()] == [
        ["run0", "run1"], ["run2"], ["run3"], ["run4"],
    ]  # fmt: skip
    assert list(groups) == ["gamma=0.99, ent_coef=0.01", "gamma=0.9, ent_coef=0.01", "gamma=0.9, ent_coef=0", "run4"]


def test_the_experiment_names_a_configuration_where_it_can():
    names = ["x", "y"]
    assert labels_of([config(exp_name="a", gamma=0.9), config(exp_name="b")], names) == ["a", "b"]
    assert labels_of([config(), config(env_id="Acrobot-v1")], names) == ["CartPole-v1", "Acrobot-v1"]
    assert labels_of([config()], names[:1]) == ["CartPole-v1 train"]
    same = [config(exp_name="a"), config(exp_name="a", gamma=0.5), config(exp_name="b")]
    assert labels_of(same, [*names, "z"]) == ["a, gamma=0.99", "a, gamma=0.5", "b"]


def test_every_flag_of_a_run_is_configuration_or_named_as_incidental():
    """A name in the list that is no flag of a run any more would be dead; the seed must be there."""
    known = {flag.field for flag in cli.flags_of(cli.RunFlags).values()}
    derived = {"execution", "versions", "device", "device_in_words", "threads", "backend_used", "resumed_from"}
    derived |= {"parameters", "num_iterations", "batch_size", "max_entropy", "world_size", "exit_status", "run_id"}
    derived |= {"observation_space", "action_space", "spaces", "no_preset", "preset", "tensorboard", "handed_in"}
    assert known - derived >= {"seed", "quiet"}
    assert not configurations.INCIDENTAL - known - derived
    assert not configurations.INCIDENTAL & {
        "env_id",
        "exp_name",
        "gamma",
        "learning_rate",
        "precision",
        "backend",
        "program",
    }


def test_no_two_labels_are_alike_and_few_flags_are_named():
    many = [config(**{f"flag{i}": i + 10 * run for i in range(5)}) for run in range(2)]
    assert labels_of(many, ["x", "y"]) == [
        "flag0=0, flag1=1, flag2=2 and 2 more",
        "flag0=10, flag1=11, flag2=12 and 2 more",
    ]
    assert labels_of([{}, {}, config()], ["x", "x", "z"]) == ["x", "x (2)", "CartPole-v1 train"]
