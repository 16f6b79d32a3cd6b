// Layouts in files: bytes against what was written, blocks that survive a restart, and every fault of a real file system.
import { afterAll, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  closeSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LayoutConfig, LayoutSpec, LocalLayout, Transport } from "../../index.ts";
import { ran } from "./helpers/programs.ts";
import { refused } from "./helpers/refusal.ts";
import { openLocal, systemSpec } from "./helpers/transports.ts";

const CONFIG: LayoutConfig = { numBlocks: 8, numLayers: 2, outerDim: 2, pageSize: 16, innerDim: 128 };
/** Rows that no device takes past the page cache. */
const ODD: LayoutConfig = { numBlocks: 9, numLayers: 3, outerDim: 1, pageSize: 3, innerDim: 11 };
const FOLDER = mkdtempSync(join(tmpdir(), "kvferry-disk-"));
/** A file system in memory, where there is one. */
const MEMORY = existsSync("/dev/shm") ? mkdtempSync("/dev/shm/kvferry-disk-") : FOLDER;

const cleanups: (() => void)[] = [];
afterAll(() => {
  for (const cleanup of cleanups.toReversed()) cleanup();
  rmSync(FOLDER, { recursive: true, force: true });
  rmSync(MEMORY, { recursive: true, force: true });
});

let lastFile = 0;
function freshPath(folder = FOLDER): string {
  return join(folder, `file-${++lastFile}.bin`);
}

function diskSpec(path: string | undefined, config: LayoutConfig = CONFIG, more: object = {}): LayoutSpec {
  const { memory, ...rest } = more as { memory?: object };
  return {
    name: "disk",
    config,
    arrangement: "fully-contiguous",
    memory: { kind: "disk", ...(path === undefined ? {} : { path }), ...memory },
    ...rest,
  };
}

async function allBlocks(layout: LocalLayout): Promise<Uint8Array<ArrayBuffer>[]> {
  return await Promise.all(
    Array.from({ length: layout.config.numBlocks }, (_unused, block) => layout.read(block)),
  );
}

async function filled(transport: Transport, config: LayoutConfig, seed: number): Promise<LocalLayout> {
  const layout = await transport.register(
    systemSpec("host", config, { arrangement: "layer-separate/block-second" }),
  );
  await layout.fill({ random: seed });
  return layout;
}

test.each([
  ["aligned rows past the page cache", CONFIG, () => FOLDER, "fully-contiguous"],
  ["layers apart", CONFIG, () => FOLDER, "layer-separate/block-first"],
  ["rows of odd sizes", ODD, () => FOLDER, "fully-contiguous"],
  ["a file system without direct transfers", CONFIG, () => MEMORY, "fully-contiguous"],
] as const)("blocks go to a file and come back: %s", async (_name, config, folder, arrangement) => {
  await using transport = await openLocal();
  const host = await filled(transport, config, 3);
  const back = await transport.register(systemSpec("back", config));
  const disk = await transport.register(diskSpec(freshPath(folder()), config, { arrangement }));
  const ids = [3, 1, 4, 0];
  const to = [7, 6, 2, 3];
  await transport.transfer({ source: host, sourceBlocks: ids, destination: disk, destinationBlocks: to });
  await transport.transfer({ source: disk, sourceBlocks: to, destination: back, destinationBlocks: ids });
  const untouched = new Uint8Array(back.config.blockBytes);
  for (let block = 0; block < config.numBlocks; block++) {
    const wanted: Uint8Array<ArrayBuffer> = ids.includes(block) ? await host.read(block) : untouched;
    expect(await back.read(block)).toEqual(wanted);
  }
  for (let block = 0; block < config.numBlocks; block++)
    if (!to.includes(block)) expect(await disk.read(block)).toEqual(untouched);
});

test("a named file has the layout's bytes where the arrangement puts them, and stays when everything is closed", async () => {
  const path = freshPath();
  let wanted: Uint8Array<ArrayBuffer>;
  {
    await using transport = await openLocal();
    const disk = await transport.register(diskSpec(path));
    await disk.fill({ random: 8 });
    wanted = await disk.read(5);
    expect(disk).toMatchObject({ tier: "G3", storage: { kind: "disk" } });
    expect(() => disk.bytes).toThrow(expect.objectContaining({ code: "ERR_KVF_ACCESS" }));
    await disk.unregister();
  }
  const { byteLength } = wanted;
  expect(new Uint8Array(readFileSync(path)).subarray(5 * byteLength, 6 * byteLength)).toEqual(wanted);
});

