import type { Hop } from "../core/plan.ts";
import type { CopyProgram } from "../core/program.ts";
import type { StagePiece } from "../core/stage-piece.ts";
import { stagePieces } from "../core/staging.ts";

/** A piece, with the index of its program in the hop and that program. */
export type HopPiece = readonly [number, StagePiece, CopyProgram];

/** The pieces of a hop's programs, each handed out once, and how much of the hop is in place. */
export class HopPieces {
  readonly #left: Generator<HopPiece, void>;
  /** By program: pieces may end in any order. */
  readonly #bytesLeft: number[];
  #complete = 0;
  #bytes = 0;

  /**
   * @param chunkBytes - Bytes of the smallest chunk.
   * @param mostListed - Bases and pairs of a piece at most, for pieces that a message has to hold.
   */
  constructor(hop: Hop, chunkBytes: number, mostListed?: number) {
    this.#left = piecesOf(hop, chunkBytes, mostListed);
    this.#bytesLeft = hop.programs.map((program) => program.bytes);
  }

  /** Programs that are in place, counted from the first one up to one that is not. */
  get programsDone(): number {
    return this.#complete;
  }

  get bytesDone(): number {
    return this.#bytes;
  }

  /** The next piece; undefined after the last one. */
  next(): HopPiece | undefined {
    const { value, done } = this.#left.next();
    return done === true ? undefined : value;
  }

  /** So many bytes of that program are in place. @returns Whether more programs are done than before. */
  account(index: number, bytes: number): boolean {
    this.#bytes += bytes;
    this.#bytesLeft[index] = (this.#bytesLeft[index] ?? 0) - bytes;
    const before = this.#complete;
    while (this.#complete < this.#bytesLeft.length && this.#bytesLeft[this.#complete] === 0) this.#complete++;
    return this.#complete > before;
  }
}

function* piecesOf(hop: Hop, chunkBytes: number, mostListed?: number): Generator<HopPiece, void> {
  for (const [index, program] of hop.programs.entries())
    for (const piece of stagePieces(program, chunkBytes, mostListed)) yield [index, piece, program];
}
