"""The part of candlepower's protocol for peers that adapters in Python share. src/guide/peers.md specifies the messages."""

import ctypes
import json
import os
import queue
import sys
import threading
import traceback

PROTOCOL = 3
REQUESTS = ("describe", "load", "reset", "prefill", "step", "logits", "train", "forward")
# Of adapters that generate batches: as many as candlepower does.
MOST_SEQUENCES = 1024
# Kinds of work, and the method that an adapter has if it does them.
WORK = {"generate": "prefill", "score": "logits", "train": "train", "forward": "forward"}

# Only answers may go to standard output. The output of libraries goes to standard error.
_answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


class Unsupported(Exception):
    """The adapter cannot do what was asked for, so that the benchmark is left out."""


def serve(adapter):
    """Answers requests by the adapter's methods of the same names. Each takes the request and returns the answer."""
    requests = queue.SimpleQueue()
    about = {"protocol": PROTOCOL, "work": [work for work, method in WORK.items() if hasattr(adapter, method)]}

    def read():
        for line in sys.stdin.buffer:
            requests.put(json.loads(line))
        # Candlepower has ended, perhaps in the middle of a step.
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while (request := requests.get())["request"] != "close":
        try:
            name = request["request"]
            if name not in REQUESTS or not hasattr(adapter, name):
                raise Unsupported(f"the request {name}")
            answer = getattr(adapter, name)(request)
            if name == "describe":
                answer |= about
        except Unsupported as reason:
            answer = {"unsupported": str(reason)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=_answers, flush=True)
    os._exit(0)


def is_greedy(sampling):
    """Returns whether a request's sampling is argmax of the logits themselves."""
    return sampling["temperature"] == 0.0 and sampling["repetition_penalty"] is None


class Memory:
    """Peak memory of the process above that before a model was loaded. Linux counts it; elsewhere it is None."""

    def __init__(self):
        # What an earlier model has left goes back to the system first. Only glibc has the function.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        if trim is not None:
            trim(0)
        self.before = _status("VmRSS")

    def begin(self):
        """Resets the peak to the memory in use."""
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            self.before = None

    def peak_bytes(self):
        peak = _status("VmHWM")
        return None if peak is None or self.before is None else max(peak - self.before, 0)


class TorchMemory(Memory):
    """The same on a device of PyTorch. CUDA counts its own allocations; on other accelerators, the peak is None."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def begin(self):
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            super().begin()

    def peak_bytes(self):
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device)
        return super().peak_bytes() if self.device.type == "cpu" else None


def _status(field):
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))
    except (OSError, StopIteration):
        return None
