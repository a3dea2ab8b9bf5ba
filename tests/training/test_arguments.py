import numpy as np
import pytest
from torch import nn
from torch.nn import functional as F

from composer_distill import Distillation, KLDivergence, Teacher

LOSS = KLDivergence()


def teacher():
    return nn.Linear(4, 3)


@pytest.mark.parametrize("teachers", [[], (), {}, iter(())])
def test_no_teachers(teachers):
    with pytest.raises(ValueError, match="teachers must hold at least one model, got none"):
        Distillation(teachers, LOSS)


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ("weights.pt", r"teachers must be a model.*got str.*\{path: model\}"),
        (None, "teachers must be a model.*got NoneType"),
        (["weights.pt"], r"teachers\[0\] must be a model or a Teacher, got str"),
        ([nn.Linear(4, 3), 3], r"teachers\[1\] must be a model or a Teacher, got int"),
        ({"weights.pt": "model"}, r"teachers\['weights.pt'\] must be the model.*got str"),
    ],
)
def test_teachers_that_are_no_models(teachers, message):
    with pytest.raises(TypeError, match=message):
        Distillation(teachers, LOSS)


def test_one_model_twice():
    model = teacher()
    with pytest.raises(ValueError, match=r"teachers 0 and 2 \(Linear\) are one and the same"):
        Distillation([model, teacher(), model], LOSS)


@pytest.mark.parametrize("n", [0, -1, 3])
def test_a_number_of_teachers_that_there_are_not(n):
    with pytest.raises(ValueError, match=rf"n_teachers_to_sample must lie in \[1, 2\].*got {n}"):
        Distillation([teacher(), teacher()], LOSS, n_teachers_to_sample=n)


@pytest.mark.parametrize("n", [1.0, True, "1"])
def test_a_number_of_teachers_that_is_no_integer(n):
    with pytest.raises(TypeError, match="n_teachers_to_sample must be an integer or None"):
        Distillation([teacher(), teacher()], LOSS, n_teachers_to_sample=n)


@pytest.mark.parametrize("argument", ["kd_loss_weight", "org_loss_weight"])
def test_a_negative_weight(argument):
    with pytest.raises(ValueError, match=f"{argument} must be a finite number.*got -0.5"):
        Distillation(teacher(), LOSS, **{argument: -0.5})


def test_weights_that_train_nothing():
    with pytest.raises(ValueError, match="are both 0, so nothing would be trained"):
        Distillation(teacher(), LOSS, kd_loss_weight=0, org_loss_weight=0.0)


@pytest.mark.parametrize("seed", ["a", 1.5, None, True])
def test_a_seed_that_is_no_integer(seed):
    with pytest.raises(TypeError, match="seed must be an integer"):
        Distillation(teacher(), LOSS, seed=seed)


def test_numbers_of_numpy_are_numbers():
    algorithm = Distillation(
        [Teacher(teacher(), weight=np.float32(2)), teacher()],
        LOSS,
        kd_loss_weight=np.float32(0.5),
        n_teachers_to_sample=np.int64(1),
        seed=np.int64(3),
    )
    assert (algorithm.n_teachers_to_sample, algorithm.seed) == (1, 3)


def test_a_checkpoint_that_is_no_path():
    with pytest.raises(TypeError, match="keys must be paths or URIs of checkpoints, got 1"):
        Distillation({1: teacher()}, LOSS)


def test_a_window_the_wrong_way_round():
    with pytest.raises(ValueError, match="start_dur .* is later than end_dur .*Swap them"):
        Distillation(teacher(), LOSS, start_dur=0.5, end_dur=0.4)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("kl", TypeError, "kd_loss_fn must be callable as"),
        (KLDivergence, TypeError, r"got the class KLDivergence. Pass KLDivergence\(\)"),
        (nn.KLDivLoss(), ValueError, "needs log-probabilities.*Use composer_distill.KLDivergence"),
        (F.kl_div, ValueError, "needs log-probabilities"),
        (nn.MSELoss(reduction="sum"), ValueError, "reduction='sum'.*microbatch size"),
        (KLDivergence(reduction="none"), ValueError, "reduction='none'.*Use reduction='mean'"),
    ],
)
def test_losses_that_can_not_be_right(loss, error, message):
    with pytest.raises(error, match=message):
        Distillation(teacher(), loss)


def test_probabilities_need_a_temperature():
    with pytest.raises(ValueError, match="no attribute 'temperature'"):
        Distillation([teacher(), teacher()], nn.MSELoss(), combine="probabilities")


def test_words_that_are_no_choice():
    with pytest.raises(ValueError, match="combine must be one of 'logits', 'probabilities', got"):
        Distillation(teacher(), LOSS, combine="mean")
    with pytest.raises(ValueError, match="on_nonfinite must be one of 'raise', 'skip', got"):
        Distillation(teacher(), LOSS, on_nonfinite="warn")


def test_repr_holds_the_arguments_and_no_address():
    algorithm = Distillation(
        [teacher(), teacher()],
        lambda student, teacher: (student - teacher).abs().mean(),
        kd_loss_weight=lambda state: 0.5,
        end_dur="200ba",
        n_teachers_to_sample=1,
    )
    text = repr(algorithm)
    assert "0x" not in text
    for part in ("teachers=", "Linear", "end_dur='200ba'", "n_teachers_to_sample=1", "lambda"):
        assert part in text
    assert algorithm.state_dict()["repr"] == text


def test_a_generator_of_models_is_a_sequence():
    algorithm = Distillation((teacher() for _ in range(3)), LOSS)
    assert len(algorithm.teachers) == 3
