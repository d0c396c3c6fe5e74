"""What Ray's processes need of their environment."""

import os
import secrets
import sys
from pathlib import Path


def environment(folder: Path) -> dict[str, str]:
    """For a cluster of its own, and for who uses it.

    Args:
        folder: gets a module that hides a library of the other tests, which jsonschema would import in every process of
            Ray's for three seconds.
    """
    (folder / "rfc3987_syntax.py").write_text("raise ImportError\n")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]]),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
