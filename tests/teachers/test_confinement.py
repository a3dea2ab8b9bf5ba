"""While a model is built from a configuration, nothing else is within reach, whatever key asks."""

import contextlib
import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BertConfig

from composer_distill.teachers import Teacher
from composer_distill.teachers.confinement import check_settings, confined

WALK = Path(__file__).with_name("confinement_walk.py")
DEPTH = "transformers.models.depth_anything.modeling_depth_anything.DepthAnythingForDepthEstimation"


@pytest.fixture
def planted(tmp_path, monkeypatch, witness):
    """A folder whose code would make a file."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "backbone"
    folder.mkdir()
    code = f"open({str(witness)!r}, 'w').close()\nfrom transformers import PretrainedConfig\n"
    (folder / "evil.py").write_text(code + "class C(PretrainedConfig): model_type = 'evil'\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def checkpoint(path, kind, content):
    entry = {"huggingface": {"model": {"config": {"class": kind, "content": content}}}}
    torch.save({"state": {"model": {"x": torch.zeros(1)}, "integrations": entry}}, path)
    return path


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_backbone_elsewhere_in_a_checkpoint(planted, tmp_path, trusted, pretrained):
    content = {
        "backbone": str(planted),
        "use_timm_backbone": False,
        "use_pretrained_backbone": pretrained,
        "backbone_kwargs": {"trust_remote_code": True} if trusted else {},
    }
    path = checkpoint(tmp_path / "a.pt", DEPTH, content)
    key = r"backbone_kwargs\.trust_remote_code" if trusted else "backbone asks for another folder"
    with pytest.raises(ValueError, match=rf"the expert: .*its configuration's {key}"):
        Teacher.from_composer_checkpoint(path, name="the expert")


def test_a_backbone_elsewhere_in_a_folder(planted, tmp_path, zoo):
    zoo.bert().save_pretrained(tmp_path / "hf")
    content = {
        "model_type": "depth_anything",
        "architectures": ["DepthAnythingForDepthEstimation"],
        "backbone": str(planted),
        "backbone_kwargs": {"revision": None},
    }
    (tmp_path / "hf" / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its configuration's backbone asks for another folder"):
        Teacher.from_pretrained(tmp_path / "hf")


def test_a_kernel_of_the_hub(zoo, tmp_path):
    bert = zoo.bert().config.to_dict()
    kind = "transformers.models.bert.modeling_bert.BertForSequenceClassification"
    content = bert | {"_attn_implementation": "owner/repo:fn"}
    with pytest.raises(
        ValueError, match=r"its configuration's _attn_implementation asks for a kernel"
    ):
        Teacher.from_composer_checkpoint(checkpoint(tmp_path / "a.pt", kind, content))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"a": [{"b": {"trust_remote_code": True}}]}, r"a\.b\.trust_remote_code"),
        ({"trust_remote_code": "yes"}, "trust_remote_code"),
        ({"text_config": {"_attn_implementation_internal": "a/b:c"}}, "text_config._attn"),
        ({"attn_implementation": {"text": "a/b:c"}}, "attn_implementation.text"),
        ({"vision": {"architecture": "hf-hub:owner/repo"}}, "vision.architecture"),
        ({"backbone": "local-dir:/somewhere"}, "backbone"),
        ({"backbone_kwargs": {"pretrained_cfg_overlay": {"url": "FILE:///x"}}}, r"\S*overlay.url"),
        ({"backbone_kwargs": {"checkpoint_path": __file__}}, r"backbone_kwargs\.checkpoint_path"),
        ({"model_args": [{"file": "/dev/null"}]}, r"model_args\.file"),
        ({"\x1b[2J": {"trust_remote_code": 1}}, r"\?\[2J\.trust_remote_code"),
    ],
)
def test_what_asks_for_code_is_named_at_any_depth(settings, key):
    with pytest.raises(ValueError, match=f"^its configuration's {key}.* asks for"):
        check_settings(settings)


def test_settings_without_end_are_refused():
    """Each would be copied again and again."""
    check_settings({"id2label": {str(n): "a" for n in range(21_841)}})
    for many in ([[]] * 200_001, {str(n): n for n in range(200_001)}, [[0] * 150_000] * 2):
        with pytest.raises(ValueError, match="more than 200,000 settings, as no model has"):
            check_settings({"a": many})


def test_what_real_configurations_say_is_let_through(zoo):
    check_settings(zoo.bert().config.to_dict())
    check_settings({"_name_or_path": "/home/me/run", "trust_remote_code": False})
    check_settings({"_name_or_path": __file__, "dataset": "/", "id2label": {0: "a/b:c"}})
    check_settings(
        {"_attn_implementation": "sdpa", "auto_map": {"AutoModel": "repo--modeling.Model"}}
    )


def test_one_folder_alone_is_within_reach(zoo, tmp_path):
    for name in ("a", "b"):
        zoo.bert().save_pretrained(tmp_path / name)
    with confined(str(tmp_path / "a")):
        assert isinstance(AutoConfig.from_pretrained(tmp_path / "a"), BertConfig)
        assert isinstance(AutoConfig.from_pretrained(tmp_path / "b" / ".." / "a"), BertConfig)
    with pytest.raises(ValueError, match="another folder"), confined(str(tmp_path / "a")):
        AutoConfig.from_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match="another folder"), confined(None):
        AutoConfig.from_pretrained(tmp_path / "a")
    AutoConfig.from_pretrained(tmp_path / "b")  # and all is as it was afterwards


def test_what_timm_reads_by_itself_is_not_reached(tmp_path):
    """It opened the file, and with ``weights_only`` off in older versions ran it."""
    torch.save({}, tmp_path / "other.pth")
    content = {
        "backbone": "resnet18",
        "use_timm_backbone": True,
        "backbone_kwargs": {"checkpoint_path": str(tmp_path / "other.pth")},
    }
    kind = "transformers.models.detr.modeling_detr.DetrForObjectDetection"
    path = checkpoint(tmp_path / "a.pt", kind, content)
    with pytest.raises(ValueError, match=r"backbone_kwargs\.checkpoint_path asks for a file else"):
        Teacher.from_composer_checkpoint(path)


@pytest.mark.parametrize("kept", ["own", "other"])
@pytest.mark.parametrize("plain", [True, False])
def test_libraries_load_weights_of_the_one_folder_alone(tmp_path, kept, plain):
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        torch.save({"a": 1}, tmp_path / name / "a.pt")
    load = lambda: torch.load(tmp_path / kept / "a.pt", weights_only=plain)  # noqa: E731
    if plain and kept == "own":
        with confined(str(tmp_path / "own")):
            assert load() == {"a": 1}
    else:
        own = confined(str(tmp_path / "own"))
        with pytest.raises(ValueError, match="weights of another place"), own:
            load()
    with pytest.raises(ValueError, match="weights of another place"), confined(None):
        load()
    assert load() == {"a": 1}


def test_addresses_of_files_are_not_opened(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(ValueError, match="something on the network"), confined(str(tmp_path)):
        urllib.request.urlopen((tmp_path / "a").as_uri())
    assert urllib.request.urlopen((tmp_path / "a").as_uri()).read() == b"x"


def test_what_libraries_log_of_a_configuration_reaches_no_terminal(zoo, tmp_path, monkeypatch):
    zoo.bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "\x1b[2J" + "x" * 100_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stream = io.StringIO()
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(stream)])
    Teacher.from_pretrained(tmp_path)
    said = stream.getvalue()
    assert "Unknown quantization type, got ?[2J" in said
    assert "\x1b" not in said
    assert len(said) < 5000


def test_a_log_whose_arguments_do_not_fit_stops_no_building(caplog):
    with confined(None):
        logging.getLogger("any").warning("as it was", FutureWarning)
    assert caplog.messages == ["as it was"]


def swallow():
    with contextlib.suppress(Exception):
        socket.create_connection(("localhost", 9))


def test_what_is_swallowed_is_told_all_the_same():
    with pytest.raises(ValueError, match="something on the network"), confined(None):
        swallow()


def test_other_threads_are_not_disturbed(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        came = []
        connect = lambda: came.append(socket.create_connection(server.getsockname()))  # noqa: E731
        with confined(None):
            thread = threading.Thread(target=connect)
            thread.start()
            thread.join()
        assert len(came) == 1
        came[0].close()
    assert "connect" not in vars(socket.socket)


def test_no_configuration_of_transformers_reaches_beyond_itself(tmp_path):
    """Every class that names another model, and what an audit hook saw while it was built.

    The last one is built without confinement: the hook would have seen it.
    """
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, WALK, tmp_path],
        env=os.environ | modules, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    confined_rows = [row for row in rows if row["confined"]]
    assert len({row["class"] for row in confined_rows}) > 20
    assert [row for row in confined_rows if row["seen"] or row["executed"]] == []
    assert sum(row["class"].startswith("quantiser ") for row in confined_rows) > 15
    assert any("asks for another folder" in row["came"] for row in confined_rows)
    assert rows[-1]["seen"]
    assert rows[-1]["executed"]


@pytest.mark.parametrize("absolute", [True, False])
def test_weights_of_another_folder_are_not_loaded_instead(zoo, tmp_path, absolute):
    """The fingerprint, and who looks at the folder, would see others than are trained on."""
    for name in ("own", "other"):
        zoo.bert().save_pretrained(tmp_path / name)
    config = tmp_path / "own" / "config.json"
    elsewhere = (
        tmp_path / "other" / "model.safetensors" if absolute else "../other/model.safetensors"
    )
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "transformers_weights": str(elsewhere)})
    )
    with pytest.raises(
        ValueError, match="transformers_weights asks for (a file else|weights of a name of its own)"
    ):
        Teacher.from_pretrained(tmp_path / "own")


def test_a_tokenizers_settings_read_no_file_elsewhere(zoo, tmp_path, caplog):
    zoo.bert().save_pretrained(tmp_path / "own")
    (tmp_path / "secret.txt").write_text("[UNK]\n[PAD]\nSECRET\n")
    settings = {"tokenizer_class": "BertTokenizer", "vocab_file": str(tmp_path / "secret.txt")}
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(settings))
    teacher = Teacher.from_pretrained(tmp_path / "own")
    assert getattr(teacher.model, "tokenizer", None) is None
    assert "names a file elsewhere under vocab_file" in caplog.text
