"""Positions by the student's own loss, where its class says nothing or says it wrongly."""

import pytest
import torch
from composer import Evaluator
from composer.metrics.nlp import MaskedAccuracy
from composer.models import ComposerModel, HuggingFaceModel
from integration.harness import fit, logged
from integration.language import kl_by_hand
from torch.nn import functional as F
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence, loss_positions
from composer_distill.losses import DistillationLoss, FusedLinearKL
from composer_distill.terms.student import StudentReader

transformers = pytest.importorskip("transformers")
KL, ONLY = KLDivergence(1.0), {"kd_loss_weight": 1.0, "org_loss_weight": 0.0}
VOCAB, IMAGE = 40, 39
SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}


def seeded(build, width, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(width).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return model


def llava(width):
    vision = transformers.CLIPVisionConfig(
        image_size=8, patch_size=4, projection_dim=8, num_hidden_layers=2, **SIZES
    )
    text = transformers.LlamaConfig(
        vocab_size=VOCAB, num_hidden_layers=1, **SIZES | {"hidden_size": width}
    )
    text.loss_type = "ForCausalLM"
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
    )
    config.loss_type = "ForCausalLM"
    return transformers.LlavaForConditionalGeneration(config)


def xlm(width):  # registered as causal, and its loss does not shift
    return transformers.XLMWithLMHeadModel(
        transformers.XLMConfig(
            vocab_size=VOCAB, emb_dim=width, n_layers=1, n_heads=2, max_position_embeddings=16,
            dropout=0.0, attention_dropout=0.0,
        )
    )  # fmt: skip


def batch_of(build):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, IMAGE - 1, (4, 12), generator=generator)
    labels = ids.clone()
    labels[:, :8] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if build is llava:
        ids[:, 1:5] = IMAGE
        batch["pixel_values"] = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.double)
    return batch


def by_hand(build, batch, kept):
    unlabelled = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        pair = [seeded(build, *made).eval()(**unlabelled).logits for made in ((8, 1), (16, 2))]
    return kl_by_hand(*(logits[kept] for logits in pair)).item()


def kept_of(build, labels):
    if build is xlm:
        return labels != -100
    return F.pad(labels[:, 1:], (0, 1), value=-100) != -100


def run(build, batch, loss=KL, **options):
    student = HuggingFaceModel(seeded(build, 8, 1))
    algorithm = Distillation(seeded(build, 16, 2), loss, **ONLY, **options)
    return fit(student, algorithm, train_dataloader=[batch], device_train_microbatch_size=4, lr=0.0)


@pytest.mark.parametrize("mask_fn", [None, loss_positions], ids=["default", "loss_positions"])
@pytest.mark.parametrize("build", [llava, xlm])
def test_the_positions_are_those_of_the_models_own_loss(build, mask_fn):
    batch = batch_of(build)
    kept = kept_of(build, batch["labels"])
    assert kept.sum() == 16
    trainer = run(build, batch, mask_fn=mask_fn)
    expected = by_hand(build, batch, kept)
    assert logged(trainer, "loss/train/kd") == [pytest.approx(expected, rel=1e-5)]
    if mask_fn is None:
        fused = run(build, batch, FusedLinearKL(1.0))
        assert logged(fused, "loss/train/kd") == [pytest.approx(expected, rel=1e-4)]


def test_losses_with_labels_get_each_at_the_position_that_predicts_it():
    seen = []

    class Spy(DistillationLoss):
        needs_labels = True

        def compute(self, student, teacher, mask, labels):
            seen.append(labels)
            return F.mse_loss(student, teacher)

    batch = batch_of(llava)
    run(llava, batch, Spy())
    assert seen[0].tolist() == batch["labels"][:, 8:].flatten().tolist()


class Shifted(ComposerModel):
    """GPT-2 beside labels that the data shifted already, as many training scripts have it."""

    def __init__(self, seed):
        super().__init__()
        config = transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=12, n_embd=8, n_layer=1, n_head=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        self.lm = seeded(lambda _: transformers.GPT2LMHeadModel(config), 8, seed)

    def forward(self, batch):
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch["input_ids"]
        return self.lm(input_ids=inputs).logits

    def loss(self, outputs, batch):
        labels = batch[1] if isinstance(batch, (tuple, list)) else batch["labels"]
        return F.cross_entropy(outputs.flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("pack", [dict, tuple], ids=["mapping", "tuple"])
def test_labels_that_the_data_shifted_are_not_shifted_again(pack):
    batch = batch_of(xlm)
    student, teacher = Shifted(1), Shifted(2)
    with torch.no_grad():
        pair = [model(batch)[batch["labels"] != -100] for model in (student, teacher)]
    data = batch if pack is dict else (batch["input_ids"], batch["labels"])
    trainer = fit(
        student,
        Distillation(teacher, KL, **ONLY),
        train_dataloader=[data],
        device_train_microbatch_size=4,
        lr=0.0,
    )
    expected = kl_by_hand(*pair).item()
    assert logged(trainer, "loss/train/kd") == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize("build", [llava, xlm])
def test_evaluation_counts_the_positions_of_training(build):
    batch = batch_of(build)
    student = HuggingFaceModel(seeded(build, 8, 1), use_logits=True)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(4)]
    student.val_metrics = {"accuracy": MaskedAccuracy(ignore_index=-100)}
    trainer = fit(
        student,
        Distillation(seeded(build, 16, 2), KL, eval_teachers=True, **ONLY),
        train_dataloader=[batch],
        device_train_microbatch_size=4,
        lr=0.0,
        eval_dataloader=Evaluator(
            label="set", dataloader=DataLoader(rows, batch_size=4), metric_names=["accuracy"]
        ),
    )
    expected = by_hand(build, batch, kept_of(build, batch["labels"]))
    assert logged(trainer, "metrics/set/teacher_kl")[-1] == pytest.approx(expected, rel=1e-4)


