import { buildSanitized, sanitizerRuntime, underSanitizers } from "../test/sanitizer.ts";
import { execute, failed, passed, skipped } from "./step.ts";
import type { Outcome, Step } from "./step.ts";
import { countTests } from "./suite.ts";

const BUILDS = "cshim/build/check";

/** The native library with each compiler, warnings as errors, and for the other processor. */
export const shimSteps: readonly Step[] = [
  {
    name: "native library with gcc",
    run: async () => {
      const compiler = ["gcc", "cc"].find((name) => Bun.which(name) !== null);
      if (compiler === undefined) return skipped("there is no gcc or cc on this machine");
      return await build(["--compiler", compiler, "--out", `${BUILDS}/libkvf-gcc.so`]);
    },
  },
  {
    name: "native library with clang, and for arm64",
    run: async () => {
      const here = await build(["--compiler", "zig", "--out", `${BUILDS}/libkvf-clang.so`]);
      if (here.failed > 0) return here;
      const arm = ["--target", "aarch64-linux-gnu.2.28", "--out", `${BUILDS}/libkvf-arm64.so`];
      return await build(["--compiler", "zig", ...arm]);
    },
  },
];

/**
 * Tests with a native library that checks every access (AddressSanitizer and UndefinedBehaviorSanitizer).
 *
 * @param files - Which; none for the whole suite.
 */
export const sanitizedSuite = (name: string, files: readonly string[], minutes: number): Step => ({
  name,
  run: async () => {
    const runtime = sanitizerRuntime();
    if (runtime === null) return skipped("there is no gcc with libasan on this machine");
    await buildSanitized();
    const words = [process.execPath, "test", "--timeout", "120000", "--retry", "1", ...files];
    const { answer, reports } = await underSanitizers(runtime, async (environment) =>
      countTests(words, await execute(words, { minutes, environment })),
    );
    // A child process of a test may have died of a report without the test's noticing.
    if (reports.length === 0) return answer;
    return {
      ...answer,
      failed: answer.failed + 1,
      text: [answer.text, ...reports].join("\n").slice(0, 20_000),
    };
  },
});

async function build(flags: readonly string[]): Promise<Outcome> {
  const words = [process.execPath, "cshim/build.ts", ...flags];
  const ended = await execute(words, { minutes: 4 });
  return ended.code === 0 ? passed() : failed(`${words.join(" ")}\n${ended.output}`);
}
