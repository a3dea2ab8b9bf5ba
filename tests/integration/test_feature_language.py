"""Terms of features between language models, in a real Trainer."""

import pytest
import torch
from composer.models import HuggingFaceModel
from integration.harness import fit, logged
from transformers import BertConfig, BertForMaskedLM

from composer_distill import Distillation, FeatureTerm
from composer_distill.losses import HiddenMSE, MiniLMRelation, minilm_relation


def bert(width, layers, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=16,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return BertForMaskedLM(config)


def batch():
    ids = torch.randint(2, 16, (4, 6), generator=torch.Generator().manual_seed(0))
    attention = (torch.arange(6) < torch.tensor([[6], [4], [3], [6]])).long()
    labels = torch.where(attention.bool(), ids, -100)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def three(model, layer, inputs):
    """Queries, keys and values of a layer, by the model's own hidden states."""
    hidden = model.bert(**inputs, output_hidden_states=True).hidden_states[layer]
    attention = model.bert.encoder.layer[layer].attention.self
    return attention.query(hidden), attention.key(hidden), attention.value(hidden)


def test_minilm_matches_unlike_widths_without_padding_and_without_the_teachers_head():
    student, teacher = bert(8, 2, 0), bert(12, 3, 1)
    data = batch()
    inputs = {key: data[key] for key in ("input_ids", "attention_mask")}
    expected = minilm_relation(
        three(student, 1, inputs),
        three(teacher, 2, inputs),
        data["attention_mask"].bool(),
        relation_heads=2,
    ).item()
    positions = []
    teacher.get_output_embeddings().register_forward_hook(
        lambda module, arguments, output: positions.append(output.shape[:2].numel())
    )
    terms = [
        FeatureTerm("attention.1", "attention.2", loss=MiniLMRelation(relation_heads=2)),
        FeatureTerm("hidden_states.2", "hidden_states.3", loss=HiddenMSE(), projector="linear"),
    ]
    trainer = fit(
        HuggingFaceModel(student, use_logits=True),
        Distillation(teacher, None, feature_terms=terms),
        train_dataloader=[data] * 2,
        device_train_microbatch_size=4,
        lr=0.1,
    )
    assert logged(trainer, "distillation/features/attention.1")[0] == pytest.approx(
        expected, rel=1e-5
    )
    assert len(logged(trainer, "distillation/features/hidden_states.2")) == 2
    assert positions == [1, 1]
    assert "hidden_states" not in trainer.state.outputs


def test_a_callable_sees_the_logits_of_every_position():
    student, teacher = bert(8, 1, 0), bert(8, 1, 1)
    data, shapes = batch(), []

    def logits(model, outputs):
        shapes.append(tuple(outputs.logits.shape))
        return outputs.logits

    fit(
        HuggingFaceModel(student, use_logits=True),
        Distillation(teacher, None, feature_terms=[FeatureTerm(logits, loss=HiddenMSE())]),
        train_dataloader=[data],
        device_train_microbatch_size=4,
    )
    assert shapes == [(4, 6, 16)] * 2
