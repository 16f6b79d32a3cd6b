"""A NIXL agent in Python that talks to kvferry through Dynamo-format packages: commands in and answers out, one JSON
object a line. It encodes and decodes the packages itself, from the wire rules, and checks bytes itself."""

import json
import sys
import time
import types

import numpy as np

if "torch" not in sys.modules:
    # Releases up to 1.3 name torch's types at import; nothing of it is used here.
    torch = types.ModuleType("torch")
    torch.Tensor = type("Tensor", (), {})
    torch.device = type("device", (), {})
    torch.dtype = type("dtype", (), {})
    sys.modules["torch"] = torch

import importlib  # noqa: E402

api = importlib.import_module(f"{sys.argv[1]}._api")


# ---- bincode 2, standard configuration -------------------------------------------------------------------------


def varint(value):
    for limit, tag, size in ((251, None, 1), (1 << 16, 251, 2), (1 << 32, 252, 4), (1 << 64, 253, 8), (1 << 128, 254, 16)):
        if value < limit:
            body = value.to_bytes(size, "little")
            return body if tag is None else bytes([tag]) + body
    raise ValueError(value)


def blob(data):
    return varint(len(data)) + data


def text(value):
    return blob(value.encode())


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if self.at + count > len(self.data):
            raise ValueError("the package ends early")
        part = self.data[self.at : self.at + count]
        self.at += count
        return part

    def varint(self):
        first = self.take(1)[0]
        if first < 251:
            return first
        return int.from_bytes(self.take({251: 2, 252: 4, 253: 8, 254: 16}[first]), "little")

    def blob(self):
        return self.take(self.varint())


# ---- the package, in Dynamo 1.0's form or in kvbm-physical's ---------------------------------------------------------


def encode_package(worker, agent, metadata, layouts, kvbm):
    out = varint(worker) + text(agent) + blob(metadata) + varint(len(layouts))
    for layout_id, layout in enumerate(layouts):
        c = layout.config
        out += varint(worker | layout_id << 64)
        if kvbm:
            out += varint(1)  # tier: G2
        out += varint(1)
        for field in ("numBlocks", "numLayers", "outerDim", "pageSize", "innerDim", "alignment", "width"):
            out += varint(c[field])
        out += bytes([0]) if kvbm else varint(1)  # number of heads: not said; inner shape: NHD
        out += varint(0)  # location: system
        out += text(agent) + varint(0) + varint(0)  # DRAM, device 0
        regions = layout.regions
        out += varint(len(regions))
        for address, size in regions:
            out += varint(address) + varint(size)
        out += varint(0) + varint(0) if c["kind"] == "fc" else varint(1) + varint(1 if c["kind"] == "ls-second" else 0)
        if kvbm:
            out += varint(5)  # order inside a block: unknown
    return out


def decode_package(data, kvbm):
    r = Reader(data)
    worker, agent, metadata = r.varint(), r.blob().decode(), r.blob()
    layouts = []
    for _ in range(r.varint()):
        handle = r.varint()
        assert not kvbm or r.varint() == 1
        version = r.varint()
        assert version == 1 and handle & (1 << 64) - 1 == worker
        c = {f: r.varint() for f in ("numBlocks", "numLayers", "outerDim", "pageSize", "innerDim", "alignment", "width")}
        if kvbm:
            assert r.take(1) == b"\0"  # number of heads: not said
        else:
            r.varint()  # inner shape
        assert r.varint() in (0, 1)  # host memory
        assert r.blob().decode() == agent and r.varint() == 0
        device = r.varint()
        regions = [(r.varint(), r.varint()) for _ in range(r.varint())]
        if r.varint() == 0:
            assert r.varint() == 0
            c["kind"] = "fc"
        else:
            c["kind"] = "ls-second" if r.varint() else "ls-first"
        assert not kvbm or r.varint() == 5
        layouts.append((handle >> 64, c, regions, device))
    assert r.at == len(data), "bytes after the package"
    return agent, metadata, layouts


# ---- layouts ----------------------------------------------------------------------------------------------------------


def cell_bytes(c):
    return c["pageSize"] * c["innerDim"] * c["width"]


def cell_address(c, regions, block, layer, outer):
    size = cell_bytes(c)
    if c["kind"] == "fc":
        return regions[0][0] + ((block * c["numLayers"] + layer) * c["outerDim"] + outer) * size
    if c["kind"] == "ls-first":
        return regions[layer][0] + (block * c["outerDim"] + outer) * size
    return regions[layer][0] + (outer * c["numBlocks"] + block) * size


def pattern(seed, block, layer, outer, size):
    k = np.arange(size, dtype=np.int64)
    return ((seed * 31 + block * 7 + layer * 13 + outer * 29 + k * 3 + (k >> 8)) & 255).astype(np.uint8)


