"""One small file of each kind that is read: the roster of readers.

What reads a new kind of file gets a row here, and with it every hostile file and the fuzz test.
"""

import io
import json
import pickle
import shutil
import subprocess
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

CLASS = "transformers.models.bert.modeling_bert.BertForSequenceClassification"


def weights():
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def composer():
    rng = [{"python": (3, (1, 2), None), "numpy": ("MT19937", np.arange(4, dtype="u4"), 1, 0, 0.0)}]
    state = {"model": weights(), "algorithms": [("EMA", {"ema_weights_active": False})]}
    state |= {"integrations": {}, "timestamp": {"Timestamp": {"epoch": 1}}, "run_name": "run"}
    return {"state": state, "rng": rng}


def save(path, found, zipped=True):
    torch.save(found, path, _use_new_zipfile_serialization=zipped)


def safetensors(path, found=None):
    from safetensors.torch import save_file

    save_file(found or weights(), path)


def sharded(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"state": {"model": weights()}}, checkpoint_id=path)


def folder(path, name, write):
    path.mkdir()
    write(path / name)


def indexed(path, ending, write):
    path.mkdir()
    parts = {}
    for number, (key, value) in enumerate(weights().items()):
        part = f"part-{number}.{ending.rpartition('.')[2]}"
        write(path / part, {key: value})
        parts[key] = part
    (path / f"{ending}.index.json").write_text(json.dumps({"weight_map": parts}))


def compressed(path, program):
    save(path, weights())
    with path.open("rb") as stream:
        packed = subprocess.run([program, "-c"], stdin=stream, capture_output=True, check=True)
    path.write_bytes(packed.stdout)


def tar(path, mode):
    inner = path.with_name("composer_states.pt")
    save(inner, composer())
    with tarfile.open(path, mode) as archive:
        archive.add(inner, arcname="composer_states.pt")
    inner.unlink()


def link(path):
    save(path.with_name("target.pt"), weights())
    path.write_text("target.pt")


def hugging_face(path):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BertConfig(vocab_size=5, intermediate_size=4, max_position_embeddings=4, **sizes)
    BertForSequenceClassification(config).save_pretrained(path)


def moving_average():
    """What a run with EMA under DDP leaves: the average in the model's place."""
    held = {f"module.{key}": value + 1 for key, value in weights().items()}
    kept = {"named_parameters_dict": held, "named_buffers_dict": {}}
    found = composer()
    found["state"]["algorithms"] = [("EMA", {"ema_weights_active": True, "ema_model": kept})]
    return found