test("blocks survive a restart; another model is refused and leaves them alone", async () => {
  const path = freshPath();
  let before: Uint8Array<ArrayBuffer>[];
  {
    await using transport = await openLocal();
    const disk = await transport.register(diskSpec(path, CONFIG, { fingerprint: "model-a" }));
    await disk.fill({ random: 4 });
    before = await allBlocks(disk);
  }
  await using transport = await openLocal();
  const existing = { open: "existing" };
  for (const [config, fingerprint, differs] of [
    [CONFIG, "model-b", "fingerprint"],
    [CONFIG, undefined, "fingerprint"],
    [{ ...CONFIG, numLayers: 4, numBlocks: 4 }, "model-a", "config"],
  ] as const) {
    const spec = diskSpec(path, config, {
      memory: existing,
      ...(fingerprint === undefined ? {} : { fingerprint }),
    });
    const error = await refused("INCOMPATIBLE_LAYOUTS", transport.register(spec));
    expect(error.message).toContain(path);
    expect(error.details["differs"]).toContain(differs);
  }
  const again = await transport.register(
    diskSpec(path, CONFIG, { fingerprint: "model-a", memory: existing }),
  );
  expect(await allBlocks(again)).toEqual(before);
});

test("a file serves one layout at a time", async () => {
  const path = freshPath();
  await using transport = await openLocal();
  const first = await transport.register(diskSpec(path));
  const error = await refused("IN_USE", transport.register(diskSpec(path, CONFIG, { name: "second" })));
  expect(error.message).toContain(path);
  await first.unregister();
  await transport.register(diskSpec(path, CONFIG, { name: "third" }));
});

test.each(["KVFERRY_DISK_CACHE_DIR", "DYN_KVBM_DISK_CACHE_DIR"])(
  "a file without a name is nowhere to be seen, and its directory, of %s, is made",
  async (variable) => {
    const folder = join(FOLDER, "cache", variable);
    process.env[variable] = folder;
    try {
      await using transport = await openLocal();
      const disk = await transport.register(diskSpec(undefined));
      await disk.fill(7);
      expect(new Set(await disk.read(3))).toEqual(new Set([7]));
      expect(statSync(folder).isDirectory()).toBe(true);
      expect([...new Bun.Glob("*").scanSync({ cwd: folder, onlyFiles: false })]).toEqual([]);
    } finally {
      delete process.env[variable];
    }
  },
);

test("what cannot be a layout's file is refused by name and left as it is", async () => {
  await using transport = await openLocal();
  const foreign = freshPath();
  writeFileSync(foreign, "somebody's letters");
  const short = freshPath();
  writeFileSync(short, new Uint8Array(1000));
  const folder = join(FOLDER, "a-directory");
  mkdirSync(folder, { recursive: true });
  const cases: [string, LayoutSpec][] = [
    [foreign, diskSpec(foreign)],
    [short, diskSpec(short, CONFIG, { memory: { open: "existing" } })],
    [folder, diskSpec(folder)],
    [join(FOLDER, "missing"), diskSpec(join(FOLDER, "missing"), CONFIG, { memory: { open: "existing" } })],
    [join(foreign, "below-a-file"), diskSpec(join(foreign, "below-a-file"))],
  ];
  for (const [path, spec] of cases) {
    const error = await refused("IO", transport.register(spec));
    expect(error.message).toContain(path.startsWith(foreign) ? foreign : path);
  }
  expect(readFileSync(foreign, "utf8")).toBe("somebody's letters");
  expect(statSync(short).size).toBe(1000);
  expect(existsSync(join(FOLDER, "missing"))).toBe(false);
  // A refused registration uses no id.
  expect((await transport.register(systemSpec("next"))).record.layoutId).toBe(0);
});

test("a pipe by mistake does not hold the process up", async () => {
  const path = join(FOLDER, "pipe");
  expect(Bun.spawnSync(["mkfifo", path]).exitCode).toBe(0);
  await using transport = await openLocal();
  const error = await refused("IO", transport.register(diskSpec(path)));
  expect(error.message).toContain(path);
});

