"""Long measurements in pieces: every piece has a file, so that a run may be stopped and gone on with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hotfix.container import write_atomically


def kept(path: Path, about: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """Numbers from their file, or measured and written to it; `about` says what they are of, in what JSON can hold."""
    if path.exists() and (found := json.loads(path.read_text()))["about"] == about:
        return found["numbers"]
    numbers = measure()
    write(path, {"about": about, "numbers": numbers})
    return numbers


def write(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
