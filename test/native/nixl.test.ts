// The native NIXL part: every failure against the stand-in, with and without sanitizers, and real bytes between two
// processes over the real library where there is one.
import { beforeAll, describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { buildShim } from "../../cshim/build.ts";
import { SHIM_FOLDER } from "../../cshim/generate.ts";
import { buildEmptyLibrary, buildStandin } from "../standin/build.ts";
import { canSanitize, SANITIZERS } from "./c-driver.ts";

const BUILD = join(SHIM_FOLDER, "build");

/** What the NIXL part needs of the library: programs built from less compile, and run under sanitizers, sooner. */
const NEEDED = /^(?:context|cpu|hop\w*|job|nixl\w*|numbers|pool|ring|status|thread)\.c$/;

const FAULTS = [
  "load: refusals name what is missing",
  "load: once, with the environment set and the user's own kept",
  "bytes: rows, pieces and caps of any size arrive whole, in both directions",
  "merging: rows that continue each other become one descriptor, never across bases",
  "faults: whatever function fails, jobs end, errors name it, nothing stays alive",
  "endings: flags say what a failure leaves behind",
  "notification: leaves only when every piece is complete",
  "cancel: never started, touched, or done, as it happened to be",
  "cancel: too late is done",
  "abandon: a stuck lane is replaced, its job ends once, up to a limit",
  "abandon: no further piece is posted",
  "close: requests that never end are released, and nothing is left behind",
  "close: a lane that is stuck in NIXL is left behind, counted, and ends later",
  "forget: running and waiting transfers to the peer end, others go on",
  "load: metadata of another agent than expected leave no trace",
  "notifications: 24 MiB that nobody takes are neither dropped nor mixed up",
  "notifications: an empty one arrives and the word in the shared block is set",
  "crowd: transfers of all sizes on four lanes, with control work between them",
  "sharing: several lanes work on one transfer, progress counts whole programs only",
  "sharing: lanes that share a transfer are given up together",
  "refused: malformed calls begin nothing",
  "context: closing it takes its agents along, bounded, and the rest ends later",
];

const REAL = [
  "push: 256 MiB are complete when their notification arrives",
  "pull: 256 MiB arrive whole",
  "push: 10,000 scattered chunks, the bytes between them untouched",
  "pull: 10,000 scattered chunks, the bytes between them untouched",
  "notification: a hop without bytes sends one",
  "notification: an empty one is delivered",
  "notification: 60,000 bytes come back whole",
  "notification: 500 keep their order",
  "refused: memory that was not registered never starts",
  "refused: an unknown peer never starts",
  "refused: a notification to an unknown peer",
  "refused: garbage as metadata",
  "refused: deregistering what is not registered",
  "cancel: a running transfer stops between pieces, touched and not in doubt",
  "idle: an agent with nothing to do leaves the core alone",
  "kill 0: a transfer to a killed peer ends and a new peer is met",
  "kill 1: a transfer to a killed peer ends and a new peer is met",
  "kill 2: a transfer to a killed peer ends and a new peer is met",
  "kill 3: a transfer to a killed peer ends and a new peer is met",
  "forget: the peer is gone and forgetting twice is harmless",
  "close: both agents end and their words are refused afterwards",
];

const OVER_TCP = [
  "push: 256 MiB are complete when their notification arrives",
  "push: 10,000 scattered chunks, the bytes between them untouched",
  "cancel: a running transfer stops between pieces, touched and not in doubt",
  "stopped: a lane that is given up is replaced",
  "stopped: what was given up still ends in one completion",
  "kill 0: a transfer to a killed peer ends and a new peer is met",
  "kill 1: a transfer to a killed peer ends and a new peer is met",
  "close: a transfer that cannot end does not hold it up",
];

describe("against the stand-in", () => {
  suite(FAULTS, () => runFaults(undefined));
});

for (const kind of ["address", "thread"] as const) {
  describe.skipIf(!canSanitize(kind))(`against the stand-in, sanitized: ${kind}`, () => {
    suite(FAULTS, () => runFaults(SANITIZERS[kind]));
  });
}

const library = process.env["KVFERRY_NIXL_LIBRARY"] ?? "";

describe.skipIf(library === "")("two processes over the real library", () => {
  suite(REAL, () => runDriver([library], {}));
});

describe.skipIf(library === "")("two processes over the real library, TCP only", () => {
  suite(OVER_TCP, () => runDriver([library, "tcp"], { UCX_TLS: "tcp,self", UCX_NET_DEVICES: "lo" }));
});

interface Run {
  readonly lines: ReadonlyMap<string, string>;
  readonly code: number;
  readonly words: string;
}

/** One test for each name: its line must be there and begin with `ok`; and the program ends well. */
function suite(names: readonly string[], start: () => Promise<Run>): void {
  let run: Run;
  beforeAll(async () => {
    run = await start();
  }, 240_000);
  for (const name of names) {
    test(name, () => {
      expect(run.lines.get(name) ?? `no line of that name; the program wrote: ${run.words}`).toStartWith(
        "ok ",
      );
    });
  }
  test("the program ends well and says nothing else", () => {
    expect({
      code: run.code,
      unknown: [...run.lines.keys()].filter((name) => !names.includes(name)),
      words: run.words,
    }).toEqual({ code: 0, unknown: [], words: "" });
  });
}

async function runFaults(sanitize: string | undefined): Promise<Run> {
  const suffix = sanitize === undefined ? "" : `-${sanitize.replace(/\W+/g, "-")}`;
  const [program, standin, empty] = await Promise.all([
    build("nixl_faults.c", `nixl_faults${suffix}`, sanitize),
    buildStandin(join(BUILD, `libnixl_capi-standin${suffix}.so`), sanitize === undefined ? {} : { sanitize }),
    buildEmptyLibrary(join(BUILD, "libempty.so")),
  ]);
  return await execute([program, standin, empty], {});
}

async function runDriver(args: readonly string[], env: Readonly<Record<string, string>>): Promise<Run> {
  return await execute([await build("nixl_driver.c", "nixl_driver", undefined), ...args], env);
}

async function build(source: string, name: string, sanitize: string | undefined): Promise<string> {
  const without = readdirSync(SHIM_FOLDER).filter((file) => file.endsWith(".c") && !NEEDED.test(file));
  return await buildShim({
    program: join(import.meta.dir, source),
    out: join(BUILD, name),
    without,
    ...(sanitize === undefined ? {} : { sanitize }),
  });
}

async function execute(command: readonly string[], env: Readonly<Record<string, string>>): Promise<Run> {
  const child = Bun.spawn([...command], {
    // The program brings its own sanitizer: one that the tests themselves run under would not bear another.
    env: { ...process.env, LD_PRELOAD: "", ASAN_OPTIONS: "detect_leaks=1", TSAN_OPTIONS: "", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: 200_000,
    killSignal: "SIGKILL",
  });
  const [text, words, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  const lines = new Map<string, string>();
  for (const line of text.split("\n")) {
    const name = /^(?:not )?ok (.*?) \| /.exec(line)?.[1];
    if (name !== undefined && !(lines.get(name) ?? "").startsWith("not ok")) lines.set(name, line);
  }
  return { lines, code, words };
}
