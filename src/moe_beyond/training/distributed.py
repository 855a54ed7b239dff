"""Which of several processes of one training this is, by the variables that launchers set.

Lightning starts the further processes of a machine as the very script that it runs in; torchrun and Slurm start the
script everywhere. Only the first process writes outs.
"""

from __future__ import annotations

import os

_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def is_further_process() -> bool:
    """Whether another process is the first of this training."""
    return any(os.environ.get(name, "0") != "0" for name in _VARIABLES)