def composer_of_hugging_face(path):
    """Configuration and tokenizer beside the weights, as from_composer_checkpoint asks for."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BertConfig(vocab_size=5, intermediate_size=4, max_position_embeddings=4, **sizes)
    model = BertForSequenceClassification(config).state_dict()
    model = {f"model.{key}": value for key, value in model.items()}
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]
    words = {"file_extension": ".txt", "content": names}
    pieces = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    pieces |= {"max_input_chars_per_word": 100, "vocab": {name: n for n, name in enumerate(names)}}
    steps = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "a"}
    core = {"version": "1.0", "normalizer": steps, "added_tokens": [], "model": pieces}
    settings = {"file_extension": ".json", "content": {"tokenizer_class": "BertTokenizer"}}
    tokenizer = {"vocab": words, "tokenizer_config": settings}
    tokenizer |= {"tokenizer": {"file_extension": ".json", "content": core}}
    told = {"model": {"config": {"class": CLASS, "content": config.to_dict()}}}
    found = composer() | {"rng": []}
    found["state"] |= {"model": model, "integrations": {"huggingface": told}}
    told["tokenizer"] = tokenizer
    save(path, found)


def cache(path, finished=True):
    """Answers that a teacher gave: compressed logits, in two shards."""
    from composer_distill.caching.manifest import Recipe
    from composer_distill.caching.packing import pack_whole
    from composer_distill.caching.writer import PartWriter, finish, start

    facts = {"classes": 300, "dtype": "float32", "by_position": False, "fields": None}
    start(path, Recipe("a teacher"))
    writer = PartWriter(path, 0, 1000)
    for number in range(3):
        columns = pack_whole(torch.full((300,), float(number)))
        writer.add(np.array([0, number], np.uint64), columns, 1, None, facts)
    writer.flush()
    writer.close()
    if finished:
        finish(path, Recipe("a teacher"))


# From each kind to what writes it at a path; the path's ending counts for links alone.
KINDS = {
    "Composer checkpoint": lambda path: save(path, composer()),
    "Composer checkpoint, old format": lambda path: save(path, composer(), zipped=False),
    "state_dict": lambda path: save(path, weights()),
    "state_dict, old format": lambda path: save(path, weights(), zipped=False),
    "nested state_dict": lambda path: save(path, {"state_dict": weights(), "epoch": 1}),
    "safetensors": safetensors,
    "sharded": sharded,
    "Hugging Face folder, safetensors": lambda p: folder(p, "model.safetensors", safetensors),
    "Hugging Face folder, bin": lambda path: folder(
        path, "pytorch_model.bin", lambda file: save(file, weights())
    ),
    "Hugging Face parts, safetensors": lambda p: indexed(p, "model.safetensors", safetensors),
    "Hugging Face parts, bin": lambda path: indexed(path, "pytorch_model.bin", save),
    "Hugging Face model": hugging_face,
    "gzip": lambda path: compressed(path, "gzip"),
    "bzip2": lambda path: compressed(path, "bzip2"),
    "xz": lambda path: compressed(path, "xz"),
    "lzma": lambda path: compressed(path, "lzma"),
    "lz4": lambda path: compressed(path, "lz4"),
    "zstd": lambda path: compressed(path, "zstd"),
    "tar": lambda path: tar(path, "w"),
    "tar.gz": lambda path: tar(path, "w:gz"),
    "tar.bz2": lambda path: tar(path, "w:bz2"),
    "lzo": lambda path: compressed(path, "lzop"),
    "link": link,
    "Composer checkpoint with EMA": lambda path: save(path, moving_average()),
    "Composer checkpoint of a Hugging Face model": composer_of_hugging_face,
    "cache of answers": cache,
    "cache of answers, unfinished": lambda path: cache(path, finished=False),
}
PROGRAMS = {
    "gzip": "gzip",
    "bzip2": "bzip2",
    "xz": "xz",
    "lzma": "lzma",
    "lz4": "lz4",
    "zstd": "zstd",
    "lzo": "lzop",
}


def available(kind):
    return shutil.which(PROGRAMS.get(kind, "sh")) is not None


def write(kind, place):
    """Write a source of a kind into a folder of its own; give its path and the files it is of."""
    place.mkdir(parents=True)
    path = place / ("a.symlink" if kind == "link" else "a.pt")
    KINDS[kind](path)
    files = sorted(each for each in place.rglob("*") if each.is_file() and each.stat().st_size)
    return path, files


def plant(file, raw):
    """Put opcodes, whose value is one, into a file that torch.save wrote, beside its weights."""
    mark = b"X\x02\x00\x00\x00@@"
    data = Path(file).read_bytes()
    if not data.startswith(b"PK"):
        return Path(file).write_bytes(data.replace(mark, raw))
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for each in old.infolist():
            new.writestr(each.filename, old.read(each).replace(mark, raw))
    return Path(file).write_bytes(buffer.getvalue())


def read_all(path):
    """Read a source in every way that weights are read; give what each way came to."""
    from composer_distill.teachers import Teacher, load_weights
    from composer_distill.weights.inspection import describe

    if is_cache(path):
        return read_cache(path)
    ways = {
        "load_weights": lambda: load_weights(nn.Linear(3, 2), path),
        "loose": lambda: load_weights(nn.Linear(3, 2), path, strict=False),
        "ema": lambda: load_weights(nn.Linear(3, 2), path, ema=True),
        "describe": lambda: describe(str(path)),
        "from_pretrained": lambda: Teacher.from_pretrained(path),
        "from_composer_checkpoint": lambda: Teacher.from_composer_checkpoint(path),
    }
    return {name: came(way) for name, way in ways.items()}


def read_some(path):
    """Read a source in the two ways that see the most of it."""
    from composer_distill.teachers import load_weights
    from composer_distill.weights.inspection import describe

    if is_cache(path):
        return read_cache(path)
    loose = lambda: load_weights(nn.Linear(3, 2), path, strict=False)  # noqa: E731
    return {"loose": came(loose), "describe": came(lambda: describe(str(path)))}


def is_cache(path):
    return (path / "manifest.json").is_file()


def read_cache(path):
    """Read every answer of a cache, and what its manifest says."""
    from composer_distill.caching.answers import decode
    from composer_distill.caching.inspection import describe_cache, manifest_of
    from composer_distill.caching.reader import Cache

    def read():
        found = Cache(path, unfinished=True)
        places = found.find(np.array([[0, number] for number in range(3)], np.uint64))
        for place in [each for each in places.tolist() if each != -1]:
            (row,) = found.rows([place])
            with found.told(place):
                dtype = getattr(torch, found.manifest.dtype)
                decode(row, found.manifest.recipe, dtype, found.manifest.classes)

    def describe():
        manifest = manifest_of(path)
        assert manifest is not None
        describe_cache(path, manifest)

    return {"loose": came(read), "describe": came(describe)}


def came(way):
    """What a way of reading came to: "" for a result, an error's words, or what must not come."""
    try:
        way()
    except (ValueError, OSError) as error:
        return str(error)
    except Exception as error:
        return f"RAW {type(error).__name__}: {error}"
    return ""


def pickled(value):
    return pickle.dumps(value, 2)[2:-1]
