"""What is told of each source without a model."""

import pytest
import torch
from safetensors.torch import save_file

from composer_distill.teachers import Teacher
from composer_distill.weights.inspection import describe


def test_a_composer_checkpoint(trained):
    model, folder = trained
    text = describe(str(folder / "latest-rank0.pt"))
    assert "a Composer checkpoint of 9 tensors, 205 values" in text
    assert "safe to read: tensors and plain data only" in text
    assert "stored beside the weights: optimizers" in text
    assert "trained until: epoch 2, batch 8, sample 64" in text
    assert "module.1.weight  (8, 16)  float32" in text
    assert "Composer: 0.32.1" in text
    assert f"fingerprint: {Teacher(model).fingerprint()}" in text
    assert f"fingerprint: {Teacher(model.module).fingerprint()}" in text


def test_what_a_hugging_face_run_stores(trained_bert):
    _, folder = trained_bert
    text = describe(str(folder / "latest-rank0.pt"))
    assert "Hugging Face class: transformers.models.bert" in text


def test_algorithms_are_named(trained_ema):
    _, folder = trained_ema
    assert "algorithms: EMA" in describe(str(folder / "latest-rank0.pt"))


def test_other_sources(zoo, tmp_path):
    net, bert = zoo.net(), zoo.bert()
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    torch.save({"state_dict": net.state_dict(), "epoch": 1}, tmp_path / "a.ckpt")
    bert.save_pretrained(tmp_path / "hf", max_shard_size="8KB")
    mark = Teacher(net).fingerprint()
    for name, kind in (("a.safetensors", "safetensors file"), ("a.ckpt", "state_dict under")):
        text = describe(str(tmp_path / name))
        assert kind in text
        assert mark in text
    text = describe(str(tmp_path / "hf"))
    assert "a Hugging Face folder of" in text
    assert Teacher(bert).fingerprint() in text


def test_a_file_that_is_not_safe(zoo, tmp_path, witness):
    torch.save({"state": {"model": zoo.Payload(witness)}}, tmp_path / "a.pt")
    text = describe(str(tmp_path / "a.pt"))
    assert "NOT to be read as a checkpoint: it asks for posix.system" in text


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        describe(str(tmp_path / "gone"))


def test_names_cannot_steer_the_terminal(tmp_path):
    torch.save({"state": {"model": {"\x1b[2Jw": torch.zeros(1)}, "\x07": 1}}, tmp_path / "a.pt")
    text = describe(str(tmp_path / "a.pt"))
    assert "\x1b" not in text
    assert "\x07" not in text
