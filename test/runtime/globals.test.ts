// JavaScript globals that end while native threads work for them: test files under --isolate and --parallel, Workers.
import { expect, test } from "bun:test";
import { join } from "node:path";
import { runCommand, runFixture } from "./helpers/child.ts";
import { nixlTest } from "./helpers/transports.ts";

const ROOT: string = join(import.meta.dir, "..", "..");
const FILES = ["left", "left-too"].map((name) => `./test/runtime/fixtures/${name}.cases.ts`);

for (const flags of [["--isolate"], ["--parallel=2"], ["--parallel=2", "--no-isolate"], []])
  for (const nixl of [true, false])
    (nixl ? nixlTest : test)(
      `bun test ${flags.join(" ")}${nixl ? "" : " without NIXL"}: files that end in mid-transfer do not crash`,
      async () => {
        for (let round = 0; round < 2; round++) {
          const ended = await runCommand(
            [process.execPath, "test", ...flags, ...FILES],
            { NODE_ENV: "test", KVFERRY_TEST_WITHOUT_NIXL: nixl ? "" : "1" },
            60_000,
            ROOT,
          );
          expect({ code: ended.code, signal: ended.signal }, ended.words).toEqual({ code: 0, signal: null });
          expect(ended.words).toMatch(/^ 2 pass$/m);
        }
      },
      120_000,
    );

for (const nixl of [false, true])
  (nixl ? nixlTest : test)(
    `a Worker moves blocks${nixl ? " over NIXL" : ""}, and being ended in mid-transfer crashes nothing`,
    async () => {
      const ended = await runFixture(
        "worker-parent.ts",
        ["6"],
        { KVF_FIXTURE_NIXL: nixl ? "1" : "" },
        60_000,
      );
      expect(ended).toEqual({ code: 0, signal: null, out: "all ended\n", words: "" });
    },
    90_000,
  );
