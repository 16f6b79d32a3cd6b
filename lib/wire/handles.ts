import type { LayoutHandle } from "../core/handle.ts";
import { makeHandle } from "../core/handle.ts";

/** The handles of a package, most of which follow each other: then one addition makes the next. */
export interface HandleSequence {
  readonly worker: bigint;
  id: number;
  generation: number;
  handle: LayoutHandle;
}

/** A sequence for the layouts of one worker. */
export function openHandles(worker: bigint): HandleSequence {
  return { worker, id: 0, generation: 0, handle: makeHandle(worker, 0) };
}

/** The handle of a layout; the same as `makeHandle`'s. */
export function nextHandle(sequence: HandleSequence, id: number, generation: number): LayoutHandle {
  sequence.handle =
    id === sequence.id + 1 && generation === sequence.generation
      ? ((sequence.handle + ONE_ID) as LayoutHandle)
      : makeHandle(sequence.worker, id, generation);
  sequence.id = id;
  sequence.generation = generation;
  return sequence.handle;
}

const ONE_ID = 1n << 64n;
