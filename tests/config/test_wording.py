"""Errors of a run that a configuration describes speak as the configuration does."""

import pytest
import torch
from composer.models import HuggingFaceModel
from integration.harness import trainer_for
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from composer_distill import Distillation, Teacher, distillation_from_config
from composer_distill.config.distillation import READER
from composer_distill.config.wording import as_written

SAID = {
    "or verify_teachers=False to go on": "or verify_teachers: false to go on",
    "Use combine='logits', n_teachers_to_sample=1 or KLDivergence.": (
        "Use combine: logits, n_teachers_to_sample: 1 or kl_divergence."
    ),
    "Use KLDivergence(temperature=...).": "Use {name: kl_divergence, temperature: ...}.",
    "pass Teacher(model, offload=True)": "pass offload: true",
    "pass Teacher(..., dtype=torch.bfloat16)": "pass dtype: bfloat16",
    "read it with CachedTeacher(..., unfinished=True).": "read it with unfinished: true.",
    "pass vocab_size= where": "pass vocab_size: ... where",
    "mask_fn=None": "mask_fn: null",
    "build the model yourself and pass Teacher(model, checkpoint=...)": (
        "give model: {name: ...} beside checkpoint"
    ),
    "map it with Teacher(..., output_fn=...).": (
        "map it with Teacher(..., output_fn=...). A configuration can't say output_fn: build "
        "Distillation in Python."
    ),
    # of others
    "x==y, attn_implementation='eager' or layers=3": (
        "x==y, attn_implementation='eager' or layers=3"
    ),
}


@pytest.mark.parametrize("text", SAID)
def test_python_s_words_become_the_configuration_s(text):
    assert as_written(text, READER) == SAID[text]


def model(seed=0, vocab_size=11):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab_size, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    )


def trainer(algorithm, **options):
    tokens = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": t, "labels": t} for t in tokens]
    data = DataLoader(rows, batch_size=2)
    student = HuggingFaceModel(model())
    return trainer_for(student, algorithm, train_dataloader=data, **options)


def told(folder, **changes):
    entry = {"pretrained_model_name_or_path": str(folder)}
    return distillation_from_config(
        {"teachers": entry, "kd_loss_fn": "kl_divergence", "telemetry": False, **changes}
    )


def test_another_teacher_in_a_resumed_run(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders, 1):
        model(seed).save_pretrained(folder)
    first = trainer(told(folders[0]), save_folder=str(tmp_path), save_filename="it.pt")
    first.fit()
    first.close()
    path = str(tmp_path / "it.pt")
    with pytest.raises(ValueError, match=r"teacher 0 differs.*verify_teachers: false to go on"):
        trainer(told(folders[1]), load_path=path, max_duration="2ep")
    trainer(told(folders[1], verify_teachers=False), load_path=path, max_duration="2ep").close()
    # who built it in Python is told in Python
    other = Distillation(Teacher.from_pretrained(folders[1]), torch.nn.MSELoss())
    with pytest.raises(ValueError, match="verify_teachers=False to go on"):
        trainer(other, load_path=path, max_duration="2ep")


def test_a_teacher_of_other_classes(tmp_path):
    model(1, vocab_size=13).save_pretrained(tmp_path)
    running = trainer(told(tmp_path))
    with pytest.raises(ValueError, match=r"pass vocab_size: len\(tokenizer\), at most 11"):
        running.fit()
    running.close()


def test_an_error_of_the_teacher_itself_stays_in_its_words(tmp_path, monkeypatch):
    said = "no temperature=2.0 here, and no output_fn=None"

    def refuse(*args, **kwargs):
        raise ValueError(said)

    model(1).save_pretrained(tmp_path)
    algorithm = told(tmp_path)
    monkeypatch.setattr(algorithm.teachers[0].model, "forward", refuse)
    running = trainer(algorithm)
    with pytest.raises(ValueError, match=f"^{said}\n"):
        running.fit()
    running.close()
