import { open, readFile, type FileHandle } from "node:fs/promises";
import { KvferryError } from "../core/errors.ts";

const HASH_BYTES = 32;

/** The file beside a layout's file that holds the hashes of its blocks. */
export function sumsPath(path: string): string {
  return `${path}.sums`;
}

/**
 * BLAKE3 of each block of a file, kept beside it; a block that was never written has none.
 *
 * Of a file without a name they are kept in memory only.
 */
export class BlockSums {
  readonly #hashes: Uint8Array<ArrayBuffer>;
  readonly #file: FileHandle | null;
  readonly path: string;

  private constructor(path: string, hashes: Uint8Array<ArrayBuffer>, file: FileHandle | null) {
    this.path = path;
    this.#hashes = hashes;
    this.#file = file;
  }

  /**
   * @param keep - Whether hashes that are there are of the blocks that are there.
   * @throws KvferryError `IO` with the file's name.
   */
  static async open(path: string | null, blocks: number, keep: boolean): Promise<BlockSums> {
    const hashes = new Uint8Array(new ArrayBuffer(blocks * HASH_BYTES));
    if (path === null) return new BlockSums("", hashes, null);
    const target = sumsPath(path);
    try {
      const before = keep ? await readFile(target).catch(() => null) : null;
      if (before !== null && before.byteLength === hashes.byteLength) hashes.set(before);
      const file = await open(target, before === null ? "w+" : "r+", 0o644);
      await file.write(hashes, 0, hashes.byteLength, 0);
      return new BlockSums(path, hashes, file);
    } catch (error) {
      throw new KvferryError(
        "IO",
        "register",
        `${target}: the checksums could not be kept: ${String(error)}`,
        "Choose a directory that this process may write to, or leave memory.checksums out.",
        { path: target },
        error,
      );
    }
  }

  /** The hash of a block in lower-case hex; null when it was never written. */
  get(block: number): string | null {
    const hash = this.#hashes.subarray(block * HASH_BYTES, (block + 1) * HASH_BYTES);
    return hash.every((byte) => byte === 0) ? null : hash.toHex();
  }

  /** Keeps hashes; a null forgets one. */
  async set(blocks: readonly (readonly [number, string | null])[]): Promise<void> {
    for (const [block, hash] of blocks) {
      const bytes = hash === null ? new Uint8Array(HASH_BYTES) : Uint8Array.fromHex(hash);
      this.#hashes.set(bytes, block * HASH_BYTES);
      await this.#file?.write(bytes, 0, HASH_BYTES, block * HASH_BYTES);
    }
  }

  async close(): Promise<void> {
    await this.#file?.close();
  }
}
