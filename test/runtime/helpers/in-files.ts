// Transports whose memory lies in several files also where it is small.
import { Transport, type OpenOptions } from "../../../index.ts";
import { systemMemory } from "../../../lib/runtime/host-memory.ts";
import type { FileCut } from "../../../lib/runtime/neighbour-memory.ts";
import { resolveOptions } from "../../../lib/runtime/options.ts";
import { pinnedMemory } from "../../../lib/runtime/pinned-memory.ts";
import { openSession } from "../../../lib/runtime/session.ts";

/** Bytes of the smallest of several files. */
export const FILE_BYTES: number = 2 * 2 ** 20;

/** From 4 MiB on memory lies in several files. */
export const SMALL_FILES: FileCut = { leastBytes: FILE_BYTES, most: 16 };

/** A transport as `Transport.open` makes it, but for how its memory is cut into files. */
export async function openInFiles(options: OpenOptions, cut: FileCut): Promise<Transport> {
  const session = await openSession(resolveOptions(options, process.env));
  const { context, cuda, providers } = session;
  const inFiles = {
    ...providers,
    system: systemMemory(context, cut),
    ...(providers.pinned === undefined ? {} : { pinned: pinnedMemory(context, cuda, cut) }),
  };
  return Transport.over(Object.assign(session, { providers: inFiles }));
}
