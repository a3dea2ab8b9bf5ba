"""Every kind of batch, model and output, on either side, against a loop by hand."""

from types import SimpleNamespace

import pytest
import torch
from composer.core import DataSpec
from composer.models import ComposerClassifier, ComposerModel, HuggingFaceModel
from integration.harness import (
    N_CLASSES,
    RTOL,
    Classifier,
    assert_close,
    assert_same,
    dataset,
    fit,
    forward_kl,
    loader,
    mlp,
    train_by_hand,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from composer_distill import Distillation, KLDivergence, Teacher
from composer_distill.losses import DistillationLoss

DISTANCE = forward_kl(2.0)
TEMPERED = {"kd_loss_weight": 0.7, "org_loss_weight": 0.3}


def objective(teacher):
    """Return the objective of the runs below, on ``(inputs, targets)``."""

    def value(module, batch):
        logits = module(batch[0])
        kd = DISTANCE(logits, teacher(batch[0]).detach())
        return 0.3 * F.cross_entropy(logits, batch[1]) + 0.7 * kd

    return value


class Answer(nn.Module):
    """A module whose output comes in the kind that ``shape`` makes of its logits."""

    def __init__(self, module, shape):
        super().__init__()
        self.module, self.shape = module, shape

    def forward(self, inputs):
        return self.shape(self.module(inputs))


OUTPUTS = {
    "tensor": lambda x: x,
    "dict": lambda x: {"logits": x, "hidden": x.sum(-1)},
    "dict of one": lambda x: {"scores": x},
    "tuple": lambda x: (x, x.sum(-1)),
    "tuple behind a loss": lambda x: (x.mean(), x),
    "list": lambda x: [x],
    "object": lambda x: SimpleNamespace(logits=x),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_teacher_may_answer_in_any_kind(kind):
    student = Classifier(mlp(0))
    expected = train_by_hand(student.module, loader(), objective(mlp(1)))
    fit(student, Distillation(Answer(mlp(1), OUTPUTS[kind]), DISTANCE, **TEMPERED))
    assert_close(student.module, expected)


@pytest.mark.parametrize(
    "compiled", [torch.jit.script, lambda m: torch.jit.freeze(torch.jit.script(m))]
)
def test_a_teacher_may_be_torchscript(compiled):
    student = Classifier(mlp(0))
    expected = train_by_hand(student.module, loader(), objective(mlp(1)))
    fit(student, Distillation(compiled(mlp(1, dropout=0.5).eval()), DISTANCE, **TEMPERED))
    assert_close(student.module, expected)


class Differentiates(nn.Module):
    """Turns gradients on in its own forward, as models of forces do."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, inputs):
        with torch.enable_grad():
            return self.module(inputs.detach().clone().requires_grad_())


class Infers(Differentiates):
    """Turns inference mode on in its own forward."""

    @torch.inference_mode()
    def forward(self, inputs):
        return self.module(inputs)


@pytest.mark.parametrize("kind", [Differentiates, Infers])
@pytest.mark.parametrize(
    ("loss", "combine"),
    [(KLDivergence(2.0), "logits"), (KLDivergence(2.0), "probabilities"), (nn.MSELoss(), "logits")],
)
def test_a_teacher_may_have_a_gradient_mode_of_its_own(kind, loss, combine):
    students = []
    for wrap in (kind, nn.Identity):
        teachers = [wrap(mlp(seed)) if wrap is kind else mlp(seed) for seed in (1, 2)]
        students.append(Classifier(mlp(0)))
        fit(students[-1], Distillation(teachers, loss, combine=combine))
        fit(students[-1], Distillation(teachers[0], loss))
    assert_same(*students)


def test_a_loss_of_one_value_with_an_axis_is_a_loss():
    class One(DistillationLoss):
        def compute(self, student, teacher, mask, labels):
            return F.mse_loss(student, teacher).reshape(1)

    students = [Classifier(mlp(0)) for _ in range(3)]
    losses = One(), nn.MSELoss(), 0.5 * One() + 0.5 * One()
    for student, loss in zip(students, losses, strict=True):
        fit(student, Distillation(mlp(1), loss))
    assert_close(students[0], students[1])
    assert_close(students[2], students[1])


def test_a_teacher_without_an_evaluation_mode_is_refused():
    exported = torch.export.export(mlp(1), (torch.randn(2, 6),)).module()
    told = r"teacher \(GraphModule\): model must have an evaluation mode.*made from"
    with pytest.raises(TypeError, match=told):
        fit(Classifier(mlp(0)), Distillation(exported, DISTANCE))


def first_tensor(outputs):
    if isinstance(outputs, dict):
        return next(iter(outputs.values()))
    if isinstance(outputs, (tuple, list)):
        return next(x for x in outputs if x.ndim == 2)
    return getattr(outputs, "logits", outputs)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_student_may_answer_in_any_kind(kind):
    def loss_fn(outputs, targets):
        return F.cross_entropy(first_tensor(outputs), targets)

    student = Classifier(Answer(mlp(0), OUTPUTS[kind]), loss_fn)
    expected = train_by_hand(mlp(0), loader(), objective(mlp(1)))
    fit(student, Distillation(mlp(1), DISTANCE, **TEMPERED))
    assert_close(student.module.module, expected)


def test_functions_name_the_logits_where_they_are_elsewhere():
    def hidden(x):
        return {"first": x.sum(-1), "second": x}

    student = Classifier(Answer(mlp(0), hidden), lambda x, y: F.cross_entropy(x["second"], y))
    teacher = Teacher(Answer(mlp(1), hidden), output_fn=lambda outputs: outputs["second"])
    term = Distillation(teacher, DISTANCE, student_output_fn=lambda x: x["second"], **TEMPERED)
    fit(student, term)
    assert_close(student.module.module, train_by_hand(mlp(0), loader(), objective(mlp(1))))


def test_a_teacher_may_see_another_input():
    student = Classifier(mlp(0))
    teacher = Teacher(mlp(1), input_fn=lambda batch: (2.0 * batch[0], batch[1]))
    expected = train_by_hand(student.module, loader(), objective(lambda x: mlp(1)(2.0 * x)))
    fit(student, Distillation(teacher, DISTANCE, **TEMPERED))
    assert_close(student.module, expected)


class AnyBatch(ComposerModel):
    """A student of any kind of batch: ``read`` makes ``(inputs, targets)`` of it."""

    def __init__(self, module, read):
        super().__init__()
        self.module, self.read = module, read

    def forward(self, batch):
        return self.module(self.read(batch)[0])

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, self.read(batch)[1])


class Named(nn.Module):
    """A module that takes its input by name."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, features):
        return self.module(features)


def zeros(inputs):
    return torch.zeros(len(inputs), dtype=torch.long)


# name: (a batch of inputs and targets, how a model reads it, a plain module that is taught so)
BATCHES = {
    "tuple": (lambda x, y: (x, y), lambda b: b, lambda m: m),
    "list": (lambda x, y: [x, y], lambda b: b, lambda m: m),
    "tensor": (lambda x, y: x, lambda b: (b, zeros(b)), lambda m: m),
    "dict": (
        lambda x, y: {"features": x, "labels": y},
        lambda b: (b["features"], b["labels"]),
        Named,
    ),
    "dict with an entry for the student alone": (
        lambda x, y: {"features": x, "labels": y, "weights": x.sum(-1)},
        lambda b: (b["features"], b["labels"]),
        Named,
    ),
    "dict without labels": (
        lambda x, y: {"features": x},
        lambda b: (b["features"], zeros(b["features"])),
        Named,
    ),
}


@pytest.mark.parametrize("teacher_kind", ["plain", "ComposerModel"])
@pytest.mark.parametrize("microbatch", [10, 4])
@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_may_be_of_any_kind(kind, microbatch, teacher_kind):
    pack, read, plain = BATCHES[kind]
    inputs, targets = dataset(20).tensors
    batches = [pack(inputs[i : i + 10], targets[i : i + 10]) for i in (0, 10)]
    pairs = [read(batch) for batch in batches]
    student = AnyBatch(mlp(0), read)
    teacher = plain(mlp(1)) if teacher_kind == "plain" else AnyBatch(mlp(1), read)
    fit(
        student,
        Distillation(teacher, DISTANCE, **TEMPERED),
        train_dataloader=DataSpec(
            batches, get_num_samples_in_batch=lambda batch: len(read(batch)[0])
        ),
        device_train_microbatch_size=microbatch,
    )
    assert_close(student.module, train_by_hand(mlp(0), pairs, objective(mlp(1))))


def test_composers_own_classifier_distils_into_another():
    def classifier(seed):
        return ComposerClassifier(mlp(seed), num_classes=N_CLASSES)

    student = classifier(0)
    fit(student, Distillation(classifier(1), DISTANCE, **TEMPERED))
    assert_close(student.module, train_by_hand(mlp(0), loader(), objective(mlp(1))))


def test_a_teacher_may_take_any_number_of_arguments():
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = mlp(1)

        def forward(self, *inputs):
            return self.module(inputs[0])

    student = Classifier(mlp(0))
    fit(student, Distillation(Deaf(), DISTANCE, **TEMPERED))
    assert_close(student.module, train_by_hand(mlp(0), loader(), objective(mlp(1))))


SMALL = {"vocab_size": 20}
SMALL_BERT = {
    **SMALL,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 8,
}


def bert_config(dropout, **kwargs):
    return BertConfig(
        **SMALL_BERT,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **kwargs,
    )


def bert_classifier(dropout):
    return BertForSequenceClassification(bert_config(dropout, num_labels=3))


def bert_masked(dropout):
    return BertForMaskedLM(bert_config(dropout))


def gpt2(dropout):
    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    dropouts = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(**SMALL, **sizes, **dropouts))


def t5(dropout):
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = T5Config(**SMALL, **sizes, dropout_rate=dropout, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def seeded(build, seed, dropout=0.0):
    """Return a float64 model; teachers have a dropout, which eval mode turns off."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(dropout).double()


def sentences(labels_per_sample):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (8, 6), generator=generator)
    if labels_per_sample:
        labels = torch.randint(0, 3, (8,), generator=generator)
    else:
        labels = torch.randint(1, 20, (8, 6), generator=generator)
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label}
        for row, label in zip(tokens, labels, strict=True)
    ]
    return DataLoader(rows, batch_size=4)


LANGUAGE = {"BERT classifier": bert_classifier, "BERT masked": bert_masked, "GPT2": gpt2, "T5": t5}


@pytest.mark.parametrize("teacher_kind", ["ComposerModel", "Hugging Face"])
@pytest.mark.parametrize("name", LANGUAGE)
def test_hugging_face_models_distil(name, teacher_kind):
    build = LANGUAGE[name]
    data = list(sentences(build is bert_classifier))
    student, teacher = HuggingFaceModel(seeded(build, 0)), seeded(build, 1, dropout=0.5)
    quiet = seeded(build, 1).eval()

    def value(model, batch):
        outputs = model(**batch)
        with torch.no_grad():
            target = quiet(**batch).logits
        logits = outputs.logits
        if build is gpt2:  # the last position predicts no label
            logits, target = logits[:, :-1], target[:, :-1]
        return 0.3 * outputs.loss + 0.7 * DISTANCE(logits, target)

    expected = sgd_by_hand(seeded(build, 0), data, value)
    if teacher_kind == "ComposerModel":
        teacher = HuggingFaceModel(teacher)
    fit(
        student,
        Distillation(teacher, DISTANCE, **TEMPERED),
        train_dataloader=data,
        lr=0.1,
        device_train_microbatch_size=4,
    )
    torch.testing.assert_close(
        dict(student.model.named_parameters()),
        dict(expected.named_parameters()),
        rtol=RTOL,
        atol=1e-9,
    )


def sgd_by_hand(model, batches, value, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for batch in batches:
        optimizer.zero_grad()
        value(model, batch).backward()
        optimizer.step()
    return model


def test_a_language_teacher_never_sees_the_labels():
    class Strict(nn.Module):
        """A teacher that knows fewer classes than the labels name."""

        def __init__(self):
            super().__init__()
            self.model = seeded(bert_classifier, 1)
            self.keys = []

        def forward(self, input_ids, attention_mask=None, labels=None):
            self.keys.append(labels is None)
            return self.model(input_ids=input_ids, attention_mask=attention_mask)

    teacher = Strict()
    data = list(sentences(labels_per_sample=True))
    student = HuggingFaceModel(seeded(bert_classifier, 0))
    fit(
        student,
        Distillation(teacher, DISTANCE),
        train_dataloader=data,
        device_train_microbatch_size=4,
    )
    assert teacher.keys == [True, True]
    assert all("labels" in batch for batch in data)
