"""A run that stops anywhere and goes on ends, bit for bit, where the straight run ends."""

import hashlib

import pytest
import torch
from composer.core import Callback
from composer.optim import LinearScheduler
from composer.utils import dist
from integration.harness import (
    N_CLASSES,
    N_FEATURES,
    Classifier,
    assert_differ,
    assert_same,
    dataset,
    entries_of,
    logged,
    mlp,
    steps_of,
    trainer_for,
)
from torch import nn
from torch.utils.data import DataLoader

from composer_distill import Distillation, EMATeacher, KLDivergence, Snapshot

# Composer warns when it resumes from a checkpoint that was saved after the last batch of an epoch.
pytestmark = pytest.mark.filterwarnings("ignore:No batches were trained for global rank 0")

N_BATCHES = 8


def shuffled():
    data = dataset(20)
    return DataLoader(data, batch_size=5, sampler=dist.get_sampler(data, shuffle=True))


TERMS = {
    "one teacher": lambda: Distillation(mlp(1), KLDivergence(2.0)),
    "sampled teachers in a window": lambda: Distillation(
        [mlp(1), mlp(2), mlp(3)],
        KLDivergence(2.0),
        start_dur=0.25,
        end_dur="6ba",
        n_teachers_to_sample=1,
    ),
    "schedules": lambda: Distillation(
        mlp(1),
        KLDivergence(2.0),
        kd_loss_weight=LinearScheduler(1.0, 0.0, "1dur"),
        org_loss_weight=lambda state: int(state.timestamp.batch) / N_BATCHES,
    ),
    "a moving average of the student, and a snapshot": lambda: Distillation(
        [EMATeacher(decay=0.8, update_every="2ba", warmup=3), Snapshot(start_dur="3ba")],
        KLDivergence(2.0),
    ),
    "two instances": lambda: [
        Distillation([mlp(1), mlp(2)], KLDivergence(2.0), n_teachers_to_sample=1),
        Distillation(mlp(3), nn.MSELoss(), 0.1, 0.5, start_dur="3ba"),
    ],
}
RESUMED = [name for name in TERMS if name != "one teacher"]


class Crash(Callback):
    """Stops a run at the start of one batch, as a machine that fails does."""

    def __init__(self, batch):
        self.batch = batch

    def batch_start(self, state, logger):
        if int(state.timestamp.batch) == self.batch:
            raise KeyboardInterrupt


def trainer(term, **kwargs):
    student = Classifier(mlp(0, dropout=0.5))
    return trainer_for(
        student,
        term,
        train_dataloader=shuffled(),
        max_duration="2ep",
        optimizers=torch.optim.AdamW(student.parameters(), lr=0.05),
        run_name="run",
        device_train_microbatch_size=5,
        **kwargs,
    )


def run(term, **kwargs):
    made = trainer(term, **kwargs)
    made.fit()
    made.close()
    return made


@pytest.fixture(scope="module", params=RESUMED)
def straight(request, tmp_path_factory):
    """Return a name, an uninterrupted run, and the checkpoints that it left at every batch."""
    folder = tmp_path_factory.mktemp("straight")
    whole = run(
        TERMS[request.param](),
        save_folder=str(folder),
        save_interval="1ba",
        save_filename="ba{batch}.pt",
    )
    return request.param, whole, folder


