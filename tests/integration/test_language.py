"""Language models through real Trainers: positions, normalisation, vocabulary, inputs."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composer import Trainer
from composer.core import Event
from composer.models import HuggingFaceModel
from torch import nn
from torch.nn import functional as F

from composer_distill import (
    Distillation,
    KLDivergence,
    Teacher,
    all_positions,
    attended_positions,
    loss_positions,
)
from composer_distill.losses import DistillationLoss
from tests.integration.harness import Log, Spy, assert_close, assert_same, logged

transformers = pytest.importorskip("transformers")
language = pytest.importorskip("tests.integration.language")
train_with_a_masked_half = pytest.importorskip("tests.integration.language_worker").train

KL = KLDivergence(temperature=1.0)


def fit(student, teachers, data, loss=KL, *, duration="2ba", callbacks=(), trainer=(), **arguments):
    """Train with the distillation term alone and return the Trainer."""
    arguments = {"kd_loss_weight": 1.0, "org_loss_weight": 0.0} | arguments
    made = Trainer(
        model=student,
        train_dataloader=data,
        max_duration=duration,
        optimizers=torch.optim.SGD(student.parameters(), lr=0.05),
        algorithms=Distillation(teachers, loss, **arguments),
        callbacks=list(callbacks),
        loggers=[Log()],
        progress_bar=False,
        seed=1,
        **dict(trainer),
    )
    made.fit()
    made.close()
    return made


def tokens_per_batch(batch):
    return int((batch["labels"][:, 1:] != -100).sum())


@pytest.mark.parametrize("kind", language.KINDS)
def test_each_kind_of_model_trains_on_the_positions_of_its_task(kind):
    student, teacher = language.model(kind, 1), language.model(kind, 2)
    batches = language.batches(kind)
    before = [{k: v.clone() for k, v in batch.items()} for batch in batches]
    ours, theirs = (language.logits_of(m, batches[0]) for m in (student, teacher))
    kept = language.kept_by_hand(kind, batches[0])
    if kept is not None:
        assert 0 < kept.sum() < kept.numel()
        ours, theirs = ours[kept], theirs[kept]
    expected = language.kl_by_hand(ours, theirs)
    agreement = (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    trained = fit(student, teacher, language.loader(batches))
    assert logged(trained, "loss/train/kd")[0] == pytest.approx(expected.item(), rel=1e-6)
    assert logged(trained, "distillation/kl")[0] == pytest.approx(expected.item(), rel=1e-4)
    assert logged(trained, "distillation/agreement")[0] == pytest.approx(agreement.item())
    assert logged(trained, "loss/train/kd")[1] != logged(trained, "loss/train/kd")[0]
    for batch, copied in zip(batches, before, strict=True):
        assert all(batch[key].equal(copied[key]) for key in copied)


@pytest.mark.parametrize("kind", ["causal", "masked", "encoder_decoder"])
def test_a_tuple_output_trains_to_the_same_weights(kind):
    data = language.batches(kind)
    runs = []
    for return_dict in (True, False):
        student, teacher = (language.model(kind, seed) for seed in (1, 2))
        for model in (student, teacher):
            # Not its parts, which in transformers 5 break where they are told so too
            model.config = model.model.config = copy.deepcopy(model.config)
            model.config.return_dict = return_dict
        fit(student, teacher, language.loader(data), org_loss_weight=0.5)
        runs.append(student)
    assert_same(*runs)


@pytest.mark.parametrize("kind", ["causal", "rotary"])
def test_padding_on_either_side_is_left_out(kind):
    data = language.batches(kind, side="left")
    student, teacher = language.model(kind, 1), language.model(kind, 2)
    kept = language.kept_by_hand(kind, data[0])
    expected = language.kl_by_hand(
        language.logits_of(student, data[0])[kept], language.logits_of(teacher, data[0])[kept]
    )
    trained = fit(student, teacher, language.loader(data), duration="1ba")
    assert logged(trained, "loss/train/kd")[0] == pytest.approx(expected.item(), rel=1e-6)


class TestMaskFn:
    @pytest.mark.parametrize(
        ("mask_fn", "kept"),
        [
            (loss_positions, lambda batch: batch["labels"] != -100),
            (attended_positions, lambda batch: batch["attention_mask"] == 1),
            (all_positions, lambda batch: torch.ones_like(batch["labels"], dtype=torch.bool)),
            (lambda b, o: b["input_ids"] == 3, lambda batch: batch["input_ids"] == 3),
        ],
        ids=["loss", "attended", "all", "own"],
    )
    def test_the_users_choice_decides_for_a_masked_model(self, mask_fn, kept):
        data = language.batches("masked")
        student, teacher = language.model("masked", 1), language.model("masked", 2)
        rows = [language.logits_of(m, data[0])[kept(data[0])] for m in (student, teacher)]
        run = fit(student, teacher, language.loader(data), duration="1ba", mask_fn=mask_fn)
        expected = language.kl_by_hand(*rows).item()
        assert logged(run, "loss/train/kd")[0] == pytest.approx(expected, rel=1e-6)

    def test_a_mask_of_the_wrong_shape_stops_at_the_first_batch(self):
        with pytest.raises(ValueError, match=r"mask_fn \(<lambda>\) must return one value a pos"):
            fit(
                language.model("masked", 1), language.model("masked", 2),
                language.loader(language.batches("masked")),
                mask_fn=lambda b, o: torch.ones(3, dtype=torch.bool),
            )  # fmt: skip

    def test_any_callable_sees_the_kept_positions_as_rows(self):
        shapes = []

        def distance(student, teacher):
            shapes.append((tuple(student.shape), tuple(teacher.shape)))
            return F.mse_loss(student, teacher)

        data = language.batches("causal", n=1)
        student, teacher = language.model("causal", 1), language.model("causal", 2)
        kept = language.kept_by_hand("causal", data[0])
        rows = [language.logits_of(m, data[0])[kept] for m in (student, teacher)]
        run = fit(student, teacher, language.loader(data), distance, duration="1ba")
        assert shapes == [((int(kept.sum()), language.VOCAB),) * 2]
        expected = F.mse_loss(*rows).item()
        assert logged(run, "loss/train/kd")[0] == pytest.approx(expected, rel=1e-6)

    def test_batchmean_divides_by_the_samples_with_a_mask_too(self):
        data = language.batches("causal", n=1, size=4)
        students = [language.model("causal", 1) for _ in range(2)]
        teacher = language.model("causal", 2)
        mean, batchmean = (
            fit(s, teacher, language.loader(data), KLDivergence(1.0, reduction=r), duration="1ba")
            for s, r in zip(students, ("mean", "batchmean"), strict=True)
        )
        kept = language.kept_by_hand("causal", data[0])
        ratio = logged(batchmean, "loss/train/kd")[0] / logged(mean, "loss/train/kd")[0]
        assert ratio == pytest.approx(kept.sum().item() / 4)
        for name in ("distillation/agreement", "distillation/kl"):
            assert logged(mean, name)[0] == pytest.approx(logged(batchmean, name)[0], rel=1e-5)


def labelled_tokens(batch):
    return int((batch["labels"] != -100).sum())


class TestNormalisation:
    @pytest.mark.parametrize(
        ("kind", "count", "mask_fn", "rtol"),
        [
            ("causal", tokens_per_batch, None, 1e-6),
            ("masked", labelled_tokens, loss_positions, 1e-6),
            ("encoder_decoder", labelled_tokens, None, 1e-3),  # T5 normalises in float32
        ],
        ids=["causal", "masked", "encoder_decoder"],
    )
    def test_weights_are_equal_for_every_microbatch_size(self, kind, count, mask_fn, rtol):
        data, ended = language.batches(kind, n=3), []
        for size in (8, 4, 2, 1):
            student = language.model(kind, 1)
            options = {
                "accumulate_train_batch_on_tokens": True,
                "device_train_microbatch_size": size,
            }
            run = fit(
                student, language.model(kind, 2), language.counted(data, count),
                duration="3ba", trainer=options, org_loss_weight=0.3, mask_fn=mask_fn,
            )  # fmt: skip
            ended.append((student, logged(run, "loss/train/kd")))
        for student, values in ended[1:]:
            assert_close(student, ended[0][0], rtol)
            assert values == pytest.approx(ended[0][1], rel=max(1e-5, rtol))

    def test_unequal_numbers_of_positions_are_warned_of_once(self, caplog):
        fit(
            language.model("causal", 1), language.model("causal", 2),
            language.loader(language.batches("causal", n=3)),
            duration="3ba", trainer={"device_train_microbatch_size": 4},
        )  # fmt: skip
        assert caplog.text.count("accumulate_train_batch_on_tokens=True") == 1

    def test_equal_numbers_are_not_warned_of(self, caplog):
        data = language.batches("causal", n=1)
        data[0]["labels"] = data[0]["input_ids"].clone()
        fit(
            language.model("causal", 1), language.model("causal", 2), language.loader(data),
            duration="1ba", trainer={"device_train_microbatch_size": 2},
        )  # fmt: skip
        assert "accumulate_train_batch_on_tokens" not in caplog.text

    def test_counted_tokens_are_not_warned_of(self, caplog):
        data = language.batches("causal", n=1)
        fit(
            language.model("causal", 1), language.model("causal", 2),
            language.counted(data, tokens_per_batch), duration="1ba",
            trainer={"device_train_microbatch_size": 2, "accumulate_train_batch_on_tokens": True},
        )  # fmt: skip
        assert "accumulate_train_batch_on_tokens" not in caplog.text


class TestNothingKept:
    def data(self):
        (batch,) = language.batches("causal", n=1, size=4)
        batch["labels"][:2] = -100
        return [batch]

    def test_an_all_masked_microbatch_adds_nothing_and_keeps_its_gradient_path(self):
        data, ended = self.data(), []
        gradients = Spy(
            Event.AFTER_BACKWARD,
            lambda state: [p.grad is not None for p in state.model.parameters()],
        )
        for size in (4, 2):
            student = language.Counts(1)
            run = fit(
                student, language.Counts(2), language.counted(data, tokens_per_batch),
                duration="1ba", callbacks=[gradients], org_loss_weight=0.5,
                trainer={
                    "accumulate_train_batch_on_tokens": True,
                    "device_train_microbatch_size": size,
                },
            )  # fmt: skip
            ended.append((student, run))
        assert all(all(found) for found in gradients.seen)
        assert_close(ended[0][0], ended[1][0])
        for name in ("loss/train/kd", "distillation/agreement", "distillation/kl"):
            whole, split = (logged(run, name)[0] for _, run in ended)
            assert split == pytest.approx(whole, rel=1e-5)

    def test_a_rank_that_keeps_nothing_counts_for_nothing(self, tmp_path):
        worker = Path(__file__).parent / "language_worker.py"
        subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node=2", str(worker), str(tmp_path),
            ],
            check=True, capture_output=True, text=True, timeout=300,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        (tmp_path / "alone").mkdir()
        train_with_a_masked_half(tmp_path / "alone")
        alone, *ranks = (
            torch.load(tmp_path / name, weights_only=True)
            for name in ("alone/rank0.pt", "rank0.pt", "rank1.pt")
        )
        for rank in ranks:
            torch.testing.assert_close(rank["weights"], alone["weights"], rtol=1e-6, atol=1e-8)
            assert rank["logged"] == pytest.approx(alone["logged"], rel=1e-5)

    @pytest.mark.parametrize("loss", [KL, nn.MSELoss()], ids=["ours", "any"])
    def test_a_batch_without_a_position_is_zero_and_every_value_is_there(self, loss):
        (batch,) = language.batches("causal", n=1, size=2)
        batch["labels"].fill_(-100)
        student = language.Counts(1)
        before = copy.deepcopy(student)
        run = fit(
            student,
            [language.Counts(2), language.Counts(3)],
            language.loader([batch]),
            loss,
            duration="1ba",
        )
        assert_same(student, before)
        for name in ("loss/train/kd", "distillation/agreement", "distillation/kd_loss/teacher_1"):
            assert logged(run, name) == [0.0]


class TestHead:
    @pytest.mark.parametrize("kind", ["causal", "rotary", "masked", "encoder_decoder"])
    def test_a_teachers_logits_are_computed_for_the_kept_positions_alone(self, kind):
        data = language.batches(kind, n=1)
        teacher = language.model(kind, 2)
        seen = []
        # on the hidden states' way out of the head
        teacher.model.get_output_embeddings().register_forward_hook(
            lambda module, inputs, output: seen.append(tuple(output.shape))
        )
        students = [language.model(kind, 1) for _ in range(2)]
        fit(students[0], teacher, language.loader(data), duration="1ba")
        kept = int(language.kept_by_hand(kind, data[0]).sum())
        assert seen == [(1, kept, language.VOCAB)]
        # a teacher whose output is mapped answers in full, with the same result
        whole = Teacher(teacher, output_fn=lambda output: output.logits)
        fit(students[1], whole, language.loader(data), duration="1ba")
        assert seen[1] == (8, language.LENGTH, language.VOCAB)
        assert_close(*students)
        assert not teacher.model.get_output_embeddings()._forward_pre_hooks


class TestVocabulary:
    def test_padding_is_cut_from_both(self):
        data, real = language.batches("causal", n=1), language.VOCAB
        student, teacher = (
            language.model("causal", 1, real + 3),
            language.model("causal", 2, real + 9),
        )
        kept = language.kept_by_hand("causal", data[0])
        rows = [language.logits_of(m, data[0])[kept][:, :real] for m in (student, teacher)]
        run = fit(student, teacher, language.loader(data), duration="1ba", vocab_size=real)
        expected = language.kl_by_hand(*rows).item()
        assert logged(run, "loss/train/kd")[0] == pytest.approx(expected, rel=1e-6)

    def test_unequal_sizes_without_it_are_explained(self):
        with pytest.raises(ValueError, match=r"teacher 0.*\n.*vocab_size=len\(tokenizer\)"):
            fit(
                language.model("causal", 1), language.model("causal", 2, language.VOCAB + 9),
                language.loader(language.batches("causal")),
            )  # fmt: skip

    def test_more_than_there_is_names_the_model(self):
        with pytest.raises(ValueError, match="vocab_size=99 is more than the 23 classes of the st"):
            fit(
                language.model("causal", 1), language.model("causal", 2),
                language.loader(language.batches("causal")), vocab_size=99,
            )  # fmt: skip

    def tokenizer(self, words):
        import tokenizers
        import transformers

        core = tokenizers.Tokenizer(
            tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?")
        )
        return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")

    def test_different_tokenizers_of_equal_size_are_refused_before_training(self):
        student, teacher = language.model("causal", 1), language.model("causal", 2)
        student.tokenizer = self.tokenizer(["?", "a", "b"])
        teacher.tokenizer = self.tokenizer(["?", "b", "a"])
        before = copy.deepcopy(student)
        with pytest.raises(ValueError, match="teacher 0 .*its tokenizer is not the student's"):
            fit(student, teacher, language.loader(language.batches("causal")))
        assert_same(student, before)

    def test_with_equal_tokenizers_the_error_knows_the_real_size(self):
        student, teacher = language.model("causal", 1, 30), language.model("causal", 2, 40)
        student.tokenizer = teacher.tokenizer = self.tokenizer(["?", *map(chr, range(97, 119))])
        with pytest.raises(ValueError, match=r"one tokenizer of 23 tokens.*vocab_size=23"):
            fit(student, teacher, language.loader(language.batches("causal")))


class NextLabel(DistillationLoss):
    """Needs labels: the teacher's surprise, so that its value tells which labels came."""

    needs_labels = True

    def compute(self, student, teacher, mask, labels):
        assert mask is None
        assert (labels >= 0).all()
        return F.cross_entropy(teacher, labels) + 0.0 * student.sum()


