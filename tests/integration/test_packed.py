"""Texts packed into one row: the teacher reads over their borders where the student does."""

import copy

import pytest
import torch
from composer.models import HuggingFaceModel
from torch.utils.data import DataLoader

from composer_distill import CachedTeacher, Distillation, KLDivergence, cache_teacher
from composer_distill.losses import FusedLinearKL
from composer_distill.teachers.packed import holds_packed, reads_over_borders

transformers = pytest.importorskip("transformers")
harness = pytest.importorskip("tests.integration.harness")

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
KINDS = ("Llama", "Phi", "Qwen3", "Olmo2")
POSITIONS = torch.cat([torch.arange(5), torch.arange(7)])


def model(kind, seed=0, **options):
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def batches():
    ids = torch.randint(3, 32, (4, 12), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "position_ids": POSITIONS, "labels": row} for row in ids]
    return DataLoader(rows, batch_size=4)


def distilled(student, teachers, loss=None, **options):
    """Train without moving a weight, and return what was logged."""
    loss = KLDivergence(temperature=1.0) if loss is None else loss
    term = Distillation(teachers, loss, 1.0, 0.0, eval_teachers=options.pop("evaluates", False))
    trainer = harness.fit(
        HuggingFaceModel(student),
        term,
        train_dataloader=batches(),
        max_duration="1ba",
        lr=0.0,
        **options,
    )
    return {name: values[-1][1] for name, values in harness.entries_of(trainer).items()}


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_and_its_copy_agree(kind, use_cache):
    student = model(kind)
    student.config.use_cache = use_cache
    log = distilled(student, copy.deepcopy(student))
    assert log["loss/train/kd"] == pytest.approx(0.0, abs=1e-5)
    assert log["distillation/agreement"] == 1.0


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_the_teacher_answers_is_what_it_answers_to_the_texts_as_the_student_reads_them(
    use_cache,
):
    student, teacher = model("Llama"), model("Llama", 1)
    student.config.use_cache = use_cache
    (batch,) = batches()
    ids = batch["input_ids"]
    with torch.no_grad():
        if use_cache:  # one text, whose places are counted twice
            ones, places = torch.ones_like(ids), batch["position_ids"]
            answers = [
                m(ids, attention_mask=ones, position_ids=places).logits for m in (student, teacher)
            ]
        else:  # each text by itself
            answers = [
                torch.cat([m(ids[:, :5]).logits, m(ids[:, 5:]).logits], 1)
                for m in (student, teacher)
            ]
    own, target = (logits[:, :-1].log_softmax(-1).double() for logits in answers)
    expected = (target.exp() * (target - own)).sum(-1).mean().item()
    for teachers in (teacher, HuggingFaceModel(copy.deepcopy(teacher))):
        log = distilled(copy.deepcopy(student), teachers)
        assert log["loss/train/kd"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_fused_head_and_evaluations_read_as_the_student_does(use_cache):
    student = model("Llama")
    student.config.use_cache = use_cache
    log = distilled(student, copy.deepcopy(student), FusedLinearKL(temperature=1.0))
    assert log["loss/train/kd"] == pytest.approx(0.0, abs=1e-5)
    log = distilled(
        student,
        copy.deepcopy(student),
        evaluates=True,
        eval_dataloader=batches(),
        eval_interval="1ba",
    )
    assert log["metrics/eval/teacher_kl"] == pytest.approx(0.0, abs=1e-5)


def test_a_student_that_recomputes_makes_no_cache():
    student = model("Llama")
    student.gradient_checkpointing_enable({"use_reentrant": False})
    log = distilled(student, model("Llama"))
    assert log["loss/train/kd"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("use_cache", [True, False])
def test_cached_answers_keep_texts_apart_and_say_so(use_cache, tmp_path, caplog):
    student = model("Llama")
    cache_teacher(HuggingFaceModel(copy.deepcopy(student)), batches(), tmp_path / "answers")
    student.config.use_cache = use_cache
    log = distilled(student, CachedTeacher(tmp_path / "answers"))
    assert (log["loss/train/kd"] > 0.1) is use_cache
    assert ("use_cache = False" in caplog.text) is use_cache


def test_only_a_row_of_several_texts_without_a_mask_is_asked_about():
    student, (batch,) = model("Llama"), batches()
    assert reads_over_borders(student, batch)
    assert reads_over_borders(student, (batch, batch["labels"]))
    assert holds_packed((batch, batch["labels"]))
    assert holds_packed(batch)
    assert not holds_packed({"position_ids": torch.arange(5)[None]})
    assert not reads_over_borders(student, batch | {"attention_mask": batch["input_ids"]})
    assert not reads_over_borders(student, batch | {"use_cache": False})
    assert not reads_over_borders(student, batch["input_ids"])
    assert not reads_over_borders(torch.nn.Linear(2, 2), batch)
