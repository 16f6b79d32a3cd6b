// What plain C on the driver does with the same bytes, for the GPU rows to be compared with.
import { dlopen } from "bun:ffi";

import { CUDA_LIBRARY_VARIABLE } from "../lib/native/no-cuda.ts";

/** Addresses of chunks, here and on the device. */
export interface Tables {
  readonly src: BigUint64Array;
  readonly dst: BigUint64Array;
  readonly srcOnDevice: number;
  readonly dstOnDevice: number;
  release(): void;
}

/** What plain C on the driver does; microseconds. */
export interface Anchors {
  dma(destination: number, source: number, bytes: number): number;
  two(dst0: number, src0: number, dst1: number, src1: number, bytes: number): number;
  loop(tables: Tables, bytes: number): number;
  batch(tables: Tables, bytes: number): { readonly micros: number; readonly submit: number };
  kernel(tables: Tables, bytes: number, ctas: number, threads: number): number;
  tables(src: BigUint64Array, dst: BigUint64Array): Tables;
  touch(bytes: number, threads: number): number;
  watch(address: number, value: number): void;
  wake(callback: number): void;
  since(): number;
}

export function openAnchors(library: string): Anchors {
  const { symbols } = dlopen(library, {
    anchor_open: { args: ["ptr", "i32"], returns: "i32" },
    anchor_dma: { args: ["ptr", "ptr", "ptr", "ptr"], returns: "i32" },
    anchor_two: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
    anchor_loop: { args: ["ptr", "ptr", "u32", "ptr", "ptr"], returns: "i32" },
    anchor_batch: { args: ["ptr", "ptr", "u32", "ptr", "ptr", "ptr"], returns: "i32" },
    anchor_kernel: { args: ["ptr", "ptr", "u32", "ptr", "u32", "u32", "ptr"], returns: "i32" },
    anchor_upload: { args: ["ptr", "u32", "ptr"], returns: "i32" },
    anchor_release: { args: ["ptr"], returns: "i32" },
    anchor_touch: { args: ["ptr", "u32", "ptr"], returns: "i32" },
    anchor_watch: { args: ["ptr", "u32"], returns: "i32" },
    anchor_wake: { args: ["ptr"], returns: "i32" },
    anchor_since: { args: ["ptr"], returns: "i32" },
  });
  const first = new Float64Array(new ArrayBuffer(8));
  const second = new Float64Array(new ArrayBuffer(8));
  const number = (value: number): never => value as never;
  const must = (status: number, what: string): void => {
    if (status !== 0) throw new Error(`${what}: CUDA result ${-status}`);
  };
  const path = new TextEncoder().encode(`${process.env[CUDA_LIBRARY_VARIABLE] ?? ""}\0`);
  must(symbols.anchor_open(path, 0), "opening the anchors");
  return {
    dma: (destination, source, bytes) => {
      must(symbols.anchor_dma(number(destination), number(source), number(bytes), first), "one DMA");
      return first[0] ?? Number.NaN;
    },
    two: (dst0, src0, dst1, src1, bytes) => {
      must(
        symbols.anchor_two(number(dst0), number(src0), number(dst1), number(src1), number(bytes), first),
        "two DMAs",
      );
      return first[0] ?? Number.NaN;
    },
    loop: ({ src, dst }, bytes) => {
      must(symbols.anchor_loop(dst, src, src.length, number(bytes), first), "a loop of copies");
      return first[0] ?? Number.NaN;
    },
    batch: ({ src, dst }, bytes) => {
      must(symbols.anchor_batch(dst, src, src.length, number(bytes), first, second), "a batched call");
      return { micros: first[0] ?? Number.NaN, submit: second[0] ?? Number.NaN };
    },
    kernel: ({ src, srcOnDevice, dstOnDevice }, bytes, ctas, threads) => {
      must(
        symbols.anchor_kernel(
          number(dstOnDevice),
          number(srcOnDevice),
          src.length,
          number(bytes),
          ctas,
          threads,
          first,
        ),
        "the plain kernel",
      );
      return first[0] ?? Number.NaN;
    },
    tables: (src, dst) => {
      const upload = (table: BigUint64Array): number => {
        must(symbols.anchor_upload(table, table.length, first), "uploading addresses");
        return first[0] ?? 0;
      };
      const [srcOnDevice, dstOnDevice] = [upload(src), upload(dst)];
      return {
        src,
        dst,
        srcOnDevice,
        dstOnDevice,
        release: () => {
          symbols.anchor_release(number(srcOnDevice));
          symbols.anchor_release(number(dstOnDevice));
        },
      };
    },
    touch: (bytes, threads) => {
      must(symbols.anchor_touch(number(bytes), threads, first), "touching memory");
      return first[0] ?? Number.NaN;
    },
    watch: (address, value) => must(symbols.anchor_watch(number(address), value), "watching memory"),
    wake: (callback) => must(symbols.anchor_wake(number(callback)), "waking"),
    since: () => {
      symbols.anchor_since(first);
      return first[0] ?? Number.NaN;
    },
  };
}
