"""Started by torchrun: an imprag command under FSDP2 whose last process is killed after a step.

Arguments: the step, then those of the command.
"""

import os
import signal
import sys
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from processes import fsdp2, quick_evaluation

from imprag.cli import main
from imprag.training import trainer


class _Killed(trainer._Saving):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == int(sys.argv[1]) and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    with fsdp2(), quick_evaluation(), patch.object(trainer, "_Saving", _Killed):
        main(sys.argv[2:])
