"""The fused loss in real Trainers: the weights of the unfused one, without a teacher's logits."""

import copy
import sys

import pytest
import torch
from composer import Trainer
from composer.core import Callback, Event
from composer.models import HuggingFaceModel
from torch import nn

from composer_distill import Distillation, KLDivergence, Teacher, loss_positions
from composer_distill.losses import FusedLinearKL, fused_linear_kl
from tests.integration.harness import Log, assert_close, assert_same, entries_of, logged

transformers = pytest.importorskip("transformers")
language = pytest.importorskip("tests.integration.language")


def fit(student, teachers, data, loss, *, microbatch=8, **arguments):
    arguments = {"kd_loss_weight": 0.7, "org_loss_weight": 0.3} | arguments
    made = Trainer(
        model=student,
        train_dataloader=data,
        max_duration="2ba",
        optimizers=torch.optim.SGD(student.parameters(), lr=0.05),
        algorithms=Distillation(teachers, loss, **arguments),
        device_train_microbatch_size=microbatch,
        accumulate_train_batch_on_tokens=True,
        loggers=[Log()],
        progress_bar=False,
        seed=1,
    )
    made.fit()
    made.close()
    return made


def tokens(batch):
    return int((batch["labels"][:, 1:] != -100).sum())


def both(kind, teachers, *, temperature=1.0, sizes=(language.VOCAB,), **arguments):
    """Train with the logits and with the fused loss from equal beginnings."""
    data, runs = language.batches(kind), []
    for loss in (KLDivergence(temperature), FusedLinearKL(temperature)):
        student = language.model(kind, 1, *sizes)
        loader = language.counted(data, tokens)
        runs.append((student, fit(student, copy.deepcopy(teachers), loader, loss, **arguments)))
    return runs


