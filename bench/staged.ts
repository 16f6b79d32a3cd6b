// Rows F16.staged: GPU memory to and from another process through staging memory of both sides, no neighbour mapping and no GPU
// RDMA, against host memory to host memory on the same transport. `bun run bench -- staged 2 8x128 4@4` measures them with
// chunks and pools of so many MiB and with so many UCX workers instead, in rows beside these, without a goal; and host memory
// to host memory in parts of a chunk, with and without somebody who awaits messages.
import type { LayoutSpec, LocalLayout } from "../index.ts";
import { findNixl } from "../lib/native/find-nixl.ts";
import type { SuiteOptions } from "./main.ts";
import { BenchPair, withTransports } from "./nixl-pair.ts";
import { alternate, inProcesses } from "./processes.ts";
import type { SampleSets } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult } from "./result.ts";
import { optionsOf, variantOf, whileAwaited } from "./staged-variant.ts";
import type { Variant } from "./staged-variant.ts";

const MIB = 2 ** 20;
/** Blocks of 1 MiB of a sample: what a long prompt's cache takes, and, without a goal, an eighth, where words count for more. */
const SIZES = [
  { blocks: 1_024, suffix: "" },
  { blocks: 128, suffix: ".128m" },
] as const;
const TRANSPORTS = ["cma", "tcp"] as const;
const WAYS = ["push", "pull"] as const;
/** What moves large caches at the speed of the transport: by default chunks of 4 MiB and pools of 64. */
const USUAL = "16x256@4";
/** Where the peer's blocks are: in GPU memory as well, or in host memory. */
const FAR = ["gpu", "host"] as const;

const CASES = TRANSPORTS.flatMap((transport) =>
  WAYS.flatMap((way) =>
    FAR.flatMap((far) =>
      SIZES.filter(({ suffix }) => suffix === "" || `${transport}.${way}.${far}` === "cma.push.gpu").map(
        ({ blocks, suffix }) => ({
          transport,
          way,
          far,
          blocks,
          name: `${transport}.${way}.gpu-${far}${suffix}`,
        }),
      ),
    ),
  ),
);

/**
 * Measures the rows on this machine's GPU; says so and gives none where there is no GPU.
 *
 * @param operands - Variants to measure instead.
 */
export async function run(
  options: SuiteOptions,
  operands: readonly string[],
): Promise<readonly BenchResult[]> {
  if (findNixl() === null) {
    options.progress("F16.staged needs NIXL: run `kvferry setup`");
    return [];
  }
  const results: BenchResult[] = [];
  const variants = operands.length === 0 ? [null] : operands.map(variantOf);
  const wanted = CASES.filter((one) => `F16.staged.${one.name}`.includes(options.only));
  for (const { name, transport, blocks, variant } of wanted.flatMap((one) =>
    variants.map((variant) => ({ ...one, variant })),
  )) {
    const id = `F16.staged.${name}${variant === null ? "" : `.${variant.name}`}`;
    options.progress(`${id} in ${options.processes} processes`);
    const sets = await withTransports(transport === "tcp" ? "tcp,self,cuda_copy" : null, () =>
      inProcesses<SampleSets[number] | null>(
        import.meta.path,
        "measure",
        { name, samples: options.samples, variant },
        options.processes,
      ),
    );
    const taken = sets.filter((set) => set !== null);
    if (taken.length < sets.length) {
      options.progress(`NOT RUN: ${id} needs a GPU`);
      continue;
    }
    results.push(
      summarize(
        {
          id,
          unit: "GB/s",
          direction: "rate",
          ...(variant === null && blocks === SIZES[0].blocks
            ? { goal: { figure: "ratioToLimit", value: 0.9 } as const }
            : {}),
          note: `${blocks} x 1 MiB, ${variant?.name ?? USUAL}: MiB of a chunk, of a pool, UCX workers; limit: host memory to host memory by NIXL`,
        },
        taken,
      ),
    );
  }
  return results;
}

/** In one process: samples of a row; null where there is no GPU. */
export async function measure(parameters: {
  readonly name: string;
  readonly samples: number;
  readonly variant: Variant | null;
}): Promise<Record<string, number[]> | null> {
  const one = CASES.find(({ name }) => name === parameters.name);
  if (one === undefined) throw new Error(`no row ${parameters.name}`);
  const { blocks: count } = one;
  const specs = [specOf("gpu", "device", count), specOf("host", "pinned", count)];
  const { variant } = parameters;
  const staging = optionsOf(variant ?? variantOf(USUAL));
  await using pair = await BenchPair.open({
    options: staging,
    near: specs,
    far: specs,
    gpu: "staged",
    ...staging,
  });
  if (pair === null) return null;
  const { transport, far: peer } = pair;
  const blocks = Uint32Array.from({ length: count }, (_unused, index) => index);
  const transfer = (here: LocalLayout, far: string, ids: Uint32Array): PromiseLike<unknown> => {
    const there = pair.remote.layout(far);
    const [source, destination] = one.way === "push" ? [here, there] : [there, here];
    return transport.transfer({ source, destination, sourceBlocks: ids, destinationBlocks: ids });
  };
  const rate = async (work: () => PromiseLike<unknown>): Promise<number> => {
    const start = Bun.nanoseconds();
    await work();
    return (count * MIB) / (Bun.nanoseconds() - start);
  };
  const move = (here: LocalLayout, far: string): Promise<number> => rate(() => transfer(here, far, blocks));
  const [gpu, host] = [pair.layout("gpu"), pair.layout("host")];
  await gpu.fill({ random: 1 });
  await host.fill({ random: 2 });
  await peer.call({ do: "fill", layout: one.far, seed: 3 });
  await move(gpu, one.far);
  const some = [0, 1, count - 1];
  const far = await peer.call<readonly string[]>({ do: "checksums", layout: one.far, blocks: some });
  if ((await gpu.checksums(some)).join() !== far.join()) throw new Error("the bytes did not arrive");
  const contenders = { ours: () => move(gpu, one.far), limit: () => move(host, "host") };
  if (variant === null) return await alternate(contenders, parameters.samples);
  const parts = Array.from({ length: Math.ceil(count / variant.chunk) }, (_unused, part) =>
    blocks.subarray(part * variant.chunk, (part + 1) * variant.chunk),
  );
  const inParts = (): Promise<number> =>
    rate(() => Promise.all(parts.map((ids) => transfer(host, "host", ids))));
  return await alternate(
    {
      ...contenders,
      "host to host in parts": inParts,
      "the same while messages are awaited": () => whileAwaited(transport, inParts),
    },
    parameters.samples,
  );
}

function specOf(name: string, kind: "device" | "pinned", numBlocks: number): LayoutSpec {
  return {
    name,
    config: { numBlocks, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: MIB / 2 },
    arrangement: "fully-contiguous",
    memory: { kind },
  };
}