def wav2vec2(width):
    return transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            vocab_size=12, hidden_size=width, intermediate_size=width, num_hidden_layers=1,
            num_attention_heads=2, conv_dim=(8, 8), conv_stride=(4, 4), conv_kernel=(8, 8),
            num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
            mask_time_prob=0.0, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
            feat_proj_dropout=0.0, final_dropout=0.0, layerdrop=0.0, feat_extract_norm="layer",
        )
    )  # fmt: skip


def sound():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 400, generator=generator, dtype=torch.double)
    mask = (torch.arange(400) < torch.tensor([[400], [120], [48], [399]])).long()
    labels = torch.tensor([[3, 4, 5], [6, 7, -100], [3, -100, -100], [4, 5, 6]])
    return {"input_values": values * mask, "attention_mask": mask, "labels": labels}


def test_frames_of_padded_sound_do_not_count():
    batch = sound()
    lengths = batch["attention_mask"].sum(1)
    for _ in range(2):
        lengths = (lengths - 8) // 4 + 1  # of a convolution: kernel 8, stride 4
    kept = torch.arange(23) < lengths[:, None]
    assert kept.sum() < kept.numel()
    expected = by_hand(wav2vec2, batch, kept)
    assert logged(run(wav2vec2, batch), "loss/train/kd") == [pytest.approx(expected, rel=1e-5)]


class Pooling(ComposerModel):
    """A tagger of every other token, of which nothing is known."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.table = torch.nn.Embedding(VOCAB, 5)

    def forward(self, batch):
        return self.table(batch["input_ids"][:, ::2])

    def loss(self, outputs, batch):
        return outputs.square().mean()


@pytest.mark.parametrize("padded", [True, False])
def test_padding_that_nothing_reads_is_said_once(padded, caplog):
    batch = {key: value for key, value in batch_of(xlm).items() if key != "labels"}
    batch["attention_mask"][1, 6:] = int(not padded)
    fit(
        Pooling(1),
        Distillation(Pooling(2), KL, **ONLY),
        train_dataloader=[batch] * 3,
        max_duration="3ba",
        device_train_microbatch_size=2,
    )
    told = [r.message for r in caplog.records if "attention_mask has the shape" in r.message]
    assert len(told) == padded
    if padded:
        assert "(2, 12) where the student's logits have (2, 6, 5)" in told[0]
        assert "mask_fn" in told[0]


def test_padding_may_come_after_many_batches_without(caplog):
    reader, logits = StudentReader(), torch.zeros(2, 6, 5)
    for number in range(40):
        mask = torch.ones(2, 12)
        mask[1, 6:] = number < 20
        reader.read({"attention_mask": mask}, None, logits)
    assert caplog.text.count("attention_mask has the shape (2, 12)") == 1


def test_both_heads_of_a_span_are_averaged():
    def bert(width):
        return transformers.BertForQuestionAnswering(
            transformers.BertConfig(
                vocab_size=VOCAB, num_hidden_layers=1, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0, **SIZES | {"hidden_size": width},
            )
        )  # fmt: skip

    batch = {key: batch_of(xlm)[key] for key in ("input_ids", "attention_mask")}
    batch["attention_mask"][1, 6:] = 0
    span = {"start_positions": torch.tensor([1, 2, 0, 3]), "end_positions": torch.tensor([1] * 4)}
    with torch.no_grad():
        ours, theirs = (seeded(bert, *made).eval()(**batch) for made in ((8, 1), (16, 2)))
    terms = [kl_by_hand(ours[n], theirs[n]).item() for n in ("start_logits", "end_logits")]
    value = logged(run(bert, {**batch, **span}), "loss/train/kd")
    assert value == [pytest.approx(sum(terms) / 2, rel=1e-6)]
