"""What commands import: help next to nothing, answers no compiler and nothing for training."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ASK = """
import json, sys
from imprag.cli import main

sys.argv = ["imprag", "ask", "w7 w14", *sys.argv[1:], "--json", "--max-new-tokens", "2"]
status = main()
loaded = sorted(name for name, module in sys.modules.items() if module is not None)
import torch._dynamo
import transformers.utils

available = torch.distributed.is_available()
compiled = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item()
missing = transformers.utils.is_scipy_available(), "scipy" in sys.modules
print(json.dumps([status, loaded, available, compiled, missing]))
"""


def own_process(*command: str) -> list[Any]:
    """The JSON lines that Python prints for a command."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, check=True, capture_output=True, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_answers_import_neither_compiler_nor_training(tiny_home: Path) -> None:
    places = ("--model", str(tiny_home / "model"), "--index", str(tiny_home / "index"))
    answer, found = own_process("-c", ASK, *places)
    assert answer["passages"]
    status, loaded, available, compiled, missing = found
    assert status == 0
    assert "transformers.modeling_utils" in loaded
    costly = ("torch._dynamo.exc", "torch.distributed.tensor", "scipy", "pandas", "pyarrow.compute")
    assert not set(costly) & set(loaded)
    assert available  # PyTorch itself is as it was
    assert compiled == 2  # the compiler is loaded when it is used
    assert missing == [False, False]


def test_help_imports_no_large_library() -> None:
    listed = "import json, sys; from imprag.cli import main; main(['ask', '--help'])"
    code = f"{listed}; sys.stdout.write('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "rich.console" in loaded
    assert not {"torch", "transformers", "numpy", "pyarrow", "faiss"} & set(loaded)
