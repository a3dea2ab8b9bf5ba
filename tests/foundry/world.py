"""A small world: a tokenizer, texts, teachers, and a YAML of LLM Foundry for them."""

import copy
import json

import numpy as np
import torch
from llmfoundry.command_utils.train import train
from omegaconf import OmegaConf
from streaming import MDSWriter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(28)]
LENGTH = 16


def save_tokenizer(folder, words=WORDS):
    """A word a token; the end of a text also pads."""
    vocabulary = {word: index for index, word in enumerate(["<eos>", "<unk>", "<bos>", *words])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_llama(folder, seed, layers=1, words=WORDS, **changes):
    """A Hugging Face folder, with its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = save_tokenizer(folder, words)
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": 0,
        **changes,
    }
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
    return str(folder)


def texts(count, seed=0):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(2, 6))) for _ in range(count)]


def write_jsonl(folder, count=8):
    """Prompts and responses, as the finetuning loader reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = zip(texts(count, 1), texts(count, 2), strict=True)
    lines = [json.dumps({"prompt": a, "response": f" {b}"}) for a, b in rows]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def write_tokens(folder, tokenizer, count=8):
    """Whole rows of tokens, as the text loader reads them: texts end to end."""
    draw = np.random.default_rng(3)
    with MDSWriter(out=str(folder / "train"), columns={"tokens": "bytes"}) as out:
        for _ in range(count):
            row = draw.integers(3, len(tokenizer), LENGTH)
            row[draw.integers(3, 12)] = tokenizer.eos_token_id
            out.write({"tokens": row.astype(np.int64).tobytes()})
    return str(folder)


def write_streamed_pairs(folder, count=8):
    """The finetuning loader's streaming form."""
    rows = zip(texts(count, 1), texts(count, 2), strict=True)
    with MDSWriter(out=str(folder / "train"), columns={"prompt": "str", "response": "str"}) as out:
        for prompt, response in rows:
            out.write({"prompt": prompt, "response": f" {response}"})
    return str(folder)


MPT = {
    "name": "mpt_causal_lm",
    "init_device": "cpu",
    "d_model": 8,
    "n_heads": 2,
    "n_layers": 1,
    "expansion_ratio": 2,
    "max_seq_len": LENGTH,
    "vocab_size": 31,
    "attn_config": {"attn_impl": "torch"},
    "loss_fn": "torch_crossentropy",
    "init_config": {"name": "baseline_", "init_std": 0.5},
}


def finetuning(folder, **changes):
    dataset = {
        "hf_name": folder,
        "split": "train",
        "max_seq_len": LENGTH,
        "decoder_only_format": True,
        "allow_pad_trimming": False,
        "shuffle": False,
        **changes,
    }
    return loader("finetuning", {k: v for k, v in dataset.items() if v is not None})


def text(folder, **changes):
    dataset = {"local": folder, "split": "train", "max_seq_len": LENGTH, "shuffle": False}
    return loader("text", {**dataset, **changes})


def loader(name, dataset):
    return {
        "name": name,
        "dataset": dataset,
        "drop_last": True,
        "num_workers": 0,
        "pin_memory": False,
        "prefetch_factor": None,
        "persistent_workers": False,
    }


def recipe(tokenizer, model, train_loader, distillation=None, **changes):
    """A YAML's mapping."""
    algorithms = {} if distillation is None else {"distillation": distillation}
    config = {
        "seed": 5,
        "max_seq_len": LENGTH,
        "max_duration": "2ba",
        "precision": "fp32",
        "model": model,
        "tokenizer": {"name": tokenizer, "kwargs": {"model_max_length": LENGTH}},
        "optimizer": {"name": "decoupled_adamw", "lr": 1e-2},
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "0ba"},
        "train_loader": train_loader,
        "global_train_batch_size": 4,
        "device_train_microbatch_size": 4,
        "device_eval_batch_size": 4,
        "algorithms": algorithms,
        "loggers": {"in_memory_logger": {}},
        "progress_bar": False,
        "log_to_console": False,
        "log_config": False,
        "python_log_level": "warning",
        "eval_interval": 0,
        **changes,
    }
    return copy.deepcopy(config)


def run(config):
    """What ``llmfoundry train`` does, in this process: a trained Trainer, closed."""
    trainer = train(OmegaConf.create(copy.deepcopy(config)))
    trainer.close()
    return trainer


def logged(trainer, name):
    """The values of one name, in the order of batches."""
    (memory,) = (d for d in trainer.logger.destinations if hasattr(d, "data"))
    return [float(value) for _, value in memory.data[name]]
