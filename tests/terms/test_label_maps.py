"""Label maps of student and teacher, alone and through a Trainer."""

import json
from types import SimpleNamespace

import pytest
import torch
from composer.models import HuggingFaceModel
from integration.harness import fit, logged
from integration.language import kl_by_hand
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_distill import (
    CachedTeacher,
    Distillation,
    KLDivergence,
    Teacher,
    cache_teacher,
    reorder_labels,
)
from composer_distill.teachers.class_names import class_names
from composer_distill.terms.label_maps import check_label_maps

NAMES = ["entailment", "neutral", "contradiction"]
TURNED = NAMES[::-1]


def config(names):
    return SimpleNamespace(id2label=dict(enumerate(names)))


class Named(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.inner = nn.Linear(1, 1)
        self.inner.config = config(names)


def test_another_order_is_an_error_that_names_both():
    told = r"teacher 1 \(x\): its classes stand in another order: \['contradiction'.*'entailment'"
    with pytest.raises(ValueError, match=told) as error:
        check_label_maps(Named(NAMES), Teacher(Named(TURNED)), "teacher 1 (x)")
    assert str(NAMES) in str(error.value)
    assert "output_fn=composer_distill.reorder_labels(teacher.config, student.config)" in str(
        error.value
    )


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        [name.upper() for name in NAMES],
        ["LABEL_0", "LABEL_1", "LABEL_2"],
        ["yes", "no"],
        ["maybe", "neutral", "yes"],
        ["neutral", "neutral", "contradiction"],
        [*TURNED, "none"],
    ],
)
def test_else_label_maps_say_nothing(names, caplog):
    check_label_maps(Named(NAMES), Teacher(Named(names)), "teacher 0 (x)")
    check_label_maps(Named(names), Teacher(Named(NAMES)), "teacher 0 (x)")
    check_label_maps(Named(names), Teacher(nn.Linear(1, 1)), "teacher 0 (x)")
    assert caplog.text == ""


def test_wholly_other_names_are_told_of_once_a_teacher(caplog):
    check_label_maps(Named([*NAMES, "none"]), Teacher(Named(["a", "b", "c", "d"])), "teacher 1 (x)")
    assert [record.getMessage() for record in caplog.records] == [
        "teacher 1 (x): none of its classes has the name of one of the student's: a, b, c, ... "
        "where the student's are entailment, neutral, contradiction, .... Each class is compared "
        "with the one at its own place. If they are the same classes, give both configurations one "
        "id2label."
    ]


class Classes(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.inner = nn.Linear(4, len(names))
        self.config = config(names)

    def forward(self, x):
        return self.inner(x)


def test_kept_answers_have_the_classes_of_the_teacher_that_gave_them(tmp_path, caplog):
    """Whether or not a live teacher stands beside them."""
    data = DataLoader(TensorDataset(torch.randn(4, 4)), batch_size=4)
    student, teacher = Classes(NAMES), Classes(TURNED)
    cache_teacher(teacher, data, tmp_path / "turned", device="cpu")
    for beside in (None, teacher):
        with pytest.raises(ValueError, match=r"another order: \['contra.*\nWrite other answers of"):
            check_label_maps(student, CachedTeacher(tmp_path / "turned", beside), "teacher 0 (x)")
    mapped = Teacher(teacher, output_fn=reorder_labels(teacher.config, student.config))
    with pytest.raises(
        ValueError, match=r"cache with labels 'contradiction, .*' where now it is None"
    ):
        cache_teacher(mapped, data, tmp_path / "turned", device="cpu")
    cache_teacher(mapped, data, tmp_path / "mapped", device="cpu")
    for beside in (None, mapped):
        check_label_maps(student, CachedTeacher(tmp_path / "mapped", beside), "teacher 0 (x)")
    assert caplog.text == ""


def test_a_cache_of_a_former_version_tells_no_classes(tmp_path):
    data, teacher = DataLoader(TensorDataset(torch.randn(4, 4)), batch_size=4), Classes(TURNED)
    cache_teacher(teacher, data, tmp_path, device="cpu")
    entries = json.loads((tmp_path / "manifest.json").read_text())
    del entries["recipe"]["labels"]
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    check_label_maps(Classes(NAMES), CachedTeacher(tmp_path), "teacher 0 (x)")
    assert cache_teacher(teacher, data, tmp_path, device="cpu").samples == 4


def test_names_need_a_number_each():
    assert class_names(SimpleNamespace(id2label={1: "a", 2: "b"})) is None
    assert class_names(SimpleNamespace(id2label=None)) is None


def test_classes_are_reordered_by_name_wherever_they_lie():
    given = torch.arange(24.0).reshape(2, 4, 3)
    order = [2, 1, 0]
    assert torch.equal(reorder_labels(config(TURNED), config(NAMES))(given), given[..., order])
    pixels = given.movedim(-1, 1)
    reordered = reorder_labels(config(TURNED), config(NAMES), dim=1)({"logits": pixels})
    assert torch.equal(reordered, pixels[:, order])
    more = reorder_labels(config(["other", *TURNED]), config([n.title() for n in NAMES]))
    assert more(torch.tensor([[9.0, 1.0, 2.0, 3.0]])).tolist() == [[3.0, 2.0, 1.0]]


@pytest.mark.parametrize(
    ("teacher", "student", "told"),
    [
        (NAMES, ["LABEL_0", "LABEL_1"], "student_config must name each class once"),
        (["LABEL_0", "LABEL_1"], NAMES, "teacher_config must name each class once"),
        (NAMES[:2], NAMES, r"teacher_config must name all .* lacks \['contradiction'\]"),
    ],
)
def test_maps_that_can_not_be_matched_are_refused(teacher, student, told):
    with pytest.raises(ValueError, match=told):
        reorder_labels(config(teacher), config(student))


def test_a_trainer_refuses_another_order_and_trains_on_the_mapped_one():
    transformers = pytest.importorskip("transformers")

    def bert(width, seed, names):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return transformers.BertForSequenceClassification(
                transformers.BertConfig(
                    vocab_size=30, hidden_size=width, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=2, id2label=dict(enumerate(names)),
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                )
            ).double()  # fmt: skip

    ids = torch.randint(0, 30, (4, 6), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": torch.tensor([0, 1, 2, 1])}
    student, teacher = bert(8, 0, NAMES), bert(16, 1, TURNED)
    with torch.no_grad():
        expected = kl_by_hand(student(ids).logits, teacher.eval()(ids).logits[:, [2, 1, 0]])
    options = {"train_dataloader": [batch], "device_train_microbatch_size": 4, "lr": 0.0}
    with pytest.raises(ValueError, match="teacher 0 .* stand in another order"):
        fit(HuggingFaceModel(student), Distillation(teacher, KLDivergence(1.0)), **options)
    mapped = Teacher(teacher, output_fn=reorder_labels(teacher.config, student.config))
    trainer = fit(HuggingFaceModel(student), Distillation(mapped, KLDivergence(1.0)), **options)
    assert logged(trainer, "loss/train/kd") == [pytest.approx(expected.item(), rel=1e-6)]