test("a file that is cut or removed under the layout fails transfers by name, and others go on", async () => {
  await using transport = await openLocal();
  const host = await filled(transport, CONFIG, 6);
  const cut = freshPath();
  const removed = freshPath();
  const first = await transport.register(diskSpec(cut, CONFIG, { name: "cut" }));
  const second = await transport.register(diskSpec(removed, CONFIG, { name: "removed" }));
  const third = await transport.register(diskSpec(freshPath(), CONFIG, { name: "good" }));
  truncateSync(cut, 4096);
  unlinkSync(removed);
  const request = { source: host, sourceBlocks: [1, 2], destinationBlocks: [3, 4] };
  const [one, two] = await Promise.all([
    refused("IO", transport.transfer({ ...request, destination: first })),
    refused("IO", transport.transfer({ ...request, destination: second })),
    transport.transfer({ ...request, destination: third }),
  ]);
  expect(one?.message).toContain(cut);
  expect(two?.message).toContain(removed);
  expect(await third.read(4)).toEqual(await host.read(2));
});

test("a flipped bit is found at the next read, and the block is refused until it is written again", async () => {
  const path = freshPath();
  await using transport = await openLocal();
  const host = await filled(transport, CONFIG, 9);
  const back = await transport.register(systemSpec("back", CONFIG));
  const disk = await transport.register(diskSpec(path, CONFIG, { memory: { checksums: true } }));
  await transport.transfer({
    source: host,
    sourceBlocks: [0, 1, 2],
    destination: disk,
    destinationBlocks: [5, 6, 7],
  });
  const at = 6 * disk.config.blockBytes + 77;
  const file = openSync(path, "r+");
  const byte = new Uint8Array(1);
  readSync(file, byte, 0, 1, at);
  writeSync(
    file,
    byte.map((value) => value ^ 0x10),
    0,
    1,
    at,
  );
  closeSync(file);

  const read = (blocks: number[]) =>
    transport.transfer({ source: disk, sourceBlocks: blocks, destination: back, destinationBlocks: [0, 1] });
  const error = await refused("CHECKSUM", read([5, 6]));
  expect(error).toMatchObject({ settlement: "done", details: { blocks: [6] } });
  expect(error.message).toContain(path);
  // Nothing of the bad block was served.
  expect(await back.read(1)).toEqual(new Uint8Array(back.config.blockBytes));
  await refused("CHECKSUM", read([6, 7]));
  await refused("CHECKSUM", disk.read(6));
  await read([5, 7]);
  expect(await back.read(1)).toEqual(await host.read(2));
  await transport.transfer({ source: host, sourceBlocks: [1], destination: disk, destinationBlocks: [6] });
  await read([6, 5]);
  expect(await back.read(0)).toEqual(await host.read(1));
});

test("checksums are kept over a restart", async () => {
  const path = freshPath();
  const spec = (open: string): LayoutSpec => diskSpec(path, CONFIG, { memory: { checksums: true, open } });
  let wanted: Uint8Array<ArrayBuffer>;
  {
    await using transport = await openLocal();
    const disk = await transport.register(spec("create"));
    await disk.fill({ random: 1 });
    wanted = await disk.read(2);
  }
  const file = openSync(path, "r+");
  writeSync(file, new Uint8Array([1, 2, 3, 4]), 0, 4, 100);
  closeSync(file);
  await using transport = await openLocal();
  const disk = await transport.register(spec("existing"));
  await refused("CHECKSUM", disk.read(0));
  expect(await disk.read(2)).toEqual(wanted);
});

test("checksum: true compares both ends, also over a reordering, a part and another page size", async () => {
  await using transport = await openLocal();
  const source = await filled(transport, CONFIG, 12);
  const wide = await transport.register(
    systemSpec("wide", { ...CONFIG, pageSize: 32, numBlocks: 4 }, { order: "hnd" }),
  );
  const same = await transport.register(systemSpec("same", CONFIG));
  const good = { source, sourceBlocks: [1, 2, 5, 6], checksum: true } as const;
  await transport.transfer({ ...good, destination: wide, destinationBlocks: [3, 0] });
  await transport.transfer({
    ...good,
    destination: same,
    destinationBlocks: [0, 1, 2, 3],
    layers: { start: 1, end: 2 },
  });
  // A byte of the third block changes after the last layer was written and before the ends are compared.
  const spoilt = transport.transfer({
    ...good,
    destination: same,
    destinationBlocks: [4, 5, 6, 7],
    layerwise: {
      every: 1,
      notify: (layer) => {
        const region = same.bytes[0];
        const at = 6 * same.config.blockBytes + 3;
        if (layer === 1 && region !== undefined) region[at] = (region[at] ?? 0) ^ 1;
        return "layer";
      },
    },
  });
  const error = await refused("CHECKSUM", spoilt);
  expect(error).toMatchObject({ settlement: "done", details: { blocks: [6] } });
  expect(await spoilt.settled).toEqual({ settlement: "done", proof: "completed" });
  const again = { source: same, destination: source, destinationBlocks: [0] };
  await refused("CHECKSUM", transport.transfer({ ...again, sourceBlocks: [6] }));
  await transport.transfer({ ...again, sourceBlocks: [5] });
  await transport.transfer({ source, sourceBlocks: [5], destination: same, destinationBlocks: [6] });
  await transport.transfer({ ...again, sourceBlocks: [6] });
});

