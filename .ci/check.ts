// All that must hold before a change lands: `bun run check`, or `bun run check:full` with what takes long.
// `--only TEXT` runs the steps whose names contain TEXT. It runs before any package is installed, so nothing here may
// import one.
import { shimSteps, sanitizedSuite } from "./native-steps.ts";
import { runSteps } from "./step.ts";
import type { Step } from "./step.ts";
import { command, ROOT } from "./step.ts";
import { coverageStep, errorCodesStep, suite } from "./suite.ts";

const full = process.argv.includes("--full");
const onlyAt = process.argv.indexOf("--only");
const only = onlyAt < 0 ? "" : (process.argv[onlyAt + 1] ?? "");
const bun = process.execPath;

/** Tests that reach every part of the native library; all of them run under sanitizers in check:full. */
const SANITIZED = [
  "test/runtime/block-io.test.ts",
  "test/runtime/oracle-transfers.test.ts",
  "test/runtime/notifications.test.ts",
  "test/readme.test.ts",
];

/** What takes a browser, an emulator or other targets; says itself what it could not run. */
const PACKAGE = ["executable", "arm64", "report-page"].map((name) => `./test/package/${name}.cases.ts`);

/** Steps of one group run side by side; groups run one after the other. */
const groups: readonly (readonly Step[])[] = [
  [command("packages", [bun, "install", "--frozen-lockfile"], { minutes: 3 })],
  [
    command("generated symbols are current", [bun, "cshim/generate.ts", "--check"]),
    command("API reference is current", [bun, ".ci/api-reference.ts", "--check"]),
    command("types", [bun, "check", "--no-script"]),
    command("format", [bun, "fmt", "--check"]),
    command("lint", [bun, "node_modules/oxlint/bin/oxlint"]),
  ],
  [command("NIXL", [bun, "lib/cli/main.ts", "setup"], { minutes: 4 })],
  shimSteps,
  [suite("tests", ["--coverage", "--coverage-reporter=lcov", "--coverage-dir=coverage"], { minutes: 25 })],
  [
    coverageStep("line coverage of lib/core and lib/wire", ["lib/core", "lib/wire"], 0.95),
    errorCodesStep("every error code is reached by a test and documented"),
  ],
  [sanitizedSuite("what calls the library, under ASan and UBSan", SANITIZED, 4)],
  [
    command("proof: planner", proof("planner", 20_000), {
      minutes: 2,
      unless: missing("test/proof/planner.ts"),
    }),
    command("proof: wire", proof("wire", 10_000), { minutes: 2, unless: missing("test/proof/wire.ts") }),
  ],
  [
    suite("package: added to an empty project", ["./test/package/install.cases.ts"], {
      minutes: 10,
    }),
  ],
  [command("doctor", [bun, "lib/cli/main.ts", "doctor", "--json"])],
  [command("demo", [bun, "lib/cli/main.ts", "demo", "--json"], { minutes: 2 })],
  ...(full ? long() : []),
];

function long(): Step[][] {
  return [
    [command("proof at length: planner", proof("planner", 1_000_000), { minutes: 60 })],
    [command("proof at length: wire", proof("wire", 1_000_000), { minutes: 60 })],
    [command("proof at length: simulate", proof("simulate", 100_000), { minutes: 40 })],
    [command("proof at length: neighbours", proof("neighbours", 400), { minutes: 15 })],
    [command("proof at length: kill", proof("kill", 600), { minutes: 40 })],
    [command("proof at length: lifetime", [...proof("lifetime", 1), "--minutes", "10"], { minutes: 20 })],
    [suite("package: compiled in, emulated, looked at", PACKAGE, { minutes: 15 })],
    [sanitizedSuite("all tests under ASan and UBSan", [], 20)],
    [suite("tests in parallel processes", ["--parallel=2"], { minutes: 15 })],
    [suite("tests, each file in a global of its own", ["--isolate"], { minutes: 15 })],
    [suite("tests in random order", ["--randomize", "--seed=7"], { minutes: 15 })],
  ];
}

function proof(name: string, cases: number): string[] {
  return [bun, "test/proof/main.ts", name, "--cases", String(cases), "--seed", "7", "--json"];
}

function missing(file: string): () => Promise<string | null> {
  return async () => ((await Bun.file(`${ROOT}/${file}`).exists()) ? null : `${file} is not there`);
}

process.exitCode = await runSteps(groups.map((group) => group.filter((step) => step.name.includes(only))));
