// The route table against the stand-in for the driver, printed; test/gpu runs the same cases on a GPU.
import { beforeAll, expect, test } from "bun:test";
import { runCases, STANDIN_PATH } from "../cuda/run-cases.ts";
import { buildCudaStandin } from "../standin/build.ts";
import { NIXL } from "./helpers/transports.ts";

beforeAll(async () => void (await buildCudaStandin(STANDIN_PATH)), 120_000);

test("every pair of memory kinds, here and at a peer, moves verified bytes or is refused with code and remedy", async () => {
  const { code, passed, failed, said } = await runCases("test/cuda/routes.cases.ts", {
    KVFERRY_CUDA_LIBRARY: STANDIN_PATH,
    KVF_STANDIN_IPC: "1",
  });
  const tables = said.split("\n").filter((line) => /^(?:\||\(pass\))/.test(line));
  console.log(code === 0 && failed === 0 ? tables.join("\n") : said);
  expect({ code, passed, failed }).toEqual({ code: 0, passed: NIXL === null ? 2 : 4, failed: 0 });
}, 300_000);
