"""JSON beside weights, read with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from composer_distill.weights.pickles import reason


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Args:
        file: Its path.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is none; the error names the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "config.json")
        >>> _ = path.write_text("{")
        >>> read_json(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: its config.json is no JSON (JSONDecodeError: ...); copy or download it again
    """
    try:
        return json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"its {file.name} is no JSON ({reason(error)}); copy or download it again"
        ) from error
