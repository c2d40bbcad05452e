"""The script for a large GPU, on tiny shapes and on whatever is here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_gpu_script_measures_everything(tmp_path: Path) -> None:
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    command = [ROOT / "benchmarks" / "gpu.sh", "--tiny"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    parts = {name: part for name, part in found.items() if isinstance(part, dict)}
    assert parts.keys() == {"exactness", "encoding", "first_token", "training_step", "streams"}
    assert not [part for part in parts.values() if "error" in part]
    for name, difference in parts["exactness"].items():
        if name != "took_s":
            assert 0 < difference < (1e-4 if "float32" in name else 0.1), name
    assert parts["encoding"]["passages_per_s"] > 0
    assert parts["first_token"]["400 tokens"]["times_faster"] > 0
    assert parts["training_step"]["of_product_rate"] > 0
    assert parts["streams"]["tokens_per_s, 4 at once"] > 0
