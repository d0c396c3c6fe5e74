"""What lies on an accelerator is never mixed with what lies on the host: builds on a stand-in for one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("what", [["ddpm"], ["sd3"], ["sd3", "offloaded"]], ids=" ".join)
def test_a_patch_is_built_put_on_and_measured_on_another_device_as_on_the_cpu(what, tmp_path):
    command = [sys.executable, Path(__file__).with_name("built_elsewhere.py"), *what]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[-2] == f"{' '.join(what)} is built on", done.stderr
