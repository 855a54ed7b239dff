"""A fit as its own program, in a given number of processes: rank 0 writes the metrics, each rank the windows it saw.

python tests/training/ddp_case.py FOLDER DEVICES
"""

import json
import os
import sys
from pathlib import Path

from moe_beyond.training import datamodule
from moe_beyond.training.distributed import is_further_process
from moe_beyond.training.fit import fit
from moe_beyond.training.size import Size
from tests.predictor.small import SETTINGS
from tests.traces_of_chance import chance_trace

EPOCHS = 3


def main():
    folder, devices = Path(sys.argv[1]), int(sys.argv[2])
    seen, real = [], datamodule.Collate.__call__

    def collate(self, windows):
        seen.append([self.features.tokens_T.shape[0], windows])
        return real(self, windows)

    setattr(datamodule.Collate, "__call__", collate)  # noqa: B010 - of this process alone
    settings = SETTINGS.model_copy(update={"devices": devices, "strategy": "ddp" if devices > 1 else "auto"})
    train, validation = chance_trace(31, seed=1, name="t"), chance_trace(7, seed=2, name="v")
    fitted = fit(train, validation, Size(16, 1, 2), settings, epochs=EPOCHS, seed=5, scratch=folder / "scratch")
    (folder / f"seen-{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps([train.num_tokens, seen]))
    if not is_further_process():
        (folder / "metrics.json").write_text(json.dumps(fitted.metrics()))


if __name__ == "__main__":
    main()
