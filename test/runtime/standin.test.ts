// Failures that only a stand-in for NIXL can bring about, in a process that has loaded it.
import { beforeAll, test } from "bun:test";
import { join } from "node:path";
import { expectCases } from "../cuda/run-cases.ts";
import { buildStandin } from "../standin/build.ts";

const STANDIN: string = join(import.meta.dir, "..", "..", "cshim", "build", "standin", "libnixl_capi.so");
// The stand-in's own build has no sanitizer; a process that runs under one bears it all the same.

beforeAll(async () => void (await buildStandin(STANDIN)), 120_000);

test(
  "what fails in NIXL, and when, leaves nothing behind and is never taken for success",
  () => expectCases("test/runtime/standin.cases.ts", 20, { KVFERRY_NIXL_LIBRARY: STANDIN }),
  120_000,
);
