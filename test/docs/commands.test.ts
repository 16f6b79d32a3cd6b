// Every command that a page names is run: here, with names for placeholders and little work, or by a test that is named.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Transport } from "../../index.ts";
import { findNixl } from "../../lib/native/find-nixl.ts";
import { runCommand } from "../runtime/helpers/child.ts";
import { documentedCommands, ROOT } from "./pages.ts";

const BUN = process.execPath;
const CLI = [BUN, "lib/cli/main.ts"];
const BENCH = [BUN, "bench/main.ts"];
/** Shows that a suite starts, where measuring is not the point. */
const NOTHING = ["--quick", "--only", "no row has this name"];

const folder = mkdtempSync(join(tmpdir(), "kvferry-commands-"));
const FILE = join(folder, "package.bin");
const RESULT = join(folder, "result.json");
const OTHER = join(folder, "other.json");

interface Run {
  readonly words: readonly string[];
  /** The output says so. */
  readonly says?: RegExp;
  readonly needsNixl?: boolean;
}

/** Commands as the pages name them, and what is run for each. */
const RUNS: readonly (readonly [RegExp, Run])[] = [
  [/^bun \.ci\/api-reference\.ts$/, { words: [BUN, ".ci/api-reference.ts", "--check"] }],
  [/^bun bench\/readme\.ts$/, { words: [BUN, "bench/readme.ts", "--check"] }],
  [/^bun cshim\/generate\.ts$/, { words: [BUN, "cshim/generate.ts", "--check"] }],
  [/^bun fmt$/, { words: [BUN, "fmt", "--check"] }],
  [
    /^bun run (?:check|check:full|check -- --only types)$/,
    { words: [BUN, ".ci/check.ts", "--only", "types"], says: /\n1 passed, 0 failed, 0 skipped\n$/ },
  ],
  [/^bun run bench -- calibrate$/, { words: [...BENCH, "calibrate", "--quick"], says: /"copyRate|"host/ }],
  [/^bun run bench -- report$/, { words: [...BENCH, "report", RESULT], says: /dist\/report\.html\n$/ }],
  [
    /^bun run bench -- report compare BEFORE\.json AFTER\.json$/,
    { words: [...BENCH, "report", "compare", RESULT, OTHER], says: /0 of 1 rows changed beyond noise/ },
  ],
  [
    /^bun run bench -- (?:SUITE|wire)(?: --out \S+)?$/,
    { words: [...BENCH, "wire", "--quick", "--only", "physical-1.decode"], says: /kvbm-physical-1\.decode/ },
  ],
  [/^bun run bench -- gpu(?: --(?:out|format) \S+)?$/, { words: [...BENCH, "gpu", ...NOTHING] }],
  [/^bun run bench -- neighbours(?: .*)?$/, { words: [...BENCH, "neighbours", ...NOTHING] }],
  [
    /^bun run bench -- (?!SUITE|calibrate|gpu|neighbours|report|wire)[a-z]+(?: .*)?$/,
    { words: [...BENCH, "plan", ...NOTHING] },
  ],
  [/^bun run build:shim(?: -- --compiler clang --sanitize thread)?$/, { words: [BUN, "cshim/build.ts"] }],
  [
    /^bun run proof -- metadata$/,
    {
      words: [BUN, "test/proof/main.ts", "metadata", "--cases", "50"],
      says: /metadata: 50 cases, 0 failures/,
    },
  ],
  [
    /^bun run proof -- planner .*$/,
    { words: [BUN, "test/proof/main.ts", "planner", "--cases", "50"], says: /planner/ },
  ],
  [
    /^bun run proof -- wire(?: .*)?$/,
    { words: [BUN, "test/proof/main.ts", "wire", "--cases", "5"], says: /wire/ },
  ],
  [
    /^bun run proof -- neighbours .*$/,
    { words: [BUN, "test/proof/main.ts", "neighbours", "--cases", "2"], says: /neighbours/ },
  ],
  [/^bun test(?: \S+)?$/, { words: [BUN, "test", "test/core/handle.test.ts"], says: /\n 0 fail\n/ }],
  [/^(?:bun run|bunx kvferry) doctor$/, { words: [...CLI, "doctor"], says: /All that is needed|Everything/ }],
  [
    /^(?:bun run|bunx kvferry) doctor (?:-- )?--json$/,
    { words: [...CLI, "doctor", "--json"], says: /^\{"ok":true/ },
  ],
  [/^(?:bun run|bunx kvferry) setup$/, { words: [...CLI, "setup"], says: /NIXL/, needsNixl: true }],
  [/^bunx kvferry inspect FILE$/, { words: [...CLI, "inspect", FILE], says: /1 layout\n/ }],
  [
    /^bunx kvferry inspect FILE --to kvferry --out OTHER$/,
    { words: [...CLI, "inspect", FILE, "--to", "kvferry", "--out", `${FILE}.other`] },
  ],
  [/^(?:bun run COMMAND --|bunx kvferry COMMAND)$/, { words: [...CLI, "doctor", "--help"], says: /^Usage:/ }],
];

/** Commands that other tests run, by a file that has the words. */
const ELSEWHERE: readonly (readonly [RegExp, file: string, words: string])[] = [
  [/^(?:npx -y bun@[\d.]+ run|bun run|bunx kvferry) demo$/, "test/cli/demo.test.ts", `"demo", "--json"`],
  [/^bun run proof -- (?:kill|lifetime|simulate)(?: .*)?$/, ".ci/check.ts", `proof("kill", 600)`],
  [/^npx -y bun@[\d.]+ run check$/, ".ci/run", "npx -y"],
  [/^bun run examples\/[\w-]+\.ts$/, "test/examples/examples.test.ts", "examples/${file}"],
  [/^bun run pack$/, "test/package/packed.ts", "pack(join(SCRATCH"],
  [/^bun (?:add|init -y)(?: \S+)?$/, "test/package/packed.ts", `"add", await tarball()`],
  [/^bun build --compile$/, "test/package/executable.cases.ts", `"build", "--compile"`],
  // Publishing is not tried: what it publishes is.
  [/^npm publish dist\/kvferry-VERSION\.tgz /, "test/package/packed.ts", "pack(join(SCRATCH"],
];

beforeAll(async () => {
  await using transport = await Transport.open({ workerId: 1n, nixl: false });
  await transport.register({
    name: "pool",
    config: { numBlocks: 4, numLayers: 1, outerDim: 1, pageSize: 4, innerDim: 8 },
    memory: { kind: "system" },
  });
  writeFileSync(FILE, await transport.exportMetadata());
  const recorded = JSON.parse(readFileSync(join(ROOT, "bench/results/wire-2026-11-29.json"), "utf8")) as {
    results: unknown[];
  };
  for (const file of [RESULT, OTHER])
    writeFileSync(file, JSON.stringify({ ...recorded, results: recorded.results.slice(0, 1) }));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const COMMANDS = documentedCommands();

test("each documented command is run here or by a test that has its words", () => {
  const unknown = COMMANDS.filter(
    (command) => ![...RUNS, ...ELSEWHERE].some(([pattern]) => pattern.test(command)),
  );
  expect(unknown).toEqual([]);
  for (const [, file, words] of ELSEWHERE) expect(readFileSync(join(ROOT, file), "utf8")).toContain(words);
});

describe("documented commands run", () => {
  for (const [pattern, { words, says, needsNixl }] of RUNS) {
    const named = COMMANDS.filter((command) => pattern.test(command));
    if (named.length === 0) continue;
    test.skipIf(needsNixl === true && findNixl() === null)(
      named.join("; "),
      async () => {
        const { code, signal, out, words: said } = await runCommand([...words], {}, 110_000, ROOT);
        expect({ code, signal }, said).toEqual({ code: 0, signal: null });
        if (says !== undefined) expect(words.includes("test") ? said : out).toMatch(says);
      },
      120_000,
    );
  }
});
