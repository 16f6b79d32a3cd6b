/** Rows that a report must show, measured or not. */
export interface CatalogueEntry {
  readonly id: string;
  /** The suite that measures it: `bun run bench -- SUITE`. */
  readonly suite: string;
  /** Whether it takes a GPU, or two. */
  readonly gpus: 0 | 1 | 2;
}

/** What the rows of a family are about; the family is the id's first word. */
export const FAMILIES: Readonly<Record<string, string>> = {
  F1: "Offload and onboard: scattered chunks between GPU and pinned memory",
  F2: "One block of 160 x 32 KiB, submit to await",
  F3: "8 blocks of 160 x 8 KiB, submit to await",
  F4: "Device to device on one GPU: scatter and reordering",
  F5: "Both directions at once",
  F6: "Device done to JavaScript continuing",
  F7: "Submitting scattered blocks",
  F8: "NIXL between two processes, host memory",
  F9: "Host to host, out of cache",
  F10: "Planning 100,000 scattered pairs",
  F11: "Registering, exporting, importing",
  F12: "A pinned pool of 8 GiB",
  F13: "From the first line to the first finished transfer",
  F14: "GPU to another process's GPU",
  F15: "GPU to and from a neighbour's host pool",
  F16: "GPU blocks through NIXL: scattered, and through staging memory",
  F17: "Files",
  F18: "Notification to a neighbour",
  F19: "GPU to GPU in one process",
  F20: "Metadata packages",
  G1: "What crossing the link costs a matrix product on the same GPU: of this process, and of another",
};

const LINK_SIZES = ["4k", "8k", "16k", "32k", "64k", "256k"];
const NVLINK_SIZES = ["4k", "16k", "64k"];
const FILE_SIZES = ["64k", "1m", "16m"];

/** Every row that has a goal, in the order of the families. */
export const CATALOGUE: readonly CatalogueEntry[] = [
  ...rows("gpu", 1, each("F1", ["d2h", "h2d"], ["pool", "scattered"], LINK_SIZES)),
  ...rows("gpu", 1, each("F2", ["d2h", "h2d"])),
  ...rows("gpu", 1, each("F3", ["d2h", "h2d"])),
  ...rows("gpu", 1, each("F4.scatter", ["256", "2k", "16k", "256k", "1m"])),
  ...rows("gpu", 1, each("F4", ["nhd-hnd", "nhd-universal"], ["64", "128"])),
  ...rows("gpu", 1, ["F5.both", "F6.p50", "F6.p99", "F7.submit.1", "F7.submit.4096"]),
  ...rows("nixl", 0, each("F8", ["write", "read"], ["1m", "16m", "64m", "256m"])),
  ...rows("nixl", 0, ["F8.scatter.16k", "F8.contiguous.16k"]),
  ...rows("host", 0, each("F9.host", ["4k", "64k", "1m"])),
  ...rows("plan", 0, ["F10.plan", "F11.register", "F11.export", "F11.import"]),
  ...rows("gpu", 1, ["F12.pinned"]),
  ...rows("start", 0, ["F13.start", "F13.start-nixl"]),
  ...rows("neighbours", 2, each("F14.nvlink", ["push", "pull"], NVLINK_SIZES)),
  ...rows("neighbours", 1, each("F14.same.push", NVLINK_SIZES)),
  ...rows("neighbours", 1, ["F15.out", "F15.in", "F15.out.16k", "F15.in.16k"]),
  ...rows("scatter", 2, ["F16.scatter.16k"]),
  ...rows("tiers", 0, each("F17", ["read", "write"], FILE_SIZES)),
  ...rows("tiers", 1, ["F17.gpu-out", "F17.gpu-in"]),
  ...rows("neighbours", 0, ["F18.notify"]),
  ...rows("gpu", 2, ["F19.peer.16k"]),
  ...rows("wire", 0, each("F20.wire", ["kvferry", "dynamo-1.0", "kvbm-physical-1", "kvferry.65535"])),
  ...rows("gpu", 1, each("G1.same", ["d2h", "h2d"], ["dma", "batch", "slab"])),
  ...rows("gpu", 1, each("G1.beside", ["d2h", "h2d"], ["slab", "batch"])),
];

/** Rows of the catalogue that none of these ids is. */
export function notMeasured(measured: readonly string[]): readonly CatalogueEntry[] {
  const there = new Set(measured);
  return CATALOGUE.filter(({ id }) => !there.has(id));
}

function rows(suite: string, gpus: 0 | 1 | 2, ids: readonly string[]): CatalogueEntry[] {
  return ids.map((id) => ({ id, suite, gpus }));
}

/** `first`, a word of each list, joined by dots: all of them. */
function each(first: string, ...lists: readonly (readonly string[])[]): string[] {
  return lists.reduce<string[]>(
    (ids, words) => ids.flatMap((id) => words.map((word) => `${id}.${word}`)),
    [first],
  );
}
