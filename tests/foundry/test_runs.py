"""What LLM Foundry's YAML can ask of a run, with distillation in it."""

import json

import pytest
import torch

pytest.importorskip("llmfoundry")

from llmfoundry import registry
from llmfoundry.data.dataloader import build_dataloader
from llmfoundry.utils.builders import build_algorithm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from composer_distill import Distillation, Teacher, cache_teacher
from composer_distill.config import names
from tests.foundry.test_models import LOSS, hf
from tests.foundry.world import LENGTH, MPT, finetuning, logged, recipe, run, text


def taught(home, **changes):
    """A distilled MPT run over rows of tokens."""
    teachers = [{"pretrained_model_name_or_path": home["teacher"]}]
    distillation = {"teachers": teachers, "kd_loss_fn": LOSS, **changes.pop("distillation", {})}
    model, rows = changes.pop("model", MPT), changes.pop("train_loader", text(home["rows"]))
    return recipe(home["tokenizer"], model, rows, distillation, **changes)


def weights(trainer):
    return {k: v.clone() for k, v in trainer.state.model.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# --- the registry


def test_the_registry_finds_the_entry_point(home):
    assert "distillation" in registry.algorithms
    entry = {"teachers": {"pretrained_model_name_or_path": home["teacher"]}, "kd_loss_fn": LOSS}
    assert type(build_algorithm("distillation", entry)) is Distillation


def test_llm_foundry_s_schedulers_have_its_names_here():
    """One of them is LLM Foundry's own class, and no schedule of Composer's."""
    theirs = registry.schedulers.get_all()
    ours = names.schedules()
    own = {"inv_sqrt_with_warmup"}
    assert {name: theirs[name] for name in theirs if name not in own} == {
        name: ours[name] for name in theirs if name not in own
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "mpt_casual_lm"}, r"teachers\[0\].model.name: .*'mpt_causal_lm'"),
        ({"n_layer": 2}, r"teachers\[0\].model.n_layer: .*'n_layers'"),
        ({"name": None}, r"teachers\[0\].model.name: "),
    ],
)
def test_a_mistyped_model_is_refused(home, change, told):
    config = taught(home)
    config["algorithms"]["distillation"]["teachers"] = [
        {"checkpoint": home["mpt"], "model": MPT | {"n_layers": 2} | change}
    ]
    with pytest.raises(ValueError, match=told):
        run(config)


@pytest.mark.parametrize(
    "setting", [{"pretrained": True}, {"trust_remote_code": True}, {"load_in_8bit": True}]
)
def test_a_second_source_of_weights_or_code_is_refused(home, setting):
    config = taught(home)
    config["algorithms"]["distillation"]["teachers"] = [
        {"checkpoint": home["mpt"], "model": hf(home["teacher"]) | setting}
    ]
    with pytest.raises(ValueError, match=rf"model.{next(iter(setting))} would bring"):
        run(config)


# --- data


@pytest.mark.parametrize("kind", ["text", "finetuning", "streamed finetuning"])
def test_each_loader_feeds_student_and_teacher(home, tmp_path, kind):
    streamed = {"remote": home["streamed"], "local": str(tmp_path), "hf_name": None}
    loaders = {
        "text": text(home["rows"]),
        "finetuning": finetuning(home["pairs"]),
        "streamed finetuning": finetuning("", **streamed),
    }
    trainer = run(taught(home, train_loader=loaders[kind]))
    values = logged(trainer, "loss/train/kd")
    assert len(values) == 2
    assert min(values) > 0.01


def test_rows_stream_from_elsewhere(home, tmp_path):
    rows = text(str(tmp_path / "copy"), remote=home["rows"])
    here = logged(run(taught(home)), "loss/train/kd")
    assert logged(run(taught(home, train_loader=rows)), "loss/train/kd") == here
    assert (tmp_path / "copy" / "train" / "index.json").is_file()


@pytest.mark.parametrize("tokens", [True, False])
def test_microbatches_change_nothing_where_batches_count_by_tokens(home, tokens):
    pairs = finetuning(home["pairs"])
    by_size = [
        logged(
            run(
                taught(
                    home,
                    train_loader=pairs,
                    accumulate_train_batch_on_tokens=tokens,
                    device_train_microbatch_size=size,
                )
            ),
            "loss/train/kd",
        )[0]
        for size in (4, 1)
    ]
    # by samples a long text's positions count for less than a short one's: Composer's own mean
    assert (by_size[0] == pytest.approx(by_size[1], rel=1e-5)) == tokens


def test_composer_itself_refuses_automatic_microbatches_on_a_cpu(home):
    with pytest.raises(ValueError, match="adaptive device_train_microbatch_size on GPU"):
        run(taught(home, device_train_microbatch_size="auto"))


# --- checkpoints


def test_a_run_resumes_bit_for_bit(home, tmp_path):
    """By autoresume, of a folder; and by load_path, of a file."""
    schedule = {"kd_loss_weight": {"schedule": "linear", "alpha_i": 1.0, "alpha_f": 0.0}}
    both = [
        {"pretrained_model_name_or_path": home["teacher"]},
        {"pretrained_model_name_or_path": home["second"]},
    ]
    told = {**schedule, "teachers": both, "n_teachers_to_sample": 1}
    common = {"max_duration": "4ba", "save_interval": "2ba", "run_name": "resumed"}
    common["save_filename"] = "ba{batch}.pt"
    whole = run(taught(home, distillation=told, **common, save_folder=str(tmp_path / "whole")))
    first = tmp_path / "whole" / "ba2.pt"
    loaded = run(taught(home, distillation=told, **common, load_path=str(first)))
    assert_same_weights(weights(loaded), weights(whole))
    half = tmp_path / "half"
    half.mkdir()
    first.rename(half / first.name)
    (half / "latest-rank0.pt").symlink_to(first.name)
    resumed = run(taught(home, distillation=told, **common, save_folder=str(half), autoresume=True))
    assert len(logged(resumed, "loss/train/kd")) == 2  # the latter half alone
    assert_same_weights(weights(resumed), weights(whole))


