"""Multiplies matrices on the GPU when told to: a number of products on each line of standard input, milliseconds of one on each line of output."""
import sys

import torch

SIZE = 8192
left = torch.randn(SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
right = torch.randn(SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
out = torch.empty_like(left)
for _ in range(20):
    torch.mm(left, right, out=out)
torch.cuda.synchronize()
print("ready", flush=True)
for line in sys.stdin:
    count = int(line)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(count):
        torch.mm(left, right, out=out)
    end.record()
    end.synchronize()
    print(begin.elapsed_time(end) / count, flush=True)
