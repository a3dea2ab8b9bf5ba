"""Cached answers of language models: positions, padding, and few classes a position."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from composer_distill import CachedTeacher, KLDivergence, attended_positions, cache_teacher
from composer_distill.losses import (
    DIST,
    FusedLinearKL,
    JensenShannonDivergence,
    ReverseKLDivergence,
    SoftCrossEntropy,
)
from tests.integration import language
from tests.integration.harness import assert_close, assert_same, logged
from tests.integration.test_language import fit

TOLD = ("kl", "agreement", "student_entropy", "teacher_entropy")


def written(folder, kind, data=None, **options):
    data = language.loader(language.batches(kind)) if data is None else data
    cache_teacher(language.model(kind, 2), data, folder, device="cpu", **options)
    return CachedTeacher(folder)


@pytest.mark.parametrize("kind", language.KINDS)
def test_whole_answers_of_each_kind_train_as_the_live_teacher(kind, tmp_path):
    data = language.loader(language.batches(kind))
    cached = written(tmp_path / "answers", kind)
    live = fit(language.model(kind, 1), language.model(kind, 2), data)
    ours = fit(language.model(kind, 1), cached, data)
    assert_close(ours.state.model, live.state.model, rtol=1e-9)
    for name in TOLD:
        expected = logged(live, f"distillation/{name}")
        assert logged(ours, f"distillation/{name}") == pytest.approx(expected, rel=1e-6), name
    kept = sum(int(batch["attention_mask"].sum()) for batch in language.batches(kind))
    if kind not in ("sequences", "encoder_decoder"):
        assert cached.cache.manifest.positions == kept


@pytest.mark.parametrize("kind", language.KINDS)
@pytest.mark.parametrize("size", [3, 8])
def test_all_classes_of_each_kind_train_as_whole_answers(kind, size, tmp_path):
    data = language.loader(language.batches(kind))
    classes = 5 if kind in ("tokens", "sequences") else language.VOCAB
    cached = written(tmp_path / "answers", kind, top_k=classes, dtype=torch.float32)
    # One batch: float32 is kept, and T5's next step makes its rounding ten thousand times larger
    options: Any = {"trainer": {"device_train_microbatch_size": size}, "duration": "1ba"}
    live = fit(language.model(kind, 1), language.model(kind, 2), data, **options)
    ours = fit(language.model(kind, 1), cached, data, **options)
    assert_close(ours.state.model, live.state.model, rtol=1e-5)
    for name in TOLD:
        expected = logged(live, f"distillation/{name}")
        assert logged(ours, f"distillation/{name}") == pytest.approx(expected, abs=1e-5), name


def other_side(batches):
    """Return the same texts with their padding on the other side and more of it."""
    moved = []
    for batch in batches:
        rows = {name: [] for name in batch}
        for index, mask in enumerate(batch["attention_mask"].bool()):
            for name, value in batch.items():
                filling = {"labels": -100, "attention_mask": 0}.get(name, 9)
                kept = value[index][mask]
                rows[name].append(F.pad(kept, (language.LENGTH - len(kept), 0), value=filling))
        moved.append({name: torch.stack(values) for name, values in rows.items()})
    return moved


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"samples": 7}], ids=str)
def test_padding_on_another_side_finds_the_same_answers(options, tmp_path):
    batches = language.batches("rotary")
    cached = written(tmp_path / "answers", "rotary", **options)
    found = []
    for data in (batches, other_side(batches)):
        trained = fit(
            language.model("rotary", 1),
            cached,
            language.loader(data),
            mask_fn=attended_positions,
            duration="1ba",
        )
        found.append(logged(trained, "loss/train/kd"))
    # rotary positions are relative: the same text has the same logits further right
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_positions_that_no_answer_was_asked_with_are_told(tmp_path):
    batches = language.batches("causal")
    cached = written(tmp_path / "answers", "causal", language.loader(batches))
    for batch in batches:
        batch["position_ids"] = torch.zeros_like(batch["input_ids"])
    with pytest.raises(ValueError, match="the batch holds 'position_ids', which the teacher would"):
        fit(language.model("causal", 1), cached, language.loader(batches))


def test_a_position_at_padding_that_counts_is_told(tmp_path):
    batches = language.batches("causal", side="left")
    for batch in batches:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    data = language.loader(batches)
    cached = written(tmp_path / "answers", "causal", data)
    with pytest.raises(ValueError, match="positions of the batch count that are padding"):
        fit(language.model("causal", 1), cached, data)


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({"top_k": 4}, SoftCrossEntropy(1.0)),
        ({"top_k": 4}, ReverseKLDivergence()),
        ({"top_k": 4}, JensenShannonDivergence()),
        ({"top_k": 4}, 0.5 * KLDivergence(1.0) + 0.5 * ReverseKLDivergence()),
        ({"samples": 12}, KLDivergence(1.0)),
        ({"samples": 12, "temperature": 2.0}, KLDivergence(2.0)),
    ],
    ids=str,
)
def test_a_student_learns_from_few_classes(options, loss, tmp_path):
    data = language.loader(language.batches("causal"))
    cached = written(tmp_path / "answers", "causal", **options)
    trained = fit(language.model("causal", 1), cached, data, loss, duration="12ba")
    values = logged(trained, "loss/train/kd")
    assert sum(values[-2:]) < sum(values[:2])
    at_one = options.get("temperature", 1.0) == 1.0
    assert len(logged(trained, "distillation/kl")) == 12 * at_one
    assert len(logged(trained, "distillation/agreement")) == 12


@pytest.mark.parametrize("kind", [{"top_k": 4}, {"samples": 7}], ids=str)
def test_a_live_teacher_answers_as_the_cache_would(kind, tmp_path):
    batches = language.batches("rotary")
    cached = written(tmp_path / "all", "rotary", **kind, dtype=torch.float32)
    written(tmp_path / "half", "rotary", language.loader(batches[:1]), **kind, dtype=torch.float32)
    half = CachedTeacher(tmp_path / "half", language.model("rotary", 2))
    runs = [
        fit(language.model("rotary", 1), teacher, language.loader(batches))
        for teacher in (cached, half)
    ]
    assert_close(runs[0].state.model, runs[1].state.model, rtol=1e-5)


def test_a_batch_that_keeps_no_position_counts_nothing(tmp_path):
    batches = language.batches("causal")
    for batch in batches:
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
    data = language.loader(batches)
    student = language.model("causal", 1)
    trained = fit(student, written(tmp_path / "answers", "causal", data, top_k=4), data)
    assert logged(trained, "loss/train/kd") == [0.0, 0.0]
    assert_same(trained.state.model, language.model("causal", 1))


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"top_k": 4}, {"loss": DIST()}, r"kd_loss_fn \(DIST\) can't be computed"),
        ({"top_k": 4}, {"loss": FusedLinearKL()}, "no hidden states"),
        ({"samples": 4}, {"loss": ReverseKLDivergence()}, "draws from the teacher's distribution"),
        ({"top_k": 4}, {"loss": KLDivergence(2.0)}, "temperature 2, and the cached answers were"),
        ({"top_k": 4}, {"loss": KLDivergence(1.0), "eval_teachers": True}, "needs whole logits"),
        ({"top_k": 4}, {"loss": KLDivergence(1.0), "vocab_size": 20}, "23 classes where the stu"),
    ],
    ids=str,
)
def test_what_few_classes_can_not_do_is_refused(options, arguments, message, tmp_path):
    data = language.loader(language.batches("causal"))
    cached = written(tmp_path / "answers", "causal", **options)
    with pytest.raises((ValueError, TypeError), match=message):
        fit(language.model("causal", 1), cached, data, **arguments)


def test_few_classes_are_not_combined(tmp_path):
    data = language.loader(language.batches("causal"))
    cached = written(tmp_path / "answers", "causal", top_k=4)
    with pytest.raises(ValueError, match="can't be combined with others to one target"):
        fit(language.model("causal", 1), [cached, language.model("causal", 3)], data)


def test_a_padded_vocabulary_is_cut_when_it_is_written(tmp_path):
    data = language.loader(language.batches("causal"))
    cached = written(tmp_path / "answers", "causal", top_k=20, dtype=torch.float32, vocab_size=20)
    loss = KLDivergence(1.0)
    live = fit(language.model("causal", 1), language.model("causal", 2), data, loss, vocab_size=20)
    ours = fit(language.model("causal", 1), cached, data, loss, vocab_size=20)
    assert_close(ours.state.model, live.state.model, rtol=1e-5)


def test_two_kinds_at_once_are_refused(tmp_path):
    with pytest.raises(ValueError, match="top_k=4 and samples=5 are two kinds"):
        written(tmp_path, "causal", top_k=4, samples=5)
    with pytest.raises(ValueError, match="samples must be an integer of at least 1, got 0"):
        written(tmp_path, "causal", samples=0)
