// What memory that neighbours can map costs against private memory.
import { Transport } from "../index.ts";
import { CHUNKS, listsOf, rateOf, requestOf, specOf } from "./neighbour-moves.ts";
import type { Move } from "./neighbour-moves.ts";
import { alternate } from "./processes.ts";
import type { Contender } from "./processes.ts";

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
