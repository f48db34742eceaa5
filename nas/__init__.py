"""nas: the best audio classifier for a device and a size budget.

    import nas
    record = nas.search(data="recordings", budget_kb=64, trials=40)
    for trial in nas.front(record.name):
        print(trial.score.accuracy, trial.file_bytes, trial.architecture)
    nas.export(record.name, max_kb=64)

The functions are those that the command line calls; they are imported when first used.
"""

import os
from typing import Any

# ONNX Runtime reports to its makers unless told otherwise before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["evaluate", "export", "front", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from nas import api

        return getattr(api, name)
    raise AttributeError(f"module 'nas' has no attribute '{name}'")
