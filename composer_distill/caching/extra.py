"""What the extra ``cache`` installs, imported where it is needed."""

import importlib
from typing import Any


def need(module: str) -> Any:
    """Return a module that the extra ``cache`` installs.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"cached teachers need {module.partition('.')[0]}, not installed here: "
            "pip install 'composer-distill[cache]'"
        ) from error
