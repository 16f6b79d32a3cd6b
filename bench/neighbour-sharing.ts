// What memory that neighbours can map costs against private memory.
import { Transport } from "../index.ts";
import { NativeContext } from "../lib/native/context.ts";
import { openLibrary } from "../lib/native/library.ts";
import { touchMemory } from "../lib/native/memory.ts";
import {
  FILE_CUT,
  type FileCut,
  mapShareable,
  ONE_FILE,
  releaseShareable,
} from "../lib/runtime/neighbour-memory.ts";
import { CHUNKS, listsOf, rateOf, requestOf, specOf } from "./neighbour-moves.ts";
import type { Move } from "./neighbour-moves.ts";
import { alternate } from "./processes.ts";
import type { Contender } from "./processes.ts";

/** Bytes of a pool whose making is measured. */
export const POOL: number = 2 * 2 ** 30;

/** Samples of making a pool whose pages are all there, as a pinned pool is before it is registered with a driver. */
export async function pools(samples: number): Promise<Record<string, number[]>> {
  const context = NativeContext.open(openLibrary(), 64);
  const make = async (cut: FileCut | null): Promise<number> => {
    const begun = Bun.nanoseconds();
    const memory = mapShareable(
      context,
      POOL,
      cut === null ? null : { access: "read-write", components: 1, cut },
    );
    await touchMemory(context, memory.mapping, "all");
    const millis = (Bun.nanoseconds() - begun) / 1e6;
    await releaseShareable(context, memory);
    return millis;
  };
  try {
    return await alternate(
      { ours: () => make(FILE_CUT), "one file": () => make(ONE_FILE), "private memory": () => make(null) },
      samples,
      1,
    );
  } finally {
    context.close(1_000);
  }
}

/** Samples of touching such memory for the first time, or of copying inside it. */
export async function sharing(samples: number, what: "touch" | "copy"): Promise<Record<string, number[]>> {
  const move: Move = {
    here: "system",
    there: "system",
    device: 0,
    push: true,
    chunk: 16_384,
    chunks: CHUNKS,
    scattered: true,
  };
  const open = (neighbours: boolean): Promise<Transport> =>
    Transport.open({ workerId: 1n, nixl: false, cuda: false, neighbours });
  await using shared = await open(true);
  await using own = await open(false);
  if (what === "touch") {
    const touch = async (transport: Transport): Promise<number> => {
      const begun = Bun.nanoseconds();
      const layout = await transport.register(specOf("fresh", move, "system", 0));
      await layout.fill(1);
      const millis = (Bun.nanoseconds() - begun) / 1e6;
      await layout.unregister();
      return millis;
    };
    return await alternate({ ours: () => touch(shared), "private memory": () => touch(own) }, samples, 1);
  }
  const lists = listsOf(move);
  const copier = async (transport: Transport): Promise<Contender> => {
    const from = await transport.register(specOf("from", move, "system", 0));
    const to = await transport.register(specOf("to", move, "system", 0));
    await from.fill(1);
    await to.fill(2);
    const request = requestOf(move, from, to, lists);
    return () => rateOf(transport, request, move.chunk * move.chunks);
  };
  return await alternate({ ours: await copier(shared), "private memory": await copier(own) }, samples);
}