def test_a_resumed_run_under_another_teacher_is_refused(home, tmp_path):
    run(taught(home, save_folder=str(tmp_path), save_filename="it.pt"))
    other = {"teachers": {"pretrained_model_name_or_path": home["second"]}}
    path = str(tmp_path / "it.pt")
    with pytest.raises(ValueError, match="verify_teachers"):
        run(taught(home, distillation=other, load_path=path, max_duration="4ba"))


def test_the_exported_folder_holds_the_student_alone(home, tmp_path):
    trainer = run(
        taught(
            home,
            model=hf(home["student"]),
            callbacks={
                "hf_checkpointer": {"save_folder": str(tmp_path / "out"), "save_interval": "2ba"}
            },
        )
    )
    (folder,) = (tmp_path / "out" / "huggingface").iterdir()
    model, told = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert told["unexpected_keys"] == told["missing_keys"] == []
    assert_same_weights(dict(model.state_dict()), dict(trainer.state.model.model.state_dict()))
    assert (
        AutoTokenizer.from_pretrained(folder).get_vocab()
        == AutoTokenizer.from_pretrained(home["student"]).get_vocab()
    )


def test_an_exported_lora_is_the_adapter(home, tmp_path):
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    exporter = {"save_folder": str(tmp_path / "out"), "save_interval": "2ba"}
    model = hf(home["student"], peft_config=lora)
    run(taught(home, model=model, callbacks={"hf_checkpointer": exporter}))
    (folder,) = (tmp_path / "out" / "huggingface").iterdir()
    assert (folder / "adapter_config.json").is_file()
    assert AutoModelForCausalLM.from_pretrained(folder) is not None


# --- caches


@pytest.fixture(scope="module")
def answers(home, tmp_path_factory):
    """The second teacher's answers to the pairs, as LLM Foundry's own loader gives them."""
    folder = str(tmp_path_factory.mktemp("answers") / "cache")
    tokenizer = AutoTokenizer.from_pretrained(home["tokenizer"], model_max_length=LENGTH)
    data = build_dataloader(finetuning(home["pairs"]), tokenizer, 4).dataloader
    cache_teacher(Teacher.from_pretrained(home["second"]), data, folder)
    return folder


def test_a_cache_stands_in_for_its_teacher(home, answers):
    two = [{"pretrained_model_name_or_path": home["teacher"], "weight": 2.0}]
    live = {"teachers": [*two, {"pretrained_model_name_or_path": home["second"]}]}
    kept = {"teachers": [*two, {"cache": answers}]}
    pairs = finetuning(home["pairs"])
    values = [
        logged(run(taught(home, distillation=told, train_loader=pairs)), "loss/train/kd")
        for told in (live, kept)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


# --- evaluation, loggers, code


def test_evaluation_comes_first_and_asks_the_teachers(home):
    rows = text(home["rows"])
    trainer = run(
        taught(
            home,
            distillation={"eval_teachers": True},
            eval_loader=rows,
            eval_first=True,
            eval_interval="2ba",
        )
    )
    values = logged(trainer, "metrics/eval/teacher_kl")
    assert len(values) == 2  # before training, and after
    assert values[1] != values[0]


def test_tasks_in_context_are_evaluated(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes a file for each number of shots
    lines = [
        {"query": "w1 w2", "choices": ["w3", "w4"], "gold": 0},
        {"query": "w5 w6", "choices": ["w7", "w8"], "gold": 1},
    ]
    data = tmp_path / "choices.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)) + "\n")
    task = {
        "label": "choices",
        "dataset_uri": str(data),
        "num_fewshot": [0],
        "icl_task_type": "multiple_choice",
        "destination_path": str(tmp_path / "there.jsonl"),
    }
    trainer = run(taught(home, icl_tasks=[task], icl_seq_len=LENGTH, eval_interval="2ba"))
    found = next(d.data for d in trainer.logger.destinations if hasattr(d, "data"))
    assert any(name.startswith("metrics/choices/0-shot") for name in found)


def test_loggers_of_the_yaml_get_the_values(home, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(
        taught(
            home,
            log_config=True,
            loggers={
                "tensorboard": {"log_dir": str(tmp_path / "board")},
                "mlflow": {"experiment_name": "here", "tracking_uri": str(tmp_path / "flow")},
                "wandb": {"project": "here"},
            },
        )
    )
    assert list((tmp_path / "board").rglob("events.out.tfevents.*"))
    assert list((tmp_path / "flow").rglob("metrics/loss/train/kd"))
    (written,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"loss/train/kd" in written.read_bytes()


def test_code_of_the_user_s_adds_names(home, tmp_path):
    """``code_paths`` run first, so that a teacher's model may be one that they register."""
    code = tmp_path / "mine.py"
    code.write_text(
        "from llmfoundry.models.mpt import ComposerMPTCausalLM\n"
        "from llmfoundry.registry import models\n"
        "class Mine(ComposerMPTCausalLM):\n    pass\n"
        "models.register('my_mpt', func=Mine)\n"
    )
    entry = {"checkpoint": home["mpt"], "model": MPT | {"n_layers": 2, "name": "my_mpt"}}
    trainer = run(taught(home, distillation={"teachers": [entry]}, code_paths=[str(code)]))
    (algorithm,) = (a for a in trainer.state.algorithms if isinstance(a, Distillation))
    assert type(algorithm.teachers[0].model).__name__ == "Mine"
