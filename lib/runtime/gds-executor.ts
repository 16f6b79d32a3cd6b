import { fstat } from "node:fs";
import { promisify } from "node:util";
import { KvferryError } from "../core/errors.ts";
import type { Hop } from "../core/plan.ts";
import type { ProgramMemory } from "../core/program.ts";
import type { Executor, HopOutcome, RunningHop } from "./executor.ts";

/** A file as NIXL knows it. */
export interface GdsFile {
  readonly descriptor: number;
  readonly bytes: number;
  /** Null for a file without a name. */
  readonly path: string | null;
}

const factsOf = promisify(fstat);

/**
 * Runs hops between files and GPU memory on NIXL's executor, once it was seen that the files are still what they were.
 *
 * @param nixl - Of the agent that has the plugin.
 * @param agent - Its name: storage is reached by the agent's own.
 * @param fileOf - By the file's number in programs.
 */
export function gdsExecutor(
  nixl: Executor,
  agent: string,
  fileOf: (number: number) => GdsFile | undefined,
): Executor {
  return {
    start(hop, context, done): RunningHop {
      const files = filesOf(hop, fileOf);
      const end = (outcome: HopOutcome): void =>
        done(outcome.error === null ? outcome : { ...outcome, error: named(outcome.error, files) });
      let running: RunningHop | undefined;
      let over = false;
      const stop = (error: KvferryError | null): void => {
        if (over) return;
        over = true;
        done({ ok: false, cancelled: error === null, touched: false, inDoubt: false, bytes: 0, error });
      };
      Promise.all(Array.from(files.values(), whole))
        .then(() => {
          if (over) return;
          running = nixl.start(placed(hop, agent, files), { ...context, notification: null }, end);
          over = true;
        })
        .catch((error: unknown) => stop(error instanceof KvferryError ? error : unreadable(error)));
      return {
        // A file system that does not answer is not waited for: nothing has begun.
        cancel: () => (running === undefined ? stop(null) : running.cancel()),
        abandon: () => running?.abandon(),
        programsDone: () => running?.programsDone() ?? 0,
        bytesDone: () => running?.bytesDone() ?? 0,
      };
    },
  };
}

function filesOf(hop: Hop, fileOf: (number: number) => GdsFile | undefined): Map<number, GdsFile> {
  const files = new Map<number, GdsFile>();
  for (const { srcMemory, dstMemory } of hop.programs)
    for (const { kind, device } of [srcMemory, dstMemory]) {
      const file = kind === 2 ? fileOf(device) : undefined;
      if (file !== undefined) files.set(device, file);
    }
  return files;
}

/** The hop as NIXL takes it: files by descriptor. */
function placed(hop: Hop, agent: string, files: ReadonlyMap<number, GdsFile>): Hop {
  const place = (memory: ProgramMemory): ProgramMemory => {
    const file = memory.kind === 2 ? files.get(memory.device) : undefined;
    return file === undefined ? memory : { kind: 2, device: file.descriptor };
  };
  const programs = hop.programs.map((program) => ({
    ...program,
    srcMemory: place(program.srcMemory),
    dstMemory: place(program.dstMemory),
  }));
  return { ...hop, agent, programs };
}

/** @throws KvferryError `IO` for a file that was removed or cut under its layout. */
async function whole({ descriptor, bytes, path }: GdsFile): Promise<void> {
  const { nlink, size } = await factsOf(descriptor);
  const removed = path !== null && nlink === 0;
  if (!removed && size >= bytes) return;
  throw new KvferryError(
    "IO",
    "transfer",
    `${path ?? "a temporary file"}: was ${removed ? "removed" : `cut to ${size} of ${bytes} bytes`}`,
    "Register the layout again, over a file that nothing else touches.",
    { path, size, bytes },
  );
}

/** The same error with the files that were read or written. */
function named(error: KvferryError, files: ReadonlyMap<number, GdsFile>): KvferryError {
  const paths = Array.from(files.values(), ({ path }) => path ?? "a temporary file");
  return new KvferryError(
    error.code.slice("ERR_KVF_".length) as ConstructorParameters<typeof KvferryError>[0], // made of one
    error.operation,
    `GPUDirect Storage, ${paths.join(", ")}: ${error.message}`,
    error.remedy,
    { ...error.details, files: paths },
    error,
  );
}

function unreadable(cause: unknown): KvferryError {
  return new KvferryError(
    "IO",
    "transfer",
    `a file could not be looked at: ${String(cause)}`,
    "See the cause.",
    {},
    cause,
  );
}