def test_where_the_last_checkpoint_is_half_written_the_one_before_it_goes_on(straight, tmp_path):
    """As a run leaves it that is killed while Composer writes; docs/how-to-resume.md says so."""
    name, whole, folder = straight
    data = (folder / "ba6.pt").read_bytes()
    (tmp_path / "ba6.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises((RuntimeError, OSError), match="PytorchStreamReader|Invalid argument"):
        trainer(TERMS[name](), load_path=str(tmp_path / "ba6.pt"))
    resumed = run(TERMS[name](), load_path=str(folder / "ba5.pt"))
    assert_same(resumed.state.model, whole.state.model)


@pytest.mark.parametrize("batch", range(1, N_BATCHES))
def test_a_run_resumed_from_any_batch_ends_where_the_straight_one_ends(straight, batch):
    name, whole, folder = straight
    resumed = run(TERMS[name](), load_path=str(folder / f"ba{batch}.pt"))
    assert int(resumed.state.timestamp.batch) == N_BATCHES
    assert_same(resumed.state.model, whole.state.model)
    told = entries_of(whole).get("loss/train/kd")
    assert entries_of(resumed).get("loss/train/kd", []) == [row for row in told if row[0] >= batch]


@pytest.mark.parametrize("batch", [5])
def test_a_crashed_run_with_autoresume_ends_where_the_straight_one_ends(straight, batch, tmp_path):
    name, whole, _ = straight
    options = {"save_folder": str(tmp_path), "save_interval": "1ba", "autoresume": True}
    crashing = trainer(TERMS[name](), callbacks=Crash(batch), **options)
    with pytest.raises(KeyboardInterrupt):
        crashing.fit()
    crashing.close()
    assert_same(run(TERMS[name](), **options).state.model, whole.state.model)


def saved(folder, term=None, **kwargs):
    run(
        () if term is None else term,
        save_folder=str(folder),
        save_interval="4ba",
        save_filename="ba{batch}.pt",
        **kwargs,
    )
    return str(folder / "ba4.pt")


def plain_types(tree):
    if isinstance(tree, dict):
        return all(type(key) is str and plain_types(value) for key, value in tree.items())
    if isinstance(tree, (list, tuple)):
        return all(plain_types(value) for value in tree)
    return type(tree) in (str, int, float, bool, type(None))


def test_the_algorithms_state_holds_plain_types_only(tmp_path):
    path = saved(tmp_path, TERMS["sampled teachers in a window"]())
    state = torch.load(path, weights_only=False)["state"]["algorithms"]
    entries = [value for name, value in state if name == "Distillation"]
    assert len(entries) == 1
    assert plain_types(entries[0])
    assert "0x" not in str(entries[0])


@pytest.mark.filterwarnings("ignore:Distillation is not in the state_dict")  # Composer's own
def test_a_checkpoint_without_the_algorithm_loads_into_a_run_with_it(tmp_path):
    path = saved(tmp_path)
    resumed = run(TERMS["one teacher"](), load_path=path)
    assert steps_of(resumed, "loss/train/kd") == [4, 5, 6, 7]


def test_a_checkpoint_with_the_algorithm_loads_into_a_run_without_it(tmp_path):
    path = saved(tmp_path, TERMS["one teacher"]())
    resumed = run((), load_path=path)
    assert steps_of(resumed, "loss/train/total") == [4, 5, 6, 7]
    assert steps_of(resumed, "loss/train/kd") == []


@pytest.mark.parametrize(
    "options", [{"load_weights_only": True}, {"load_ignore_keys": ["state/algorithms"]}]
)
def test_a_part_of_a_checkpoint_loads(tmp_path, options):
    path = saved(tmp_path, TERMS["one teacher"]())
    resumed = run(TERMS["one teacher"](), load_path=path, **options)
    assert len(logged(resumed, "loss/train/kd")) in (4, N_BATCHES)


OTHERS = {
    "other weights": lambda: mlp(9),
    "another size": lambda: nn.Sequential(*mlp(1)[:2], nn.Linear(8, 4).double()),
    "another kind": lambda: type("Other", (nn.Sequential,), {})(*mlp(1)),
    "one more": lambda: [mlp(1), mlp(2)],
}


@pytest.mark.parametrize("name", OTHERS)
def test_resuming_with_other_teachers_is_an_error(tmp_path, name):
    path = saved(tmp_path, TERMS["one teacher"]())
    with pytest.raises(ValueError, match=r"(?s)teacher.*verify_teachers"):
        trainer(Distillation(OTHERS[name](), KLDivergence(2.0)), load_path=path)


@pytest.mark.parametrize("name", OTHERS)
def test_resuming_with_other_teachers_may_be_allowed(tmp_path, name):
    path = saved(tmp_path, TERMS["one teacher"]())
    term = Distillation(OTHERS[name](), KLDivergence(2.0), verify_teachers=False)
    assert len(logged(run(term, load_path=path), "loss/train/kd")) == 4


def test_a_small_change_in_one_weight_makes_another_teacher(tmp_path):
    path = saved(tmp_path, TERMS["one teacher"]())
    other = mlp(1)
    with torch.no_grad():
        other[-1].bias[2] += 1e-3
    with pytest.raises(ValueError, match="teacher 0"):
        trainer(Distillation(other, KLDivergence(2.0)), load_path=path)


class Mine(Distillation):
    """A class of the user's own, which Composer keeps under its own name."""


# Composer's own, for the name that is not in the file
UNKNOWN = pytest.mark.filterwarnings("ignore:Mine is not in the state_dict")


def made(kind, seed=1, **options):
    return kind(mlp(seed), KLDivergence(2.0), **options)


@UNKNOWN
@pytest.mark.parametrize("kinds", [(Mine, Distillation), (Distillation, Mine), (Mine, Mine)])
def test_a_subclass_keeps_the_check_in_both_directions(tmp_path, kinds):
    first, second = kinds
    path = saved(tmp_path, made(first))
    run(made(second), load_path=path)
    with pytest.raises(ValueError, match=r"(?s)teacher 0 differs.*verify_teachers"):
        trainer(made(second, seed=9), load_path=path)
    run(made(second, seed=9, verify_teachers=False), load_path=path)


@UNKNOWN
def test_a_subclass_beside_the_class_itself_keeps_the_check(tmp_path):
    path = saved(tmp_path, [made(Distillation, 1), made(Distillation, 2)])
    run([made(Distillation, 1), made(Mine, 2)], load_path=path)
    with pytest.raises(ValueError, match="teacher 0 differs"):
        trainer([made(Distillation, 1), made(Mine, 9)], load_path=path)


def as_formerly_written(path, model):
    """Write into a checkpoint what versions wrote that looked at 64 values of each weight."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        assert weight.numel() <= 64
        values = weight.double().numpy().tobytes()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values)
    count = sum(parameter.numel() for parameter in model.parameters())
    identity = f"Sequential, {count:,} parameters, {digest.hexdigest()[:12]}"
    saved_state = torch.load(path, weights_only=False)
    entry = dict(saved_state["state"]["algorithms"])["Distillation"]
    assert entry["teachers"]["0"] != [identity]
    entry["teachers"] = {"0": [identity]}
    del entry["fingerprint_rule"]
    torch.save(saved_state, path)


def test_older_checkpoints_are_compared_by_the_rule_that_wrote_them(tmp_path):
    path = saved(tmp_path, TERMS["one teacher"]())
    as_formerly_written(path, mlp(1))
    run(TERMS["one teacher"](), load_path=path)
    with pytest.raises(ValueError, match="teacher 0 differs"):
        trainer(made(Distillation, 9), load_path=path)


def test_a_rule_that_is_not_known_leaves_class_and_size(tmp_path, caplog):
    path = saved(tmp_path, TERMS["one teacher"]())
    saved_state = torch.load(path, weights_only=False)
    dict(saved_state["state"]["algorithms"])["Distillation"]["fingerprint_rule"] = "of tomorrow"
    torch.save(saved_state, path)
    trainer(made(Distillation, 9), load_path=path)
    assert "by the rule 'of tomorrow', which this version does not know" in caplog.text
    smaller = nn.Sequential(nn.Linear(N_FEATURES, N_CLASSES).double())
    with pytest.raises(ValueError, match="teacher 0 differs"):
        trainer(Distillation(smaller, KLDivergence(2.0)), load_path=path)


class Table(nn.Module):
    """A teacher that answers from no weights."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full((len(x), 4), self.value, dtype=x.dtype)


class Named(Table):
    def get_extra_state(self):
        return {"value": self.value}

    def set_extra_state(self, state):
        raise NotImplementedError


def test_a_teacher_without_weights_is_told_by_its_extra_state_or_not_at_all(tmp_path, caplog):
    path = saved(tmp_path, Distillation(Table(1.0), nn.MSELoss()))
    run(Distillation(Table(2.0), nn.MSELoss()), load_path=path)
    assert "teacher 0 (Table, 0 parameters, no weights) could not be verified" in caplog.text
    with pytest.raises(ValueError, match="teacher 0 differs"):
        trainer(Distillation(Named(1.0), nn.MSELoss()), load_path=path)
    path = saved(tmp_path / "named", Distillation(Named(1.0), nn.MSELoss()))
    run(Distillation(Named(1.0), nn.MSELoss()), load_path=path)
    with pytest.raises(ValueError, match="teacher 0 differs"):
        trainer(Distillation(Named(2.0), nn.MSELoss()), load_path=path)


def test_each_of_two_instances_knows_its_own_teachers(tmp_path):
    path = saved(tmp_path, TERMS["two instances"]())
    terms = TERMS["two instances"]()
    with pytest.raises(ValueError, match=r"(?s)teacher.*verify_teachers"):
        trainer([terms[0], Distillation(mlp(9), nn.MSELoss(), 0.1, 0.5)], load_path=path)
    run(terms, load_path=path)


def test_the_tests_of_resumption_would_see_another_seed(tmp_path):
    def sampled(seed):
        teachers = [mlp(1), mlp(2), mlp(3)]
        return Distillation(teachers, KLDivergence(2.0), n_teachers_to_sample=1, seed=seed)

    path = saved(tmp_path, sampled(0))
    assert_differ(
        run(sampled(1), load_path=path).state.model, run(sampled(0), load_path=path).state.model
    )
