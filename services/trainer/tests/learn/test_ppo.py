"""PPO's additions: what each trains and leaves alone, schedules, bounds, and an exact resume."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from krabby_trainer.errors import CheckpointError, ConfigError
from krabby_trainer.host_reads import HostReads
from krabby_trainer.learn import symmetry
from krabby_trainer.learn.gradients import adam, adam_state, load_adam
from krabby_trainer.learn.networks import GROUP_SIZES, OBS_GROUPS, TeacherActor, TeacherCritic
from krabby_trainer.learn.ppo import ParkourPPO
from krabby_trainer.learn.symmetry import mirror
from rsl_rl.algorithms import PPO
from rsl_rl.extensions import Symmetry
from tensordict import TensorDict

ROBOTS, STEPS = 32, 6
MIRROR = {"use_data_augmentation": False, "use_mirror_loss": True, "mirror_loss_coeff": 1.0}
QUIET = {"estimator_mini_batches": 0, "history_mini_batches": 0, "adaptation_interval": 1000}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_groups(count=ROBOTS):
    return TensorDict(
        {name: torch.randn(count, size) for name, size in GROUP_SIZES.items()}, batch_size=[count]
    )


def make(*, hidden_dims=(32, 16), multi_gpu=None, **algorithm):
    symmetry = algorithm.get("symmetry_cfg")
    config = {
        "algorithm": {
            "class_name": ParkourPPO,
            "num_learning_epochs": 2,
            "num_mini_batches": 2,
            **algorithm,
            "symmetry_cfg": dict(symmetry) if symmetry else None,
        },
        "actor": {"class_name": TeacherActor, "hidden_dims": hidden_dims},
        "critic": {"class_name": TeacherCritic, "hidden_dims": hidden_dims},
        "obs_groups": dict(OBS_GROUPS),
        "num_steps_per_env": STEPS,
        "multi_gpu": multi_gpu,
    }
    env = SimpleNamespace(num_envs=ROBOTS, num_actions=18)
    alg = ParkourPPO.construct_algorithm(random_groups(), env, config, "cpu")
    alg.train_mode()
    return alg


def collect(alg, groups=random_groups):
    """A rollout as the runner makes it."""
    with torch.inference_mode():
        obs = groups()
        for _ in range(STEPS):
            actions = alg.act(obs)
            obs = groups()
            rewards = -actions.square().mean(dim=1) + torch.randn(ROBOTS)
            alg.process_env_step(obs, rewards, torch.rand(ROBOTS) < 0.1, {})
        alg.compute_returns(obs)


def iterate(alg, groups=random_groups):
    collect(alg, groups)
    return alg.update()


def parameters(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module, before):
    """Names of the parts of `module` that are not as `before`."""
    now = module.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(now[name], before[name])}


def test_one_update_is_finite_and_trains_everything():
    alg = make(symmetry_cfg=MIRROR, regularisation_start=0, regularisation_end=0)
    before = parameters(alg.actor), parameters(alg.critic)
    losses = iterate(alg)
    assert set(losses) == {
        "value",
        "surrogate",
        "entropy",
        "mirror",
        "regularisation",
        "estimator",
        "adaptation",
    }
    assert all(torch.isfinite(torch.tensor(loss)) for loss in losses.values())
    for module in (alg.actor, alg.critic):
        assert all(value.isfinite().all() for value in module.state_dict().values())
    assert moved(alg.actor, before[0]) == {
        "distribution",
        "estimator",
        "history_encoder",
        "mlp",
        "privileged_encoder",
        "privileged_normalizer",
        "proprio_normalizer",
        "scan_encoder",
        "scan_normalizer",
    }
    assert moved(alg.critic, before[1]) == {
        "mlp",
        "rest_normalizer",
        "scan_encoder",
        "scan_normalizer",
    }


def test_the_policy_update_leaves_estimator_and_history_encoder_alone():
    alg = make(**QUIET, regularisation_start=0, regularisation_end=0, symmetry_cfg=MIRROR)
    before = parameters(alg.actor)
    iterate(alg)
    changed = moved(alg.actor, before)
    assert "privileged_encoder" in changed
    assert not changed & {"estimator", "history_encoder"}


@pytest.mark.parametrize(
    ("fit", "part"),
    [("_fit_estimator", "estimator"), ("_fit_history_encoder", "history_encoder")],
)
def test_each_fit_moves_its_own_part_alone(fit, part):
    alg = make()
    collect(alg)
    before = parameters(alg.actor)
    getattr(alg, fit)()
    assert moved(alg.actor, before) == {part}


def linear_world():
    """Five hidden numbers that show in every frame and make velocity and privileged values."""
    to_frame, to_velocity, to_privileged = (0.5 * torch.randn(5, size) for size in (69, 3, 42))

    def groups():
        obs, hidden = random_groups(), torch.randn(ROBOTS, 5)
        obs["proprio"] = hidden @ to_frame + 0.1 * torch.randn(ROBOTS, 69)
        obs["history"] = obs["proprio"].repeat(1, 10)
        obs["velocity"] = hidden @ to_velocity
        obs["privileged"] = hidden @ to_privileged
        return obs

    return groups


def test_the_estimator_learns_a_linear_velocity():
    world = linear_world()
    alg = make(**{**QUIET, "estimator_mini_batches": 10}, num_learning_epochs=1)
    first = iterate(alg, world)["estimator"]
    for _ in range(20):
        last = iterate(alg, world)["estimator"]
    assert last < 0.05 * first


def test_the_history_encoder_learns_the_privileged_code():
    world = linear_world()
    alg = make(**{**QUIET, "history_mini_batches": 10}, num_learning_epochs=1)
    first = iterate(alg, world)["adaptation"]
    for _ in range(30):
        last = iterate(alg, world)["adaptation"]
    assert last < 0.2 * first


def test_the_privileged_code_is_drawn_to_the_historys_not_the_other_way():
    alg = make(**QUIET, regularisation_coef=100.0, regularisation_start=0, regularisation_end=0)
    before = parameters(alg.actor.history_encoder)
    first = iterate(alg)["regularisation"]
    for _ in range(10):
        last = iterate(alg)["regularisation"]
    assert last < 0.7 * first
    assert not moved(alg.actor.history_encoder, before)


def test_the_pull_grows_linearly_between_two_iterations():
    alg = make(regularisation_coef=0.1, regularisation_start=10, regularisation_end=20)
    weights = []
    for alg.iteration in (0, 10, 15, 20, 500):
        weights.append(alg.regularisation)
    assert weights == pytest.approx([0.0, 0.0, 0.05, 0.1, 0.1])


def test_without_pull_its_distance_costs_nothing():
    alg = make(regularisation_start=10, regularisation_end=20)
    assert "regularisation" not in iterate(alg)


def test_every_third_rollout_acts_on_the_historys_code():
    alg = make(adaptation_interval=3)
    sources = []
    for _ in range(6):
        sources.append(alg.actor.latent_source)
        iterate(alg)
    assert sources == ["privileged", "privileged", "history"] * 2


def test_an_adapting_update_is_on_policy():
    """The code that acted is the one that is trained: at first every ratio is 1."""
    alg = make(adaptation_interval=1, num_learning_epochs=1, num_mini_batches=1)
    assert alg.actor.latent_source == "history"
    before = parameters(alg.actor.privileged_encoder)
    losses = iterate(alg)
    # Advantages are normalised to mean 0, so with ratios of 1 the surrogate is 0.
    assert losses["surrogate"] == pytest.approx(0.0, abs=1e-5)
    assert not moved(alg.actor.privileged_encoder, before)


def test_outside_training_the_code_comes_from_the_history():
    alg = make()
    alg.eval_mode()
    assert alg.actor.latent_source == "history"
    alg.train_mode()
    assert alg.actor.latent_source == "privileged"


def test_the_learning_rate_keeps_to_its_bounds():
    alg = make(learning_rate=3e-4, learning_rate_min=1e-4, learning_rate_max=4e-4)
    assert alg.learning_rate == 3e-4
    alg.learning_rate = 1.0
    assert alg.learning_rate == 4e-4
    alg.learning_rate = 1e-9
    assert alg.learning_rate == 1e-4
    alg.desired_kl = 1e-9  # every step is too long
    iterate(alg)
    assert alg.optimizer.param_groups[0]["lr"] == alg.learning_rate == 1e-4
    alg.desired_kl = 1e9  # every step is too short
    iterate(alg)
    iterate(alg)
    assert alg.optimizer.param_groups[0]["lr"] == alg.learning_rate == 4e-4


@pytest.mark.parametrize(("entropy_coef", "bound"), [(50.0, 1.2), (-50.0, 0.15)])
def test_exploration_stays_within_its_range(entropy_coef, bound):
    alg = make(entropy_coef=entropy_coef, learning_rate=1e-2, learning_rate_max=1e-2)
    alg.schedule = "fixed"
    for _ in range(50):
        iterate(alg)
    parameter = alg.actor.distribution.log_std_param
    torch.testing.assert_close(parameter.exp(), torch.full((18,), bound))


def test_the_mirror_loss_makes_the_policy_symmetric():
    alg = make(symmetry_cfg={**MIRROR, "mirror_loss_coeff": 100.0}, learning_rate=1e-3)
    alg.schedule = "fixed"
    first = iterate(alg)["mirror"]
    for _ in range(15):
        last = iterate(alg)["mirror"]
    assert last < 0.5 * first


class Pulled(Symmetry):
    """rsl_rl's symmetry; the pull of the privileged code goes with its loss."""

    def __init__(self, pull, **symmetry):
        def both(env, obs, actions):
            groups = {} if obs is None else dict(obs.items())
            batch = mirror(groups if actions is None else groups | {"actions": actions})
            acted = batch.pop("actions", None)
            size = None if obs is None else [2 * obs.batch_size[0]]
            return TensorDict(batch, batch_size=size) if batch else None, acted

        super().__init__(env=None, data_augmentation_func=both, **symmetry)
        self.pull, self.weight, self.use_mirror_loss = pull, self.mirror_loss_coeff, True
        self.mirror_loss_coeff = 1.0

    def compute_loss(self, actor, batch, original_batch_size):
        learned = batch.observations
        loss = self.weight * super().compute_loss(actor, batch, original_batch_size)
        if actor.latent_source == "privileged" and self.pull:
            with torch.no_grad():
                target = actor.history_encoder(actor.frames(learned))
            distance = actor.privileged_latent(learned) - target
            loss = loss + self.pull * distance.norm(dim=-1).mean()
        return loss


