// A file system that fills up while a layout's file is written: the file is sparse (a copy that kept its holes, for
// instance), so that its space was not reserved. Needs the right to mount.
import { afterAll, expect, test } from "bun:test";
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  truncateSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LayoutConfig, LayoutSpec, LocalLayout, Transport } from "../../index.ts";
import { refused } from "./helpers/refusal.ts";
import { ran } from "./helpers/programs.ts";
import { openLocal, systemSpec } from "./helpers/transports.ts";

const CONFIG: LayoutConfig = { numBlocks: 16, numLayers: 2, outerDim: 2, pageSize: 16, innerDim: 128 };
const BLOCK = 2 * 2 * 16 * 128 * 2;
/** Rows that no device takes past the page cache. */
const ODD: LayoutConfig = { ...CONFIG, pageSize: 15, innerDim: 127 };
const ALL = Array.from({ length: CONFIG.numBlocks }, (_unused, block) => block);
const FOLDER = mkdtempSync(join(tmpdir(), "kvferry-full-"));
const mounts: string[] = [];
afterAll(() => {
  for (const mount of mounts) ran("umount", "-l", mount);
  rmSync(FOLDER, { recursive: true, force: true });
});

/** Null where this cannot be mounted. */
function mounted(name: string, ...mount: string[]): string | null {
  const folder = join(FOLDER, name);
  mkdirSync(folder);
  if (!ran("mount", ...mount, folder)) return null;
  mounts.push(folder);
  return folder;
}

const IMAGE = join(FOLDER, "ext4.img");
const SYSTEMS = {
  tmpfs: mounted("tmpfs", "-t", "tmpfs", "-o", "size=4m", "tmpfs"),
  ext4:
    ran("truncate", "-s", "16M", IMAGE) && ran("mkfs.ext4", "-q", "-F", "-m", "0", IMAGE)
      ? mounted("ext4", "-o", "loop", IMAGE)
      : null,
};
for (const [name, folder] of Object.entries(SYSTEMS))
  if (folder === null)
    console.error(`NOT TESTED, for no ${name} can be mounted here: a file system that fills up`);

function diskSpec(name: string, path: string, config: LayoutConfig, open: "create" | "existing"): LayoutSpec {
  return { name, config, arrangement: "fully-contiguous", memory: { kind: "disk", path, open } };
}

/** A layout in a file that is all holes. */
async function sparse(transport: Transport, path: string, config: LayoutConfig): Promise<LocalLayout> {
  const made = await transport.register(diskSpec("sparse", path, config, "create"));
  await made.unregister();
  const { size } = Bun.file(path);
  truncateSync(path, 0);
  truncateSync(path, size);
  return await transport.register(diskSpec("sparse", path, config, "existing"));
}

/** Takes all space of a file system but about `left` bytes. */
function fillUp(folder: string, left: number): string {
  const path = join(folder, "ballast");
  const file = openSync(path, "w");
  const spare = openSync(join(folder, "spare"), "w");
  if (left > 0) writeSync(spare, new Uint8Array(left).fill(1));
  fsyncSync(spare);
  for (const bytes of [1 << 20, 4096]) {
    const part = new Uint8Array(bytes).fill(1);
    try {
      // A full system takes less and less of it, and then nothing.
      for (;;) {
        writeSync(file, part);
        fsyncSync(file);
      }
    } catch (error) {
      if ((error as { code?: unknown }).code !== "ENOSPC") throw error;
    }
  }
  closeSync(file);
  closeSync(spare);
  unlinkSync(join(folder, "spare"));
  return path;
}

async function demandSame(from: LocalLayout, to: LocalLayout, blocks: readonly number[]): Promise<void> {
  for (const block of blocks) expect(await to.read(block)).toEqual(await from.read(block));
}

for (const [system, folder] of Object.entries(SYSTEMS))
  for (const [rows, config] of [
    ["aligned rows", CONFIG],
    ["rows of odd sizes", ODD],
  ] as const) {
    test.skipIf(folder === null)(
      `${system} is full in the middle of a write: the file is named, nothing is held, and later transfers work (${rows})`,
      async () => {
        if (folder === null) throw new Error("not mounted");
        await using transport = await openLocal({
          staging: { sendBytes: 4 * BLOCK, receiveBytes: 4 * BLOCK, chunkBytes: 2 * BLOCK },
        });
        const path = join(folder, `${rows}.bin`);
        const host = await transport.register(systemSpec("host", config));
        const source = await transport.register(
          diskSpec("source", join(FOLDER, `${system} ${rows} source.bin`), config, "create"),
        );
        const good = await transport.register(
          diskSpec("good", join(FOLDER, `${system} ${rows} good.bin`), config, "create"),
        );
        const full = await sparse(transport, path, config);
        await host.fill({ random: 3 });
        await source.fill({ random: 4 });
        await good.fill(0);
        const ballast = fillUp(folder, 3 * BLOCK);
        const request = { sourceBlocks: ALL, destinationBlocks: ALL };
        const demandFull = async (from: LocalLayout, blocks: readonly number[]): Promise<void> => {
          const transfer = transport.transfer({
            source: from,
            sourceBlocks: blocks,
            destination: full,
            destinationBlocks: blocks,
          });
          const error = await refused("IO", transfer);
          expect(error.message).toContain(path);
          expect(error.message).toMatch(/writing \d+ bytes at offset \d+: No space left on device/);
          expect(error.settlement).toBe("in-doubt");
          expect(await transfer.settled).toEqual({ settlement: "in-doubt", proof: "backend-ended" });
          expect(full.quarantinedBlocks()).toEqual([]);
        };
        try {
          // One hop, and two through staging memory, more of them than there are chunks; others go on meanwhile.
          await Promise.all([
            demandFull(host, ALL),
            ...Array.from({ length: 8 }, () => demandFull(source, ALL)),
            transport.transfer({ source: host, destination: good, ...request }),
          ]);
          await demandSame(host, good, ALL);
          await transport.transfer({ source, destination: good, ...request });
          await demandSame(source, good, ALL);
          expect(existsSync(path)).toBe(true);
        } finally {
          unlinkSync(ballast);
        }
        await transport.transfer({ source, destination: full, ...request });
        await demandSame(source, full, ALL);
        await transport.transfer({ source: host, destination: full, ...request });
        await demandSame(host, full, ALL);
        await full.unregister();
        unlinkSync(path);
      },
      30_000,
    );
  }
