import { type BesideLists, encodeHop } from "../core/encode.ts";
import type { CopyProgram } from "../core/program.ts";

/** Words of the first block: room for some hundred pairs. */
const FIRST_WORDS = 1024;
/** A block above 8 MiB is not kept. */
const MOST_WORDS = 2 ** 20;

/**
 * Makes an encoder that writes into memory of its own, again and again: a large block of fresh memory costs more in
 * page faults than it takes to fill.
 *
 * @returns `encodeHop` whose result is valid until the next call; for native calls that read it before they return.
 */
export function hopEncoder(): (
  programs: readonly CopyProgram[],
  beside?: BesideLists | null,
) => Float64Array {
  let scratch: Float64Array = new Float64Array(new ArrayBuffer(FIRST_WORDS * 8));
  return (programs, beside = null) => {
    const block = encodeHop(programs, scratch, beside);
    if (block.buffer !== scratch.buffer && block.length <= MOST_WORDS) scratch = block;
    return block;
  };
}