class Layout:
    def __init__(self, config):
        self.config = config
        per_layer = config["numBlocks"] * config["outerDim"] * cell_bytes(config)
        layers = config["numLayers"]
        sizes = [per_layer * layers] if config["kind"] == "fc" else [per_layer] * layers
        self.arrays = [np.full(size, 0xEE, dtype=np.uint8) for size in sizes]
        self.regions = [(array.ctypes.data, array.nbytes) for array in self.arrays]

    def cell(self, block, layer, outer):
        address = cell_address(self.config, self.regions, block, layer, outer)
        for array, (base, size) in zip(self.arrays, self.regions):
            if base <= address < base + size:
                return array[address - base : address - base + cell_bytes(self.config)]
        raise ValueError("a cell lies in no region")

    def cells(self, block):
        for layer in range(self.config["numLayers"]):
            for outer in range(self.config["outerDim"]):
                yield layer, outer, self.cell(block, layer, outer)

    def fill(self, blocks, seed):
        for block in blocks:
            for layer, outer, cell in self.cells(block):
                cell[:] = pattern(seed, block, layer, outer, cell.size)

    def wrong(self, blocks, sources, seed):
        """Cells of `blocks` that do not hold what the blocks `sources` were filled with."""
        bad = []
        for block, source in zip(blocks, sources):
            for layer, outer, cell in self.cells(block):
                if not np.array_equal(cell, pattern(seed, source, layer, outer, cell.size)):
                    bad.append([block, layer, outer])
        return bad

    def reset(self):
        for array in self.arrays:
            array[:] = 0xEE

    def touched(self, blocks):
        """Those of `blocks` that do not hold the guard value throughout."""
        return [b for b in blocks if any((cell != 0xEE).any() for _, _, cell in self.cells(b))]


# ---- the peer ---------------------------------------------------------------------------------------------------------


class Peer:
    def __init__(self, name, worker, configs, package_format):
        self.name, self.worker, self.kvbm = name, worker, package_format == "kvbm-physical-1"
        self.agent = api.nixl_agent(name, api.nixl_agent_config(backends=["UCX"]))
        self.layouts = [Layout(config) for config in configs]
        regions = [(address, size, 0, "") for layout in self.layouts for address, size in layout.regions]
        self.agent.register_memory(self.agent.get_reg_descs(regions, "DRAM"))
        self.remote = None
        self.notifications = []

    def package(self):
        return encode_package(self.worker, self.name, self.agent.get_agent_metadata(), self.layouts, self.kvbm).hex()

    def load(self, data):
        agent, metadata, layouts = decode_package(bytes.fromhex(data), self.kvbm)
        name = self.agent.add_remote_agent(metadata)
        name = name.decode() if isinstance(name, bytes) else name
        assert name == agent, f"the package says {agent}, NIXL says {name}"
        self.remote = (agent, layouts)
        return [{"id": i, "config": c} for i, c, _, _ in layouts]

    def move(self, op, mine, blocks, theirs, their_blocks, notify):
        """WRITE pushes our blocks into theirs, READ pulls theirs into ours."""
        agent, layouts = self.remote
        _, config, regions, device = layouts[theirs]
        local, remote = [], []
        for block, other in zip(blocks, their_blocks):
            for layer, outer, cell in self.layouts[mine].cells(block):
                local.append((cell.ctypes.data, cell.nbytes, 0))
                remote.append((cell_address(config, regions, other, layer, outer), cell_bytes(config), device))
        a = self.agent
        handle = a.initialize_xfer(op, a.get_xfer_descs(local, "DRAM"), a.get_xfer_descs(remote, "DRAM"), agent, notify.encode())
        state = a.transfer(handle)
        limit = time.time() + 20
        while state not in ("DONE", "ERR") and time.time() < limit:
            time.sleep(0.0002)
            state = a.check_xfer_state(handle)
        a.release_xfer_handle(handle)
        return state

    def wait_notification(self, seconds):
        limit = time.time() + seconds
        while not self.notifications and time.time() < limit:
            for sender, messages in self.agent.get_new_notifs().items():
                sender = sender.decode() if isinstance(sender, bytes) else sender
                self.notifications += [[sender, message.hex()] for message in messages]
            time.sleep(0.0005)
        return self.notifications.pop(0) if self.notifications else None

    def send(self, payload):
        self.agent.send_notif(self.remote[0], payload.encode())
        return True


def main():
    peer = None
    for line in sys.stdin:
        command = json.loads(line)
        name, arguments = command["do"], command["with"]
        try:
            if name == "open":
                peer = Peer(*arguments)
                answer = {"package": peer.package()}
            elif name in ("fill", "wrong", "reset", "touched"):
                index, *rest = arguments
                answer = getattr(peer.layouts[index], name)(*rest)
            elif name == "quit":
                break
            else:
                answer = getattr(peer, name)(*arguments)
            print(json.dumps({"ok": answer}), flush=True)
        except Exception as error:  # the test reads what went wrong
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


main()
