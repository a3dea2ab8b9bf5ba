"""One local folder, opened as contents: sharded checkpoints and Hugging Face models."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from composer_distill.weights.contents import Contents, Spec
from composer_distill.weights.errors import plain
from composer_distill.weights.files import open_file
from composer_distill.weights.sharded import METADATA, open_sharded

# The files that save_pretrained writes, in the order in which transformers prefers them.
SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX_ENDING = ".index.json"
ADAPTER = "adapter_config.json"


@contextmanager
def open_folder(folder: Path, *, ema: bool | None = None) -> Iterator[Contents]:
    """Open a folder.

    Args:
        folder: The folder.
        ema: Which weights of a Composer checkpoint trained with EMA: see ``load_weights``.

    Raises:
        ValueError: If it is neither a sharded checkpoint nor a Hugging Face model, or is damaged.
    """
    if ema is not None:
        raise ValueError(
            "ema can be chosen from a Composer checkpoint of one file only; leave it out"
        )
    if (folder / ADAPTER).exists():
        raise ValueError(
            "it holds a PEFT adapter, which changes another model; merge the two with peft's "
            "merge_and_unload(), save the result with save_pretrained(), and name that folder"
        )
    if (folder / METADATA).is_file():
        yield open_sharded(folder)
        return
    for name in SINGLE:
        for file in (folder / name, folder / (name + INDEX_ENDING)):
            if file.is_file():
                with _open_parts(folder, file) as contents:
                    yield contents
                return
    raise ValueError(
        f"it is a folder, but no sharded checkpoint or Hugging Face model; {_hint(folder)}"
    )


def _hint(folder: Path) -> str:
    inside = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix in {".pt", ".pth", ".bin", ".safetensors"} or (entry / METADATA).is_file()
    )
    if not inside:
        return "name a folder with a .metadata, or one that save_pretrained wrote"
    return f"name one of the checkpoints in it ({', '.join(map(plain, inside[:5]))})"


@contextmanager
def _open_parts(folder: Path, file: Path) -> Iterator[Contents]:
    if not file.name.endswith(INDEX_ENDING):
        with open_file(file) as part:
            yield Contents(folder, "Hugging Face folder", part.specs, part.read, part.mapped)
        return
    where = _read_index(file)
    with ExitStack() as stack:
        parts: dict[str, Contents] = {}
        for name in sorted(set(where.values())):
            if not (folder / name).is_file():
                raise ValueError(
                    f"its part {plain(name)} is missing; download the whole folder again"
                )
            parts[name] = stack.enter_context(open_file(folder / name))
        specs: dict[str, Spec] = {}
        for key, name in where.items():
            if key not in parts[name].specs:
                raise ValueError(
                    f"{file.name} says that {plain(key)} is in {plain(name)}, and it is not"
                )
            specs[key] = parts[name].specs[key]
        read = lambda key: parts[where[key]].read(key)  # noqa: E731
        mapped = all(part.mapped for part in parts.values())
        yield Contents(folder, f"Hugging Face folder of {len(parts)} parts", specs, read, mapped)


def _read_index(file: Path) -> dict[str, str]:
    """Which part holds which weight; a part is a file of this folder."""
    try:
        where = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its {file.name} is no index of weights") from error
    names = where.values() if isinstance(where, dict) else [None]
    if not where or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"its {file.name} names parts outside of the folder")
    return where