@pytest.mark.parametrize("kind", ["causal", "masked", "tokens", "encoder_decoder", "sequences"])
def test_labels_reach_the_loss_where_the_logits_predict_them(kind):
    data, teacher = language.batches(kind, n=1), language.model(kind, 2)
    run = fit(language.model(kind, 1), teacher, language.loader(data), NextLabel(), duration="1ba")
    with torch.no_grad():
        expected = teacher.eval().model(**data[0]).loss.item()
    assert logged(run, "loss/train/kd")[0] == pytest.approx(expected, rel=1e-6)


def test_a_good_causal_teacher_is_not_taken_for_one_at_chance(caplog):
    (batch,) = language.batches("rotary", n=1)
    teacher = language.model("rotary", 2)
    optimizer = torch.optim.Adam(teacher.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        teacher.model(**batch).loss.backward()
        optimizer.step()
    fit(language.model("rotary", 1), teacher, language.loader([batch] * 6), duration="6ba")
    assert "no better than chance" not in caplog.text


class TestTeachers:
    def test_two_at_once_are_averaged_and_told_apart(self):
        data = language.batches("causal", n=1)
        student, teachers = (
            language.model("causal", 1),
            [language.model("causal", s) for s in (2, 3)],
        )
        kept = language.kept_by_hand("causal", data[0])
        ours = language.logits_of(student, data[0])[kept]
        theirs = [language.logits_of(t, data[0])[kept] for t in teachers]
        run = fit(student, teachers, language.loader(data), duration="1ba", combine="probabilities")
        mixture = torch.stack([t.softmax(-1) for t in theirs]).mean(0).log()
        expected = language.kl_by_hand(ours, mixture).item()
        assert logged(run, "loss/train/kd")[0] == pytest.approx(expected, rel=1e-6)
        for index in range(2):
            alone = language.kl_by_hand(ours, theirs[index]).item()
            value = logged(run, f"distillation/kd_loss/teacher_{index}")[0]
            assert value == pytest.approx(alone, rel=1e-6)

    def test_one_is_drawn_for_each_batch(self):
        data = language.batches("masked", n=8, size=2)
        teachers, seen = [language.model("masked", seed) for seed in (2, 3)], []
        for index, teacher in enumerate(teachers):
            teacher.model.register_forward_hook(lambda *_, index=index: seen.append(index))
        fit(
            language.model("masked", 1), teachers, language.loader(data), duration="8ba",
            n_teachers_to_sample=1,
        )  # fmt: skip
        assert len(seen) == 8
        assert set(seen) == {0, 1}

    def test_the_recipe_of_bert_stops_at_three_tenths(self):
        data = language.batches("masked", n=10, size=2)
        run = fit(
            language.model("masked", 1), language.model("masked", 2), language.loader(data),
            duration="10ba", end_dur="0.3dur", mask_fn=loss_positions,
        )  # fmt: skip
        assert len(logged(run, "loss/train/kd")) == 3


@pytest.mark.parametrize("use_logits", [False, True])
def test_teachers_on_an_evaluation_set_count_the_same_positions(use_logits):
    from composer import Evaluator
    from composer.metrics import LanguageCrossEntropy
    from composer.models import HuggingFaceModel

    data = language.batches("causal", n=1)
    core = language.model("causal", 1).model
    student = HuggingFaceModel(
        core, metrics=[], eval_metrics=[LanguageCrossEntropy()], use_logits=use_logits
    )
    if not use_logits:
        student.val_metrics = {}
    teacher = language.model("causal", 2)
    kept = language.kept_by_hand("causal", data[0])
    expected = language.kl_by_hand(
        language.logits_of(student, data[0])[kept], language.logits_of(teacher, data[0])[kept]
    )
    trainer = Trainer(
        model=student,
        eval_dataloader=Evaluator(
            label="eval",
            dataloader=language.loader(data),
            metric_names=["LanguageCrossEntropy"] if use_logits else [],
        ),
        optimizers=torch.optim.SGD(student.parameters(), lr=0.05),
        algorithms=Distillation(teacher, KL, eval_teachers=True),
        loggers=[Log()],
        progress_bar=False,
    )
    trainer.eval()
    trainer.close()
    assert logged(trainer, "metrics/eval/teacher_kl")[0] == pytest.approx(expected.item(), rel=1e-5)


def mixture_of_experts(seed, coefficient):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.MixtralForCausalLM(
            transformers.MixtralConfig(
                vocab_size=language.VOCAB, hidden_size=16, intermediate_size=16,
                num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                num_local_experts=2, num_experts_per_tok=1, output_router_logits=True,
                router_aux_loss_coef=coefficient,
            )
        )  # fmt: skip


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_the_weight_of_the_own_loss_weighs_the_routers_loss_too(weight):
    """At 0 nothing balances the experts, as the page on language models says."""
    ids = torch.randint(4, language.VOCAB, (4, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    gates = []
    for coefficient in (0.0, 10.0):
        student = HuggingFaceModel(mixture_of_experts(1, coefficient))
        fit(
            student,
            mixture_of_experts(2, 0.0),
            [batch],
            duration="1ba",
            org_loss_weight=weight,
            trainer={"device_train_microbatch_size": 4},
        )
        gates.append(student.model.model.layers[0].block_sparse_moe.gate.weight)
    assert torch.equal(*gates) == (weight == 0.0)