def eager_update(alg):
    """The update as rsl_rl does it, and the two fits with a plain Adam, operation by operation."""
    actor, means = alg.actor, {}
    alg.symmetry.pull = alg.regularisation
    # rsl_rl draws actions again in every minibatch and uses none of them.
    with mock.patch.object(actor.distribution, "sample", return_value=None):
        losses = PPO.update(alg)
    rollout = alg.storage.observations.flatten(0, 1)
    size = ROBOTS * STEPS // alg.num_mini_batches

    def estimator(batch):
        return actor.velocity(actor.frames(batch).detach()), batch["velocity"]

    def history(batch):
        target = actor.privileged_latent(batch).detach()
        return actor.history_encoder(actor.frames(batch).detach()), target

    fits = (
        ("estimator", estimator, actor.estimator, alg._cfg.estimator_mini_batches),
        ("adaptation", history, actor.history_encoder, alg._history_steps),
    )
    for name, of, module, count in fits:
        optimizer = alg.plain[name]
        for i in range(count):
            part = i % alg.num_mini_batches
            if part == 0:
                order = torch.randperm(ROBOTS * STEPS)
            loss = torch.nn.functional.mse_loss(*of(rollout[order[part * size :][:size]]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), alg.max_grad_norm)
            optimizer.step()
            means[name] = means.get(name, 0.0) + loss.item() / count
    alg.iteration += 1
    alg._choose_latent()
    return losses | means


