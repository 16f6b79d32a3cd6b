// F20: metadata out of one registry and into another, in each format; and the codecs alone.
import { ownAddresses, throughNixl } from "../lib/core/attachment.ts";
import { resolveShape } from "../lib/core/component-shape.ts";
import { resolveConfig } from "../lib/core/config-resolve.ts";
import type { PackageFormat } from "../lib/core/package.ts";
import { exportPackage } from "../lib/core/registry-export.ts";
import { emptyRegistry, registerLayout } from "../lib/core/registry-local.ts";
import { importPackage } from "../lib/core/registry-import.ts";
import type { RegistrySnapshot } from "../lib/core/registry-snapshot.ts";
import { decodePackage, encodePackage } from "../lib/wire/index.ts";
import type { SuiteOptions } from "./main.ts";
import { alternate, inProcesses } from "./processes.ts";
import { summarize } from "./result.ts";
import type { BenchResult, RowSpec } from "./result.ts";

const FORMATS: readonly PackageFormat[] = ["kvferry", "dynamo-1.0", "kvbm-physical-1"];

/** What one process measures. */
interface WireWork {
  readonly step: "both" | "encode" | "decode";
  readonly format: PackageFormat;
  readonly layouts: number;
  readonly samples: number;
}

const ROWS: readonly (RowSpec & Omit<WireWork, "samples">)[] = [
  ...FORMATS.flatMap((format) => [
    row(`F20.wire.${format}`, "both", format, 1_000, 5),
    row(`F20.wire.${format}.encode`, "encode", format, 1_000),
    row(`F20.wire.${format}.decode`, "decode", format, 1_000),
  ]),
  row("F20.wire.kvferry.65535", "both", "kvferry", 65_535, 400),
  row("F20.wire.kvferry.65535.encode", "encode", "kvferry", 65_535),
  row("F20.wire.kvferry.65535.decode", "decode", "kvferry", 65_535),
];

/** Runs the suite. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const results: BenchResult[] = [];
  for (const spec of ROWS) {
    if (!spec.id.includes(options.only)) continue;
    options.progress(spec.id);
    const work: WireWork = { ...spec, samples: options.samples };
    const sets = await inProcesses<Record<string, number[]>>(
      import.meta.path,
      "measure",
      { step: work.step, format: work.format, layouts: work.layouts, samples: work.samples },
      options.processes,
    );
    results.push(summarize(spec, sets));
  }
  return results;
}

/** Takes the samples of one row, milliseconds; called in a process of its own. */
export async function measure(work: WireWork): Promise<Record<string, number[]>> {
  const { step, format } = work;
  const sender = registryOf(work.layouts);
  const receiver = emptyRegistry({
    workerId: 2n,
    agentName: "worker-2",
    wireName: "worker-2#1",
    incarnation: 1,
  });
  const blob = new Uint8Array(4_096);
  const value = exportPackage(sender, blob, { format });
  const bytes = encodePackage(value, format);
  const steps = {
    both: () => {
      const arrived = decodePackage(encodePackage(exportPackage(sender, blob, { format }), format));
      return importPackage(receiver, arrived, (_, component) =>
        throughNixl(arrived.wireName, component.regionAddresses),
      ).peer.layouts.length;
    },
    encode: () => encodePackage(value, format).length,
    decode: () => decodePackage(bytes).layouts.length,
  } as const;
  const expected = step === "encode" ? bytes.length : work.layouts;
  return await alternate(
    {
      ours: () => {
        const before = performance.now();
        const found = steps[step]();
        const spent = performance.now() - before;
        if (found !== expected) throw new Error(`${step} gave ${found}, not ${expected}`);
        return spent;
      },
    },
    work.samples,
    work.layouts > 10_000 ? 10 : 60,
  );
}

function row(
  id: string,
  step: WireWork["step"],
  format: PackageFormat,
  layouts: number,
  goal?: number,
): RowSpec & Omit<WireWork, "samples"> {
  return {
    id,
    unit: "ms",
    direction: "time",
    step,
    format,
    layouts,
    ...(goal === undefined ? {} : { goal: { figure: "ours", value: goal } }),
    note: step === "both" ? "out of a registry, to bytes, back and into another registry" : `${step} alone`,
  };
}

/** Layouts of one model, one region each, side by side in external memory. */
function registryOf(layouts: number): RegistrySnapshot {
  const config = resolveConfig(
    { numBlocks: 64, numLayers: 32, outerDim: 2, pageSize: 16, numHeads: 8, headDim: 128, dtype: "bf16" },
    "bench",
  );
  const shape = resolveShape(
    {
      name: "kv",
      config,
      arrangement: "fully-contiguous",
      order: undefined,
      group: "default",
      wholeBlocks: false,
      alias: false,
    },
    "bench",
  );
  let snapshot = emptyRegistry({
    workerId: 1n,
    agentName: "worker-1",
    wireName: "worker-1#1",
    incarnation: 1,
  });
  for (let index = 0; index < layouts; index++) {
    const regionAddresses = Float64Array.of(2 ** 32 + index * shape.view.regionBytes);
    const component = {
      shape,
      storage: { kind: "system" },
      regionAddresses,
      regionSizes: Float64Array.of(shape.view.regionBytes),
      attachment: ownAddresses(regionAddresses),
      nixlDevice: 0,
    } as const;
    ({ snapshot } = registerLayout(snapshot, {
      name: null,
      tier: "G2",
      access: "read-write",
      fingerprint: null,
      components: [component],
    }));
  }
  return snapshot;
}
