// Large host memory that neighbours can map lies in huge pages as far as the kernel makes them. Other memory is taken when
// it is written, and so is memory that would leave others no room.
import { afterAll, expect, spyOn, test } from "bun:test";
import { fstatSync, readdirSync } from "node:fs";
import type { LayoutConfig, LocalLayout } from "../../index.ts";
import { NativeContext } from "../../lib/native/context.ts";
import { openLibrary } from "../../lib/native/library.ts";
import { mapMemory, releaseMemory, touchMemory } from "../../lib/native/memory.ts";
import { FILE_CUT, type FileCut } from "../../lib/runtime/neighbour-memory.ts";
import { openInFiles, SMALL_FILES } from "./helpers/in-files.ts";
import { listedMappings } from "./helpers/neighbour-process.ts";
import { freshWorker, systemSpec } from "./helpers/transports.ts";

const HUGE = 2 ** 21;
const PAGE = 4096;

const context = NativeContext.open(openLibrary(), 64);
afterAll(() => context.close(1_000));

/** What the kernel gives to as much memory when it is asked for huge pages. */
async function heldWhenAsked(bytes: number): Promise<number> {
  const memory = mapMemory(context, bytes, true);
  await touchMemory(context, memory, "huge");
  const [file] = memory.files;
  const held = file === undefined ? 0 : fstatSync(file.descriptor).blocks * 512;
  await releaseMemory(context, memory);
  return held;
}

/** Bytes that the files hold in which a layout lies. */
function heldBy(layout: LocalLayout): number {
  const [{ address, size } = { address: 0, size: 0 }] = layout.regions;
  const inodes = new Set(
    listedMappings("self")
      .filter(({ start }) => start >= address && start < address + size)
      .map(({ inode }) => inode),
  );
  let held = 0;
  for (const descriptor of readdirSync("/proc/self/fd"))
    try {
      const { ino, blocks } = fstatSync(Number(descriptor));
      if (inodes.delete(String(ino))) held += blocks * 512;
    } catch {
      // The one that listed the others is closed by now.
    }
  expect(inodes.size).toBe(0);
  return held;
}

/** Registers blocks of so many pages, and gives what `look` sees. */
async function registered<Seen>(
  numBlocks: number,
  pages: number,
  cut: FileCut,
  look: (layout: LocalLayout) => Seen | Promise<Seen>,
): Promise<Seen> {
  const config: LayoutConfig = {
    numBlocks,
    numLayers: 1,
    outerDim: 1,
    pageSize: 1,
    innerDim: (pages * PAGE) / 2,
  };
  await using transport = await openInFiles({ workerId: freshWorker(), nixl: false, cuda: false }, cut);
  return await look(await transport.register(systemSpec("pool", config)));
}

for (const [what, cut] of [
  ["one file", FILE_CUT],
  ["several files", SMALL_FILES],
] as const)
  test(`of large memory in ${what} the kernel's huge pages are there from the start, in zeros`, async () => {
    const bytes = 5 * HUGE;
    const asked = await heldWhenAsked(bytes);
    // 3 pages are over.
    await registered(1, bytes / PAGE + 3, cut, async (layout) => {
      expect(heldBy(layout)).toBe(asked);
      expect(Buffer.from(await layout.read(0)).equals(Buffer.alloc(bytes + 3 * PAGE))).toBe(true);
      await layout.fill({ random: 3 });
      expect(heldBy(layout)).toBe(bytes + 3 * PAGE);
    });
  });

test("small memory is taken when it is written", () =>
  registered(1, (2 * HUGE) / PAGE - 1, FILE_CUT, async (layout) => {
    expect(heldBy(layout)).toBe(0);
    await layout.fill(1);
    expect(heldBy(layout)).toBe(2 * HUGE - PAGE);
  }));

for (const [what, measure] of [
  ["the machine has", "availableMemory"],
  ["the process is allowed", "constrainedMemory"],
] as const)
  test(`memory that would take nearly all that ${what} is taken when it is written`, async () => {
    // What the process itself takes goes up and down while other tests run in it: said here, not read.
    const taken = 2 ** 30;
    const room = measure === "constrainedMemory" ? taken + 8 * HUGE : 8 * HUGE;
    using resident = spyOn(process.memoryUsage, "rss").mockReturnValue(taken);
    using measured = spyOn(process, measure).mockReturnValue(room);
    await registered(7, HUGE / PAGE, FILE_CUT, async (layout) => {
      expect(heldBy(layout)).toBe(0);
      await layout.fill({ random: 4 }, { blocks: [1] });
      expect(heldBy(layout)).toBe(HUGE);
      expect(Buffer.from(await layout.read(2)).equals(Buffer.alloc(HUGE))).toBe(true);
    });
    measured.mockReturnValue(room + 2 ** 33);
    const asked = await heldWhenAsked(7 * HUGE);
    expect(await registered(7, HUGE / PAGE, FILE_CUT, heldBy)).toBe(asked);
    expect(resident.mock.calls.length).toBeGreaterThan(1);
  });
