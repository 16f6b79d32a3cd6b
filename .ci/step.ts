import { resolve } from "node:path";

/** The root of the repository. */
export const ROOT: string = resolve(import.meta.dirname, "..");

/** How a step ended. */
export interface Outcome {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  /** Printed after the step's line: what failed, or what was skipped and why. */
  readonly text: string;
}

/** One thing that is checked. */
export interface Step {
  readonly name: string;
  run(): Promise<Outcome>;
}

/** What a command printed and how it ended. */
export interface Ended {
  readonly code: number;
  readonly output: string;
  readonly seconds: number;
}

/** How a command is run. */
export interface CommandOptions {
  /** It is ended after this time, with all that it started; default 2. */
  readonly minutes?: number;
  readonly environment?: Readonly<Record<string, string>>;
  /** A reason to skip the step, or null. */
  readonly unless?: () => Promise<string | null> | string | null;
}

/** Lines of a failed command that are shown. */
const SHOWN_LINES = 120;

/** Process groups that run now, to be ended with this process. */
const running = new Set<number>();

for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    for (const group of running) killGroup(group);
    process.exit(130);
  });

/** A step that is one command: passed when it ends with status 0. */
export function command(name: string, words: readonly string[], options: CommandOptions = {}): Step {
  return {
    name,
    run: async () => {
      const reason = (await options.unless?.()) ?? null;
      if (reason !== null) return skipped(reason);
      const ended = await execute(words, options);
      return ended.code === 0 ? passed() : failed(describe(words, ended));
    },
  };
}

/** Runs a command in a process group of its own, without input, and keeps what it prints. */
export async function execute(words: readonly string[], options: CommandOptions = {}): Promise<Ended> {
  const started = performance.now();
  const child = Bun.spawn([...words], {
    cwd: ROOT,
    env: { ...process.env, NO_COLOR: "1", FORCE_COLOR: "0", ...options.environment },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    detached: true,
  });
  running.add(child.pid);
  const minutes = options.minutes ?? 2;
  let late = "";
  const timer = setTimeout(() => {
    late = `\n(ended after ${minutes} minutes)`;
    killGroup(child.pid);
  }, minutes * 60_000);
  const pieces: string[] = [];
  const keep = async (stream: ReadableStream<Uint8Array>): Promise<void> => {
    const decoder = new TextDecoder();
    for await (const chunk of stream) pieces.push(decoder.decode(chunk, { stream: true }));
  };
  const [code] = await Promise.all([child.exited, keep(child.stdout), keep(child.stderr)]);
  clearTimeout(timer);
  // Whatever it left running goes with it.
  killGroup(child.pid);
  running.delete(child.pid);
  return {
    code: late === "" ? code : 124,
    output: pieces.join("") + late,
    seconds: (performance.now() - started) / 1_000,
  };
}

/** Runs groups of steps, prints each as it ends, and last `N passed, N failed, N skipped`. Gives the exit status. */
export async function runSteps(groups: readonly (readonly Step[])[]): Promise<number> {
  const total = { passed: 0, failed: 0, skipped: 0 };
  const begun = performance.now();
  for (const group of groups)
    await Promise.all(
      group.map(async (step) => {
        const started = performance.now();
        const outcome = await step.run().catch((error: unknown) => failed(Bun.inspect(error)));
        total.passed += outcome.passed;
        total.failed += outcome.failed;
        total.skipped += outcome.skipped;
        const word = outcome.failed > 0 ? "FAILED " : outcome.passed === 0 ? "skipped" : "ok     ";
        const seconds = ((performance.now() - started) / 1_000).toFixed(1).padStart(6);
        console.log(`${word} ${seconds} s  ${step.name}`);
        if (outcome.text !== "") console.log(indent(outcome.text));
      }),
    );
  console.log(`\n${Math.round((performance.now() - begun) / 1_000)} s in all`);
  console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
  return total.failed === 0 ? 0 : 1;
}

/** The outcome of a step that holds. */
export function passed(text = ""): Outcome {
  return { passed: 1, failed: 0, skipped: 0, text };
}

/** The outcome of a step that does not hold. */
export function failed(text: string): Outcome {
  return { passed: 0, failed: 1, skipped: 0, text };
}

/** The outcome of a step that could not be tried, with the reason. */
export function skipped(reason: string): Outcome {
  return { passed: 0, failed: 0, skipped: 1, text: `skipped: ${reason}` };
}

/** A failed command in words: what was run, its status, and the end of what it printed. */
export function describe(words: readonly string[], ended: Ended): string {
  const lines = ended.output.trimEnd().split("\n");
  const cut = lines.length > SHOWN_LINES ? [`... ${lines.length - SHOWN_LINES} lines before`] : [];
  return [`${words.join(" ")} ended with status ${ended.code}`, ...cut, ...lines.slice(-SHOWN_LINES)].join(
    "\n",
  );
}

function indent(text: string): string {
  return text.replace(/^/gm, "        ");
}

function killGroup(group: number): void {
  try {
    process.kill(-group, "SIGKILL");
  } catch {
    // All of it ended by itself.
  }
}
