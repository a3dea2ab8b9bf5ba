"""What a tokenizer's files ask for, looked at before a library reads them."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from composer_distill.teachers.confinement import entries, names_a_file
from composer_distill.weights.json_files import read_json
from composer_distill.weights.wording import plain

# What transformers takes settings from
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
NORMALIZERS = "tokenizer.json"
# So many words may be made up; the largest vocabularies have 901,629 in all
LARGEST = 1_000_000
# How much longer a text may become that is normalised; T5's grows 160 times at the most
MAX_GROWTH = 1000
_FEW = 100


def check_file(file: Path) -> None:
    """Refuse a file that names another, asks for words without end, or makes texts grow.

    transformers opens a file that a setting names, were it a device that never ends, and makes
    up as many words as a setting says, one by one. Words that are added to a vocabulary are
    normalised at once; what comes behind that, such as the splitting, waits for a text.

    Args:
        file: One of ``SETTINGS``, or ``NORMALIZERS``.

    Raises:
        ValueError: If it does; the error names the key.
    """
    if file.name == NORMALIZERS:
        _check_normalizers(file)
        return
    for path, key, value in entries(read_json(file)):
        if type(value) is str and names_a_file(value, besides=file.parent):
            raise ValueError(f"its {file.name} names a file elsewhere under {plain(path)}")
        if type(value) is int and abs(value) > LARGEST and "len" not in key:
            raise ValueError(f"its {file.name} asks for {plain(value)} under {plain(path)}")


def _check_normalizers(file: Path) -> None:
    growth = 1

    def look(pairs: list[tuple[str, Any]]) -> Any:
        nonlocal growth
        if len(pairs) > _FEW:
            return None
        growth *= _growth(pairs)
        if growth > MAX_GROWTH:
            raise ValueError(f"its {file.name} makes texts more than {MAX_GROWTH} times longer")
        return dict(pairs)

    json.loads(file.read_text("utf-8"), object_pairs_hook=look)


def _growth(pairs: list[tuple[str, Any]]) -> int:
    """How many times longer a text may be behind one step; of keys given twice, each counts."""
    kinds = {str(value) for key, value in pairs if key == "type"}
    longest = max((len(v) for k, v in pairs if k == "content" and type(v) is str), default=0)
    factors = [1]
    for key, value in pairs:
        if key == "pattern" and "Replace" in kinds and isinstance(value, dict):
            factors.append(_replaced(value, longest))
        elif key == "prepend" and type(value) is str:
            factors.append(1 + len(value))
        elif key == "precompiled_charsmap" and type(value) is str:
            factors.append(_mapped(value))
    return max(factors) * (2 if "ByteLevel" in kinds else 1)


def _replaced(pattern: dict[str, Any], longest: int) -> int:
    """A text is looked for once; an expression may be found between any two letters."""
    expression = str(pattern.get("Regex", ""))
    if "(" in expression or len(re.findall(r"[*+?{]", expression)) > 1:
        raise ValueError(
            f"it normalises by the expression {plain(expression, 60)!r}, which may be looked for "
            "without an end"
        )
    text = pattern.get("String")
    if type(text) is str and text:
        return -(-longest // len(text)) or 1
    return 1 + longest


def _mapped(packed: str) -> int:
    """The longest text that a letter becomes: behind a tree of so many bytes, ended by zeros."""
    data = base64.b64decode(packed)
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(map(len, texts.split(b"\0"))) or 1
