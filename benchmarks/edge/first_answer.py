"""One cold start, run by a fresh environment's Python: `first_answer.py ours|bare BUNDLE`; prints times as JSON.

It imports nothing but what it measures: `ours` answers through `Edge`; `bare` runs the same stages by onnxruntime
alone, unverified, which is the least that any answer costs.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path


def _ours(bundle: str) -> list[float]:
    times = [time.perf_counter()]
    import numpy as np

    from offramp.connect import Edge

    times.append(time.perf_counter())
    edge = Edge(bundle)
    times.append(time.perf_counter())
    shape = edge.bundle.manifest.inputs[0].shape
    with edge:
        (result,) = edge.run(np.zeros((1, *shape), np.float32))
    assert result.status == "ok"
    return [*times, time.perf_counter()]


def _bare(bundle: str) -> list[float]:
    times = [time.perf_counter()]
    import numpy as np
    import onnxruntime as ort

    times.append(time.perf_counter())
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    files = sorted(Path(bundle, "stages").glob("*.onnx"))
    sessions = [ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
    times.append(time.perf_counter())
    shape = sessions[0].get_inputs()[0].shape[1:]
    tensors = [np.zeros((1, *shape), np.float32)]
    for session in sessions:
        names = [value.name for value in session.get_inputs()]
        tensors = session.run(None, dict(zip(names, tensors, strict=True)))
    return [*times, time.perf_counter()]


if __name__ == "__main__":
    marks = {"ours": _ours, "bare": _bare}[sys.argv[1]](sys.argv[2])
    spent = [(after - before) * 1e3 for before, after in itertools.pairwise(marks)]
    print(json.dumps(dict(zip(("import_ms", "load_ms", "run_ms"), spent, strict=True))), flush=True)
