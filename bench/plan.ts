// Rows F10 and F11: planning, the registry, submission; and how each grows.
import type { SuiteOptions } from "./main.ts";
import { buildNative } from "./native.ts";
import { growingPlan, PAIRS, planning } from "./planning.ts";
import { inProcesses } from "./processes.ts";
import {
  exporting,
  growingRegistry,
  importing,
  layoutMemory,
  MOST_LAYOUTS,
  registeringAll,
} from "./registering.ts";
import { summarize } from "./result.ts";
import type { BenchResult, Direction, RowSpec } from "./result.ts";
import { submitting } from "./submitting.ts";

/** The end of the growth is row F11.register. */
const GROWING_LAYOUTS = [1, 10, 100, 1_000, 10_000];
const GROWING_BLOCKS = [1, 10, 100, 1_000, 10_000, PAIRS, 1_000_000];

/** What a process measures, and with what. */
interface PlanWork {
  readonly what: string;
  readonly library: string;
  readonly samples: number;
}

interface PlanRow extends RowSpec {
  /** A key of {@link MEASURES}, with what it is given after a colon. */
  readonly what: string;
}

const ROWS: readonly PlanRow[] = [
  row(
    "F10.plan",
    "ms",
    "plan",
    2,
    `planTransfer of ${PAIRS} scattered pairs; limit: a C loop that fills the offsets`,
  ),
  row(
    "F11.register",
    "ms",
    "register",
    150,
    `${MOST_LAYOUTS} times Transport.register of external memory, no NIXL; limit: a Map`,
  ),
  row("F11.export", "ms", "export", 5, "Transport.exportMetadata of 1,000 layouts; limit: a Map"),
  row("F11.import", "ms", "import", 5, "Transport.importMetadata of 1,000 layouts; limit: a Map"),
  row(
    "submit.1.inline",
    "us",
    "submit:4096",
    10,
    "transfer() of one block of 4 KiB until it returns: the copy itself is done inside",
  ),
  row(
    "submit.1.thread",
    "us",
    "submit:1048576",
    10,
    "transfer() of one block of 1 MiB until it returns: a thread copies",
  ),
  row(
    "memory.layout",
    "bytes",
    "memory",
    undefined,
    "JavaScript heap for each registered layout of one region",
  ),
  ...GROWING_LAYOUTS.map((count) =>
    row(`growth.register.${count}`, "us/layout", `growth-register:${count}`, undefined, "Transport.register"),
  ),
  ...GROWING_BLOCKS.map((count) =>
    row(
      `growth.plan.${count}`,
      "ns/block",
      `growth-plan:${count}`,
      undefined,
      "planTransfer of scattered pairs, by mitata",
    ),
  ),
];

/** Measures planning and the registry. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const library = await buildNative("host_copy.c", "library", options.progress);
  const results: BenchResult[] = [];
  for (const spec of ROWS) {
    if (!spec.id.includes(options.only)) continue;
    options.progress(spec.id);
    const work: PlanWork = { what: spec.what, library, samples: options.samples };
    // What has no goal shows a shape, for which less will do.
    const less = spec.goal === undefined;
    const sets = await inProcesses<Record<string, number[]>>(
      import.meta.path,
      "measure",
      less ? { ...work, samples: Math.min(work.samples, 5) } : work,
      less ? Math.min(options.processes, 2) : options.processes,
    );
    results.push(summarize(spec, sets));
  }
  return results;
}

/** In one process: the samples of one row. */
export async function measure(work: PlanWork): Promise<Record<string, number[]>> {
  const [name = "", given = "0"] = work.what.split(":");
  const measured = MEASURES[name];
  if (measured === undefined) throw new Error(`no measure ${name}`);
  return await measured(work, Number(given));
}

type Measure = (work: PlanWork, given: number) => Promise<Record<string, number[]>>;

const MEASURES: Readonly<Record<string, Measure>> = {
  plan: ({ library, samples }) => planning(library, samples),
  register: ({ samples }) => registeringAll(samples),
  "growth-register": ({ samples }, count) => growingRegistry(samples, count),
  export: ({ samples }) => exporting(samples),
  import: ({ samples }) => importing(samples),
  submit: ({ samples }, bytes) => submitting(samples, bytes),
  memory: ({ samples }) => layoutMemory(samples),
  "growth-plan": (_work, count) => growingPlan(count),
};

function row(
  id: string,
  unit: string,
  what: string,
  goal: number | undefined,
  note: string,
  direction: Direction = "time",
): PlanRow {
  return {
    id,
    unit,
    direction,
    what,
    note,
    ...(goal === undefined ? {} : { goal: { figure: "ours" as const, value: goal } }),
  };
}