@pytest.mark.parametrize("kind", ["causal", "rotary", "masked", "encoder_decoder"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_trains_the_weights_of_the_unfused_loss(kind, temperature):
    teacher = language.model(kind, 2)
    (plain, first), (fused, second) = both(kind, teacher, temperature=temperature)
    assert_close(plain, fused)
    for name in ("loss/train/kd", "loss/train/org", "distillation/kd_loss_weight"):
        assert logged(first, name) == pytest.approx(logged(second, name), rel=1e-9)
    assert logged(second, "loss/train/kd")[0] > 0.1


TINY = {
    "vocab_size": language.VOCAB, "hidden_size": language.WIDTH, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": language.LENGTH, "pad_token_id": language.PAD,
}  # fmt: skip
MAPS = {
    "gemma2": {"final_logit_softcapping": 2.0, "attn_implementation": "eager"},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
}


def tiny(kind, seed):
    """A model of transformers that caps or scales its logits."""
    config = transformers.AutoConfig.for_model(kind, **TINY, **MAPS[kind])
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config(config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(30.0)
    return HuggingFaceModel(made)


@pytest.mark.parametrize("kind", MAPS)
def test_logits_that_are_capped_or_scaled_train_the_weights_of_the_unfused_loss(kind):
    data, runs = language.batches("causal"), []
    for loss in (KLDivergence(1.0), FusedLinearKL()):
        student, teacher = tiny(kind, 1), tiny(kind, 2)
        loader = language.counted(data, tokens)
        runs.append((student, fit(student, teacher, loader, loss, microbatch=3)))
    (plain, first), (fused, second) = runs
    assert_close(plain, fused)
    assert logged(first, "loss/train/kd") == pytest.approx(logged(second, "loss/train/kd"))


@pytest.mark.parametrize("telemetry", [True, False])
@pytest.mark.parametrize("microbatch", [8, 3])
def test_telemetry_is_that_of_the_unfused_loss(microbatch, telemetry, monkeypatch):
    # Two rows of logits a chunk, so that a batch has many
    monkeypatch.setattr(sys.modules[fused_linear_kl.__module__], "_ENTRIES", 2 * language.VOCAB)
    (_, first), (_, second) = both(
        "causal", language.model("causal", 2), temperature=2.0, microbatch=microbatch,
        telemetry=telemetry,
    )  # fmt: skip
    names = {n for n in entries_of(first) if n.startswith("distillation/")}
    names -= {n for n in names if n.endswith("teacher_time")}
    told = {"distillation/kl", "distillation/student_entropy", "distillation/teacher_entropy"}
    assert names >= {"distillation/agreement"}
    assert (names >= told) == telemetry
    for name in names:
        assert logged(first, name) == pytest.approx(logged(second, name), rel=1e-6), name
    assert names <= set(entries_of(second))


def test_the_loss_of_each_sampled_teacher_is_told():
    teachers = [language.model("causal", seed) for seed in (2, 3)]
    (_, first), (_, second) = both("causal", teachers, n_teachers_to_sample=1, seed=1)
    names = [name for name in entries_of(first) if "kd_loss/teacher" in name]
    assert names
    for name in names:
        assert logged(first, name) == pytest.approx(logged(second, name), rel=1e-9)


@pytest.mark.parametrize("microbatch", [1, 3])
def test_it_does_for_every_microbatch_size(microbatch):
    teacher = language.model("causal", 2)
    (_, _), (whole, _) = both("causal", teacher)
    (_, _), (pieces, _) = both("causal", teacher, microbatch=microbatch)
    assert_close(whole, pieces)


@pytest.mark.parametrize(
    "arguments",
    [
        {"vocab_size": 20},
        {"mask_fn": loss_positions},
        {"n_teachers_to_sample": 1},
        {"n_teachers_to_sample": 1, "combine": "probabilities"},
        {"start_dur": "1ba"},
        {"org_loss_weight": 0.0, "kd_loss_weight": 1.0},
    ],
    ids=lambda arguments: ", ".join(arguments),
)
def test_it_takes_the_options_of_the_unfused_loss(arguments):
    teachers = [language.model("causal", 2), Teacher(language.model("causal", 3), weight=2.0)]
    (plain, _), (fused, _) = both("causal", teachers, **arguments)
    assert_close(plain, fused)


def test_unequal_teachers_are_averaged_by_logits():
    wide = language.model("causal", 3)
    teachers = [language.model("rotary", 2), wide]
    (plain, _), (fused, _) = both("causal", teachers)
    assert_close(plain, fused)


def test_padded_vocabularies_are_cut():
    teacher = language.model("causal", 2, 29)
    (plain, _), (fused, _) = both("causal", teacher, sizes=(26,), vocab_size=language.VOCAB)
    assert_close(plain, fused)


def test_a_scheduled_temperature_is_resolved():
    teacher = language.model("causal", 2)

    def warmer(state, ssr=1.0):
        return 1.0 + int(state.timestamp.batch)

    (plain, _), (fused, _) = both("causal", teacher, temperature=warmer)
    (constant, _), _ = both("causal", teacher)
    assert_close(plain, fused)
    with pytest.raises(AssertionError):
        assert_close(plain, constant)


def test_a_microbatch_without_positions_adds_nothing():
    data = language.batches("causal", size=2)
    data[0]["labels"][0] = -100
    runs = []
    for loss in (KLDivergence(1.0), FusedLinearKL()):
        student, teacher = language.Counts(1), language.Counts(2)
        student.get_output_embeddings = student.lm.get_output_embeddings
        teacher.get_output_embeddings = teacher.lm.get_output_embeddings
        loader = language.counted(copy.deepcopy(data), tokens)
        fit(student, teacher, loader, loss, microbatch=1, mask_fn=loss_positions_shifted)
        runs.append(student)
    assert_close(*runs)


def loss_positions_shifted(batch, outputs):
    return loss_positions(batch)


def test_no_teachers_logits_exist_and_nothing_is_left_behind():
    student, teacher = language.model("causal", 1), language.model("causal", 2)
    made = []
    teacher.model.lm_head.register_forward_hook(lambda module, given, out: made.append(out.shape))
    run = fit(student, teacher, language.loader(language.batches("causal")), FusedLinearKL())
    assert made == [(1, 1, language.VOCAB)] * 2
    copy.deepcopy(run.state.algorithms)
    for model in (student, teacher):
        assert not model.model.lm_head._forward_pre_hooks


def test_the_student_is_untouched_outside_the_window():
    data = language.batches("causal")
    runs = []
    for algorithms in ([], [Distillation(language.model("causal", 2), FusedLinearKL(), end_dur=0)]):
        student = language.model("causal", 1)
        made = Trainer(
            model=student,
            train_dataloader=language.loader(data),
            max_duration="2ba",
            optimizers=torch.optim.SGD(student.parameters(), lr=0.05),
            algorithms=algorithms,
            progress_bar=False,
            seed=1,
        )
        made.fit()
        made.close()
        runs.append(student)
    assert_same(*runs)


def test_a_teachers_nan_stops_the_run():
    student, teacher = language.model("causal", 1), language.model("causal", 2)
    with torch.no_grad():
        teacher.model.lm_head.weight[5, 0] = float("nan")
    data = language.loader(language.batches("causal"))
    told = "teacher 0 .*hold NaN or infinity at batch 0.*use KLDivergence, which takes on_nonfinite"
    with pytest.raises(ValueError, match=told):
        fit(student, teacher, data, FusedLinearKL())


def test_a_forward_that_was_interrupted_leaves_no_hook():
    class Stops(Callback):
        def run_event(self, event, state, logger):
            if event == Event.BEFORE_FORWARD and not hooks:
                hooks.append(len(head._forward_pre_hooks))
                raise KeyboardInterrupt
            if event == Event.FIT_START and hooks:
                hooks.append(len(head._forward_pre_hooks))

    hooks = []
    student, teacher = language.model("causal", 1), language.model("causal", 2)
    head = student.model.lm_head
    trainer = Trainer(
        model=student,
        train_dataloader=language.loader(language.batches("causal")),
        max_duration="1ba",
        optimizers=torch.optim.SGD(student.parameters(), lr=0.05),
        algorithms=Distillation(teacher, FusedLinearKL()),
        callbacks=Stops(),
        progress_bar=False,
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.fit()
    trainer.close()
    assert hooks == [1, 0]


def test_nothing_outlives_a_batch_whose_weight_is_zero():
    student, teacher = language.model("causal", 1), language.model("causal", 2)
    data = language.loader(language.batches("causal"))
    run = fit(student, teacher, data, FusedLinearKL(), kd_loss_weight=lambda state: 0.0)
    (term,) = copy.deepcopy(run.state.algorithms)
    assert term._events._given._noted is None
    assert term._events._answer.as_given() is None


class Scaled(language.Counts):
    """Scales its logits after its head."""

    def __init__(self, seed):
        super().__init__(seed)
        self.get_output_embeddings = self.lm.get_output_embeddings

    def forward(self, batch):
        return 0.5 * super().forward(batch)


class Shorter(Scaled):
    """Answers all positions but the first."""

    def forward(self, batch):
        return language.Counts.forward(self, {key: x[:, 1:] for key, x in batch.items()})


class TestRefusals:
    def data(self):
        return language.loader(language.batches("causal"))

    def test_logits_that_are_more_than_the_heads_product(self):
        with pytest.raises(ValueError, match="the student: its logits are not the product"):
            fit(Scaled(1), language.model("causal", 2), self.data(), FusedLinearKL())
        with pytest.raises(ValueError, match="teacher 0 .*: its logits are not the product"):
            fit(language.model("causal", 1), Scaled(2), self.data(), FusedLinearKL())

    @pytest.mark.parametrize(
        ("option", "value", "told"),
        [
            ("final_logit_softcapping", 30.0, "capped at 30"),
            ("logits_soft_cap", 30.0, "capped at 30"),
            ("logits_scaling", 8.0, "scaled by 0.125"),
            ("logit_scale", 0.5, "scaled by 0.5"),
        ],
    )
    def test_a_cap_or_scale_that_the_configuration_names_and_the_model_has_not(
        self, option, value, told
    ):
        teacher = language.model("causal", 2)
        setattr(teacher.model.config, option, value)
        with pytest.raises(ValueError, match=f"{told} as its configuration says; it scales"):
            fit(language.model("causal", 1), teacher, self.data(), FusedLinearKL())

    def test_teachers_that_are_averaged_where_one_caps(self):
        teachers = [language.model("causal", 2), tiny("gemma2", 3)]
        with pytest.raises(ValueError, match="averages 2 teachers .*n_teachers_to_sample=1"):
            fit(language.model("causal", 1), teachers, self.data(), FusedLinearKL())

    def test_an_output_embedding_that_is_neither_linear_nor_an_embedding(self):
        student = language.model("causal", 1)
        student.model.lm_head = nn.Sequential(student.model.lm_head)
        with pytest.raises(ValueError, match="torch.nn.Embedding, .*got Sequential"):
            fit(student, language.model("causal", 2), self.data(), FusedLinearKL())

    def test_a_scale_that_shows_only_when_the_head_has_grown(self):
        student = Scaled(1)
        torch.nn.init.zeros_(student.lm.lm_head.weight)
        with pytest.raises(ValueError, match="the student: its logits are not the product"):
            fit(student, language.model("causal", 2), self.data(), FusedLinearKL())

    def test_a_student_without_an_output_embedding(self):
        with pytest.raises(ValueError, match=r"the student: .*found by get_output_embeddings\(\)"):
            fit(language.Counts(1), language.model("causal", 2), self.data(), FusedLinearKL())

    def test_vocabularies_of_unequal_sizes(self):
        teacher = language.model("causal", 2, 29)
        with pytest.raises(ValueError, match="pass Distillation.*vocab_size"):
            fit(language.model("causal", 1), teacher, self.data(), FusedLinearKL())

    def test_positions_of_unequal_number(self):
        with pytest.raises(ValueError, match=r"positions of shape \(8, 7\) where.*\(8, 8\)"):
            fit(language.model("causal", 1), Shorter(2), self.data(), FusedLinearKL())

    def test_a_student_whose_head_was_not_called(self):
        student = language.model("causal", 1)
        head = student.model.lm_head
        student.model.get_output_embeddings = lambda: nn.Linear(
            head.in_features, head.out_features, bias=False
        )
        with pytest.raises(ValueError, match=r"embedding as a module on .*, nor one that calls"):
            fit(student, language.model("causal", 2), self.data(), FusedLinearKL())

    @pytest.mark.parametrize(
        ("options", "arguments", "message"),
        [
            ({"output_fn": lambda x: x}, {}, "input_fn, output_fn and microbatch_size"),
            ({"microbatch_size": 2}, {}, "input_fn, output_fn and microbatch_size"),
            ({}, {"on_nonfinite": "skip"}, "on_nonfinite='skip' replaces"),
            ({}, {"combine": "probabilities"}, "combine='probabilities' mixes the logits of 2"),
        ],
    )
    def test_options_that_need_logits(self, options, arguments, message):
        teachers = [Teacher(language.model("causal", seed), **options) for seed in (2, 3)]
        with pytest.raises(ValueError, match=message):
            Distillation(teachers, FusedLinearKL(), **arguments)