// ---- file systems of their own: needs the right to mount ----

const MOUNT = join(FOLDER, "mount");
mkdirSync(MOUNT);
const canMount = ran("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", MOUNT);
if (canMount) cleanups.push(() => void ran("umount", "-l", MOUNT));

if (!canMount)
  console.error("NOT TESTED, for nothing can be mounted here: full, read-only and hanging file systems");
const mountTest = canMount ? test : test.skip;

mountTest("a full file system refuses the registration, says so, and keeps nothing", async () => {
  const path = join(MOUNT, "too-large.bin");
  await using transport = await openLocal();
  const big = { ...CONFIG, numBlocks: 4096 };
  const error = await refused("IO", transport.register(diskSpec(path, big)));
  expect(error.message).toContain(path);
  expect(error.message).toMatch(/space/i);
  expect(existsSync(path)).toBe(false);
  const small = await transport.register(diskSpec(join(MOUNT, "small.bin"), { ...CONFIG, numBlocks: 2 }));
  await small.fill(3);
  expect(new Set(await small.read(1))).toEqual(new Set([3]));
});

mountTest("a read-only file system is named", async () => {
  ran("mount", "-o", "remount,ro", MOUNT);
  try {
    const path = join(MOUNT, "no.bin");
    await using transport = await openLocal();
    const error = await refused("IO", transport.register(diskSpec(path)));
    expect(error.message).toContain(path);
    expect(error.message).toMatch(/read-only/i);
  } finally {
    ran("mount", "-o", "remount,rw", MOUNT);
  }
});

// ---- a device that hangs: a loop device whose backing file system is frozen ----

const HANG = join(FOLDER, "hang");
mkdirSync(HANG);
const IMAGE = join(FOLDER, "hang.img");
const canHang =
  canMount &&
  Bun.which("fsfreeze") !== null &&
  ran("truncate", "-s", "32M", IMAGE) &&
  ran("mkfs.ext4", "-q", "-F", IMAGE) &&
  ran("mount", "-o", "loop", IMAGE, HANG);
if (canHang)
  cleanups.push(() => {
    ran("fsfreeze", "-u", HANG);
    ran("umount", "-l", HANG);
  });

(canHang ? test : test.skip)(
  "writes to a file system that hangs end in doubt at their deadline, and other transfers go on",
  async () => {
    await using transport = await openLocal();
    const host = await filled(transport, ODD, 2);
    const stuck = await transport.register(diskSpec(join(HANG, "stuck.bin"), ODD, { name: "stuck" }));
    const good = await transport.register(diskSpec(freshPath(), ODD, { name: "good" }));
    const request = { source: host, sourceBlocks: [1, 2], destinationBlocks: [3, 4] };
    expect(ran("fsfreeze", "-f", HANG)).toBe(true);
    let thawed = false;
    try {
      const late = transport.transfer({ ...request, destination: stuck, deadlineMs: 300 });
      await transport.transfer({ ...request, destination: good });
      const error = await refused("TIMEOUT", late);
      expect(error.settlement).toBe("in-doubt");
      expect(stuck.quarantinedBlocks().map(({ block }) => block)).toEqual([3, 4]);
      await refused("QUARANTINED", transport.transfer({ ...request, destination: stuck }));
      await transport.transfer({ ...request, destination: good });
      thawed = ran("fsfreeze", "-u", HANG);
      // The late end is the proof that the quarantine waits for.
      expect(await late.settled).toEqual({ settlement: "in-doubt", proof: "backend-ended" });
      expect(stuck.quarantinedBlocks()).toEqual([]);
      await transport.transfer({ ...request, destination: stuck });
      expect(await stuck.read(4)).toEqual(await host.read(2));
    } finally {
      if (!thawed) ran("fsfreeze", "-u", HANG);
    }
  },
  30_000,
);
