"""What the reports of all demos have in common."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from composer_distill import __version__


def join(sections: Sequence[str], note: str | None) -> str:
    """Return the sections of a text, between a ``note`` and the same note where there is one."""
    around = [] if note is None else [note]
    return "\n\n".join([*around, *sections, *around])


def dump(settings: Any, packages: Sequence[str], numbers: Mapping[str, Any]) -> str:
    """Return ``numbers`` as JSON, behind the date, the versions and the settings of the run."""
    document = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "composer-distill": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "settings": asdict(settings),
        **numbers,
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