@pytest.fixture
def double_precision():
    """Rounding stays small for hundreds of updates, each of which amplifies it."""
    torch.set_default_dtype(torch.float64)
    symmetry._on.cache_clear()
    yield
    torch.set_default_dtype(torch.float32)
    symmetry._on.cache_clear()


@pytest.mark.parametrize(
    ("augments", "iterations"),
    [(False, 40), (True, 20), pytest.param(False, 200, marks=pytest.mark.slow)],
)
def test_the_update_is_rsl_rls(double_precision, augments, iterations):
    wanted = {**MIRROR, "use_data_augmentation": augments, "mirror_loss_coeff": 0.5}
    settings = {"regularisation_start": 5, "regularisation_end": 100, "adaptation_interval": 7}
    settings |= {"learning_rate_max": 5e-3, "desired_kl": 0.004}
    ours = make(symmetry_cfg=wanted, hidden_dims=(16,), **settings)
    theirs = make(symmetry_cfg=wanted, hidden_dims=(16,), **settings)
    for each in ("actor", "critic"):
        getattr(theirs, each).load_state_dict(getattr(ours, each).state_dict())
    theirs.symmetry = Pulled(0.0, **wanted)
    theirs.optimizer = torch.optim.Adam(
        [*theirs.actor.parameters(), *theirs.critic.parameters()], lr=1e-3
    )
    theirs.optimizer.register_step_post_hook(lambda *_: theirs.actor.clamp_std())
    theirs.plain = {
        name: torch.optim.Adam(module.parameters(), lr=1e-3)
        for name, module in (
            ("estimator", theirs.actor.estimator),
            ("adaptation", theirs.actor.history_encoder),
        )
    }
    world, rates = linear_world(), set()
    for iteration in range(iterations):
        losses = []
        for alg, update in ((ours, ours.update), (theirs, lambda: eager_update(theirs))):
            torch.manual_seed(iteration)
            collect(alg, world)
            losses.append(update())
        for name in ("value", "surrogate", "entropy", "estimator", "adaptation"):
            first, second = losses[0][name], losses[1][name]
            assert first == pytest.approx(second, rel=1e-6, abs=1e-9), (iteration, name)
        assert ours.learning_rate == pytest.approx(theirs.learning_rate, rel=1e-12)
        rates.add(ours.learning_rate)
    assert len(rates) > 3, "the schedule was not tried"
    noise = 1e-7 * max(1.0, iterations / 40)
    for name, value in ours.actor.state_dict().items():
        torch.testing.assert_close(
            value, theirs.actor.state_dict()[name], rtol=1e-5, atol=noise, msg=name
        )


