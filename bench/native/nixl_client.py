"""What NIXL's own Python client gets out of the library between two processes: the anchor of rows F8 of the benchmarks.

Same commands and cases as nixl_anchor.c, with the client's defaults. `PYTHONPATH` names the client and numpy.

  nixl_client.py MODULE               prints {"pids":[initiator, target]}, then for each line on stdin
    run CASE SAMPLES [BATCH [DEPTH]]  {"id":...,"bytes":...,"seconds":[...]}
"""

import importlib
import json
import os
import subprocess
import sys
import time

import numpy as np

MIB = 1 << 20
REGION = 256 * MIB
CHUNK = 16384
CHUNKS = 10000
BIG = {"1m": 1 * MIB, "16m": 16 * MIB, "64m": 64 * MIB, "256m": 256 * MIB}
TARGET = "python-target"


def open_agent(module, name):
    api = importlib.import_module(f"{module}._api")
    agent = api.nixl_agent(name, api.nixl_agent_config(backends=["UCX"]))
    memory = np.ones(REGION, dtype=np.uint8)
    agent.register_memory(agent.get_reg_descs([(memory.ctypes.data, REGION, 0, "")], "DRAM"))
    return agent, memory


def serve(module):
    agent, memory = open_agent(module, TARGET)
    print(json.dumps([memory.ctypes.data, agent.get_agent_metadata().hex()]), flush=True)
    sys.stdin.read()  # until the initiator is gone


def lists(case, number):
    """Offsets and sizes of a transfer's descriptors on both sides."""
    kind, size = case.split(".")
    if kind in ("write", "read"):
        size = BIG[size]
        offset = number * size % REGION
        return [np.array([offset])] * 2, size
    order = np.arange(CHUNKS)
    if kind == "contiguous":
        return [order * CHUNK] * 2, CHUNK
    return [np.random.default_rng(seed).permutation(order) * CHUNK for seed in (1, 2)], CHUNK


def described(agent, base, offsets, size):
    rows = np.zeros((len(offsets), 3), dtype=np.uint64)
    rows[:, 0] = base + offsets.astype(np.uint64)
    rows[:, 1] = size
    return agent.get_xfer_descs(rows, "DRAM")


class Initiator:
    def __init__(self, module, target):
        self.agent, self.memory = open_agent(module, "python-source")
        self.remote, metadata = json.loads(target.stdout.readline())
        self.agent.add_remote_agent(bytes.fromhex(metadata))
        self.number = 0

    def post(self, case):
        (here, there), size = lists(case, self.number) if case[0] in "wr" else self.many
        self.number += 1
        agent = self.agent
        handle = agent.initialize_xfer(
            "READ" if case.startswith("read") else "WRITE",
            described(agent, self.memory.ctypes.data, here, size),
            described(agent, self.remote, there, size),
            TARGET,
        )
        if agent.transfer(handle) == "ERR":
            raise RuntimeError("transfer failed")
        return handle

    def finish(self, handle):
        state = "PROC"
        while state not in ("DONE", "ERR"):
            state = self.agent.check_xfer_state(handle)
        if state == "ERR":
            raise RuntimeError("transfer failed")
        self.agent.release_xfer_handle(handle)

    def sample(self, case, batch, depth):
        flying = []
        start = time.perf_counter()
        for _ in range(batch):
            if len(flying) == depth:
                self.finish(flying.pop(0))
            flying.append(self.post(case))
        for handle in flying:
            self.finish(handle)
        return time.perf_counter() - start

    def run(self, case, samples, batch=1, depth=1):
        self.many = None if case[0] in "wr" else lists(case, 0)
        (here, _), size = self.many or lists(case, 0)
        seconds = [self.sample(case, batch, depth) for _ in range(samples)]
        return {"id": case, "bytes": size * len(here), "seconds": seconds}


def main():
    module = sys.argv[1]
    if len(sys.argv) > 2:
        serve(module)
        return
    target = subprocess.Popen(
        [sys.executable, __file__, module, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    initiator = Initiator(module, target)
    print(json.dumps({"pids": [os.getpid(), target.pid]}), flush=True)
    for line in sys.stdin:
        _, case, *numbers = line.split()
        print(json.dumps(initiator.run(case, *map(int, numbers))), flush=True)
    target.stdin.close()
    target.wait()


main()
