"""Models that are built from what was saved."""

import json

import pytest
import torch
from composer.models import HuggingFaceModel
from safetensors.torch import save_file

from composer_distill.teachers import Teacher, load_weights


@pytest.mark.parametrize("make", ["bert", "gpt"])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shard", ["10GB", "8KB"])
def test_from_a_folder(zoo, tmp_path, make, safe, shard):
    model = getattr(zoo, make)()
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=shard)
    before = torch.get_rng_state()
    teacher = Teacher.from_pretrained(tmp_path, name="hf", weight=2.0, microbatch_size=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(teacher.model) is type(model)
    assert zoo.same(teacher.model, model)
    assert (teacher.name, teacher.weight, teacher.microbatch_size) == ("hf", 2.0, 3)
    assert f"from {tmp_path}" in repr(teacher)
    assert teacher.fingerprint() == Teacher(model).fingerprint()


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_keeps_its_type(zoo, tmp_path, safe, dtype):
    model = zoo.bert().to(dtype)
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size="8KB")
    teacher = Teacher.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in teacher.model.parameters()} == {dtype}
    assert zoo.same(teacher.model, model)
    wide = Teacher.from_pretrained(tmp_path, dtype=torch.float32)
    wide.place(torch.device("cpu"))
    assert {parameter.dtype for parameter in wide.model.parameters()} == {torch.float32}


def test_the_weights_tell_the_type_and_not_the_configuration(zoo, tmp_path):
    zoo.bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    teacher = Teacher.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in teacher.model.parameters()} == {torch.float32}


def make_resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "num_labels": 3}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes))


def test_a_folder_in_bfloat16_answers_images_in_float32(tmp_path):
    make_resnet().bfloat16().save_pretrained(tmp_path)
    teacher = Teacher.from_pretrained(tmp_path)
    teacher.freeze()
    images = {"pixel_values": torch.randn(2, 3, 32, 32)}
    answer = teacher.forward(images, lambda model, batch: model(**batch), lambda raw: raw.logits)
    assert answer.dtype == torch.bfloat16


def test_a_folder_from_before_batch_norm_counted(zoo, tmp_path):
    model = make_resnet()
    state = model.state_dict()
    kept = {key: value for key, value in state.items() if "num_batches" not in key}
    model.save_pretrained(tmp_path, state_dict=kept)
    assert zoo.same(Teacher.from_pretrained(tmp_path).model, model)
    kept.pop("resnet.embedder.embedder.normalization.running_mean")
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match=r"lacks 1 weights .*running_mean"):
        Teacher.from_pretrained(tmp_path)


def test_an_adapter_is_no_teacher(zoo, tmp_path):
    """What PEFT saves; transformers would go and fetch the model that it names."""
    weights = {"base_model.model.bert.encoder.layer.0.lora_A.weight": torch.ones(2, 16)}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    for load in (Teacher.from_pretrained, lambda folder: load_weights(zoo.bert(), folder)):
        with pytest.raises(ValueError, match=r"PEFT adapter.*merge_and_unload.*name that folder"):
            load(tmp_path)
    with pytest.raises(ValueError, match=r"Likely cause: a PEFT adapter.*merge_and_unload"):
        load_weights(zoo.bert(), tmp_path / "adapter_model.safetensors")


def test_a_folder_without_all_weights(zoo, tmp_path):
    model = zoo.bert()
    model.save_pretrained(tmp_path)
    weights = model.state_dict()
    weights.pop("classifier.weight")
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks 1 weights .*classifier\.weight"):
        Teacher.from_pretrained(tmp_path)
    assert Teacher.from_pretrained(tmp_path, strict=False).model.num_labels == 3


@pytest.mark.parametrize("names", [[], ["os.system"], ["pipeline"], ["A", "B"], None])
def test_a_folder_that_names_no_model_of_transformers(zoo, tmp_path, names):
    zoo.bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": names}))
    with pytest.raises(ValueError, match="one class of transformers is needed"):
        Teacher.from_pretrained(tmp_path)


def test_code_that_comes_with_a_folder_is_not_run(zoo, tmp_path, witness):
    zoo.bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    config["model_type"] = "evil"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()")
    with pytest.raises(ValueError, match=r"trust_remote_code|evil"):
        Teacher.from_pretrained(tmp_path)


def test_a_payload_in_a_folder_is_not_run(zoo, tmp_path, witness):
    model = zoo.bert()
    model.save_pretrained(tmp_path, safe_serialization=False)
    (tmp_path / "model.safetensors").unlink(
        missing_ok=True
    )  # transformers 5 writes it all the same
    torch.save(model.state_dict() | {"x": zoo.Payload(witness)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"posix\.system"):
        Teacher.from_pretrained(tmp_path)


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Teacher.from_pretrained(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Teacher.from_pretrained("./gone")


def test_a_mistyped_folder_is_not_only_looked_for_on_the_hub(monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no connection")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", offline)
    with pytest.raises(OSError, match="no folder 'distil-brt' here.*taken for a name.*Check the"):
        Teacher.from_pretrained("distil-brt")


def test_from_a_composer_checkpoint(zoo, trained_bert, tmp_path, monkeypatch):
    model, folder = trained_bert
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    teacher = Teacher.from_composer_checkpoint(folder / "latest-rank0.pt", name="hf")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(teacher.model, HuggingFaceModel)
    assert zoo.same(teacher.model, model)
    assert teacher.model.model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_configuration(trained):
    _, folder = trained
    with pytest.raises(ValueError, match=r"teacher \(.*\): .*stores no Hugging Face configuration"):
        Teacher.from_composer_checkpoint(folder / "latest-rank0.pt")


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.eval",
        "transformers.pipeline",
        "transformers.models.bert.modeling_bert.load_tf_weights_in_bert",
        "transformers.models.bert.modeling_bert.os.system",
        "transformers.models.gone.modeling_gone.Gone",
        "",
        "evil.Model",
    ],
)
def test_a_checkpoint_cannot_name_other_code(trained_bert, tmp_path, monkeypatch, witness, path):
    _, folder = trained_bert
    found = torch.load(folder / "latest-rank0.pt", weights_only=False)
    found["state"]["integrations"]["huggingface"]["model"]["config"]["class"] = path
    torch.save(found, tmp_path / "a.pt")
    (tmp_path / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"the expert: .*which is no model of transformers"):
        Teacher.from_composer_checkpoint(tmp_path / "a.pt", name="the expert")


def test_options_that_have_no_place(tmp_path):
    with pytest.raises(TypeError, match=r"from_pretrained takes no checkpoint"):
        Teacher.from_pretrained(tmp_path, checkpoint="a.pt")
    with pytest.raises(TypeError, match=r"from_composer_checkpoint takes no checkpoint"):
        Teacher.from_composer_checkpoint(tmp_path, checkpoint="a.pt")
