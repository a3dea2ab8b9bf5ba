"""Build every model of transformers whose configuration names something else, with code behind it.

A process of its own, since its audit hook stays: ``python confinement_walk.py FOLDER``. Writes one
line of JSON for each class and key, with what was imported, opened or fetched.
"""

import contextlib
import importlib
import inspect
import json
import re
import sys
import tempfile
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
SAID = re.compile(
    "backbone|tower|tokenizer|processor|kernel|quant|pretrained|checkpoint|name_or_path"
    "|encoder|decoder|attn_impl|adapter|index_path|retriev"
)
FOLDER = Path(sys.argv[1])
SEEN = []


def watch(event, arguments):
    text = repr(arguments)[:300] if event in ("open", "import", "exec") else ""
    if event.startswith(("socket.connect", "socket.getaddrinfo", "subprocess", "os.system")):
        SEEN.append(event)
    elif (str(FOLDER) in text or "evil" in text) and "confinement_walk" not in text:
        SEEN.append(f"{event} {text}")


def plant():
    """A folder that looks like a model, whose code says that it ran."""
    code = f"open({str(FOLDER / 'executed')!r}, 'w').close()\n"
    code += "from transformers import PretrainedConfig, PreTrainedModel\n"
    code += "class C(PretrainedConfig): model_type = 'evil'\n"
    (FOLDER / "evil.py").write_text(code)
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoBackbone": "evil.C"}}
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        (FOLDER / name).write_text(json.dumps(config))


def settings_of(config_class):
    """What such a class can be told to look elsewhere for, all at once; None where nothing."""
    told = {}
    for base in config_class.__mro__:
        for name, value in inspect.signature(base.__init__).parameters.items():
            if SAID.search(name) and (value.default is None or isinstance(value.default, str)):
                told[name] = str(FOLDER)
    for name in [key for key in told if key.endswith("config")]:
        del told[name]  # a nested configuration, which is walked by itself
    return told


def variants(told):
    """What each key alone can say, with what makes transformers follow it."""
    for name, value in told.items():
        if "backbone" not in name:
            yield {name: value}
        elif name == "backbone":
            remote = {"backbone_kwargs": {"trust_remote_code": True}, "use_timm_backbone": False}
            yield {name: value, **remote, "use_pretrained_backbone": False}
            yield {name: value, **remote, "use_pretrained_backbone": True}


def model_class_of(config_class):
    """A model that such a configuration makes, the largest part of it that there is."""
    module = config_class.__module__.replace("configuration_", "modeling_")
    with contextlib.suppress(Exception):
        found = [
            item
            for item in vars(importlib.import_module(module)).values()
            if isinstance(item, type)
            and issubclass(item, transformers.PreTrainedModel)
            and item.config_class is config_class
            and item.__module__ == module
            and "PreTrained" not in item.__name__
        ]
        return sorted(found, key=lambda item: "For" in item.__name__)[-1]
    return None


def build(model_class, settings, confine):
    """Build one, and say what was seen meanwhile."""
    SEEN.clear()
    came = "built"
    try:
        with torch.device("meta"), confine(None, settings):
            model_class(huggingface._config(model_class, dict(settings)))
    except Exception as error:
        came = f"{type(error).__name__}: {str(error)[:200]}"
    row = {"class": model_class.config_class.__name__, "keys": list(settings), "seen": SEEN[:3]}
    held = confine is confinement.confined
    executed = (FOLDER / "executed").exists()
    print(json.dumps(row | {"came": came, "confined": held, "executed": executed}))


def quantisers():
    """Load a folder that says, for each quantiser in turn, that it was quantised by it."""
    folder = Path(tempfile.mkdtemp())
    small = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**small, intermediate_size=16)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    for method in transformers.quantizers.auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        asked = {"quant_method": method, "tokenizer": str(FOLDER), "dataset": str(FOLDER)}
        content["quantization_config"] = {**asked, "quant_type": str(FOLDER), "bits": 4}
        (folder / "config.json").write_text(json.dumps(content))
        SEEN.clear()
        came = "loaded"
        try:
            huggingface.build_pretrained(folder, name="the expert")
        except (ImportError, OSError, ValueError) as error:
            came = f"{type(error).__name__}: {str(error)[:200]}"
        executed = (FOLDER / "executed").exists()
        row = {"class": f"quantiser {method}", "seen": SEEN[:3], "came": came}
        print(json.dumps(row | {"confined": True, "executed": executed}))


def main():
    plant()
    quantisers()
    confinement.check_settings = lambda _: None  # so that the doors alone must hold
    every = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    for kind in sorted(set(every.values())):
        config_class = getattr(transformers, kind, None)
        told = settings_of(config_class) if config_class is not None else {}
        model_class = model_class_of(config_class) if told else None
        for settings in variants(told) if model_class else ():
            build(model_class, settings, confinement.confined)
    model_class = model_class_of(transformers.DepthAnythingConfig)
    for settings in variants({"backbone": str(FOLDER)}):
        build(model_class, settings, lambda *_: contextlib.nullcontext())


if __name__ == "__main__":
    sys.addaudithook(watch)
    import torch
    import transformers

    from composer_distill.teachers import confinement, huggingface

    main()