def test_the_host_waits_for_an_update_once():
    alg = make(symmetry_cfg=MIRROR, regularisation_start=0, regularisation_end=0)
    iterate(alg)
    for _ in range(2):
        with HostReads() as reads:
            iterate(alg)
        assert list(reads.places.values()) == [1], reads.places
        alg.iteration = alg._cfg.adaptation_interval - 1
        alg._choose_latent()


def stored(state):
    """As it is after a way through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_resumed_run_goes_on_exactly():
    settings = {"adaptation_interval": 3, "regularisation_start": 0, "regularisation_end": 9}
    alg = make(**settings, symmetry_cfg=MIRROR)
    for _ in range(2):
        iterate(alg)
    state = stored(alg.save())
    resumed = make(**settings, symmetry_cfg=MIRROR)
    assert resumed.load(state, None, True)
    assert resumed.iteration == 2
    assert resumed.actor.latent_source == alg.actor.latent_source == "history"
    losses = []
    for each in (alg, resumed):
        torch.manual_seed(7)
        losses.append([iterate(each) for _ in range(3)])
    assert losses[0] == losses[1]
    assert not moved(resumed.actor, parameters(alg.actor))
    assert not moved(resumed.critic, parameters(alg.critic))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_plain_adams_state_is_taken_over_and_given_back(precision):
    """That of checkpoints before, whose moments may have been stored in half of the bytes."""
    plain = [torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.nn.Parameter(torch.zeros(3))]
    ours = [torch.nn.Parameter(p.detach().clone()) for p in plain]
    before = torch.optim.Adam(plain, lr=0.5)
    after = adam(ours, 0.1, "cpu")
    rate = after.param_groups[0]["lr"]

    def descend(parameters, optimizer):
        parameters[0].grad = torch.tensor([0.5, -0.25])  # the second one gets no gradient
        optimizer.step()

    descend(plain, before)
    state = stored(before.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        state["state"][0][name] = state["state"][0][name].to(precision)
    load_adam(after, state)
    assert after.param_groups[0]["lr"] is rate
    assert rate == 0.5
    assert [after.state[ours[0]][name].dtype for name in ("step", "exp_avg")] == [torch.float32] * 2
    ours[0].data.copy_(plain[0].detach())
    for parameters, optimizer in ((plain, before), (ours, after)):
        descend(parameters, optimizer)
    # A rounded moment changes a step of 0.5 by up to half of its relative rounding, 2^-9.
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-6, atol=0.5 * torch.finfo(precision).eps)
    again = stored(adam_state(after))
    assert again["param_groups"] == before.state_dict()["param_groups"]
    assert again["state"].keys() == {0}
    assert again["state"][0]["step"] == 2.0


def test_networks_alone_can_be_taken_over():
    alg = make()
    iterate(alg)
    other = make()
    other.load(stored(alg.save()), {"actor": True, "critic": True}, True)
    assert other.iteration == 0
    assert not moved(other.actor, parameters(alg.actor))


def test_a_state_that_does_not_fit_is_refused():
    alg = make()
    state = alg.save()
    for damaged in (
        {},
        {key: value for key, value in state.items() if key != "history_optimizer_state_dict"},
        {**state, "actor_state_dict": make(hidden_dims=(8,)).actor.state_dict()},
        {**state, "estimator_optimizer_state_dict": {"state": {}, "param_groups": []}},
    ):
        with pytest.raises(CheckpointError, match="does not fit this training"):
            make().load(damaged, None, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate_min": 1e-6}, "learning_rate_min=1e-06"),
        ({"learning_rate_max": 1e-6}, "learning_rate_min=1e-05 is out of range, expected 1e-05 <="),
        (
            {"learning_rate": 5e-3},
            "learning_rate=0.005 is out of range, expected learning_rate_min",
        ),
        ({"regularisation_end": 3}, "regularisation_end=3"),
        ({"adaptation_interval": 0}, "adaptation_interval=0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def one_of_two(rank, folder):
    """A process of two that train together: other observations, the same start."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(rank)
    settings = {"regularisation_start": 0, "regularisation_end": 0, "adaptation_interval": 2}
    together = {"global_rank": rank, "local_rank": rank, "world_size": 2}
    alg = make(**settings, symmetry_cfg=MIRROR, multi_gpu=together)
    alg.broadcast_parameters()
    for _ in range(3):
        iterate(alg)
    torch.save(
        (alg.actor.state_dict(), alg.critic.state_dict(), alg.learning_rate), f"{folder}/{rank}"
    )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_stay_alike(tmp_path):
    code = "import sys, test_ppo; test_ppo.one_of_two(int(sys.argv[1]), sys.argv[2])"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path)], cwd=Path(__file__).parent
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"{rank}") for rank in range(2))
    assert first[2] == second[2]
    for mine, theirs in zip(first[:2], second[:2], strict=True):
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-7, msg=name)
