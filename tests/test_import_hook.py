"""`import timm` in a process that imports nothing of this project first."""

from __future__ import annotations

import subprocess
import sys


def test_timm_is_imported_where_torchvision_alone_would_fail(tmp_path):
    from cornerstone.import_hook import LINE

    (tmp_path / "sitecustomize.py").write_text(LINE)  # runs when Python starts, as the installed line does
    program = "import timm; print(timm.create_model('test_vit', pretrained=False).num_classes)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1000"), done.stderr


def test_the_hook_costs_nothing_until_torchvision_is_imported():
    program = "import sys, cornerstone.import_hook; print('torch' in sys.modules, 'torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
