// Rows F16.staged: GPU memory to and from another process through staging memory of both sides, no neighbour mapping and no GPU
// RDMA, against host memory to host memory on the same transport.
import type { LayoutSpec, LocalLayout } from "../index.ts";
import { findNixl } from "../lib/native/find-nixl.ts";
import type { SuiteOptions } from "./main.ts";
import { BenchPair, withTransports } from "./nixl-pair.ts";
import { alternate, inProcesses } from "./processes.ts";
import type { SampleSets } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult } from "./result.ts";

const MIB = 2 ** 20;
const BLOCKS = 128;
const TRANSPORTS = ["cma", "tcp"] as const;
const WAYS = ["push", "pull"] as const;
/** Where the peer's blocks are: in GPU memory as well, or in host memory. */
const FAR = ["gpu", "host"] as const;

const CASES = TRANSPORTS.flatMap((transport) =>
  WAYS.flatMap((way) => FAR.map((far) => ({ transport, way, far, name: `${transport}.${way}.gpu-${far}` }))),
);

/** Measures the rows on this machine's GPU; says so and gives none where there is no GPU. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  if (findNixl() === null) {
    options.progress("F16.staged needs NIXL: run `kvferry setup`");
    return [];
  }
  const results: BenchResult[] = [];
  for (const { name, transport } of CASES.filter((one) => `F16.staged.${one.name}`.includes(options.only))) {
    options.progress(`F16.staged.${name} in ${options.processes} processes`);
    const sets = await withTransports(transport === "tcp" ? "tcp,self,cuda_copy" : null, () =>
      inProcesses<SampleSets[number] | null>(
        import.meta.path,
        "measure",
        { name, samples: options.samples },
        options.processes,
      ),
    );
    const taken = sets.filter((set) => set !== null);
    if (taken.length < sets.length) {
      options.progress(`NOT RUN: F16.staged.${name} needs a GPU`);
      continue;
    }
    results.push(
      summarize(
        {
          id: `F16.staged.${name}`,
          unit: "GB/s",
          direction: "rate",
          goal: { figure: "ratioToLimit", value: 0.9 },
          note: `${BLOCKS} x 1 MiB; limit: host memory to host memory by NIXL`,
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
}): Promise<Record<string, number[]> | null> {
  const one = CASES.find(({ name }) => name === parameters.name);
  if (one === undefined) throw new Error(`no row ${parameters.name}`);
  const specs = [specOf("gpu", "device"), specOf("host", "pinned")];
  await using pair = await BenchPair.open({ options: {}, near: specs, far: specs, gpu: "staged" });
  if (pair === null) return null;
  const { transport, far: peer } = pair;
  const blocks = Uint32Array.from({ length: BLOCKS }, (_unused, index) => index);
  const move = async (here: LocalLayout, far: string): Promise<number> => {
    const there = pair.remote.layout(far);
    const start = Bun.nanoseconds();
    await transport.transfer({
      source: one.way === "push" ? here : there,
      destination: one.way === "push" ? there : here,
      sourceBlocks: blocks,
      destinationBlocks: blocks,
    });
    return (BLOCKS * MIB) / (Bun.nanoseconds() - start);
  };
  const [gpu, host] = [pair.layout("gpu"), pair.layout("host")];
  await gpu.fill({ random: 1 });
  await host.fill({ random: 2 });
  await peer.call({ do: "fill", layout: one.far, seed: 3 });
  await move(gpu, one.far);
  const some = [0, 1, BLOCKS - 1];
  const far = await peer.call<readonly string[]>({ do: "checksums", layout: one.far, blocks: some });
  if ((await gpu.checksums(some)).join() !== far.join()) throw new Error("the bytes did not arrive");
  return await alternate(
    { ours: () => move(gpu, one.far), limit: () => move(host, "host") },
    parameters.samples,
  );
}

function specOf(name: string, kind: "device" | "pinned"): LayoutSpec {
  return {
    name,
    config: { numBlocks: BLOCKS, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: MIB / 2 },
    arrangement: "fully-contiguous",
    memory: { kind },
  };
}
