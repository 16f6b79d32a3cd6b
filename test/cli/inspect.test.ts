import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Transport } from "../../index.ts";
import { decodePackage, encodePackage } from "../../lib/wire/index.ts";
import { layoutOf, packageOf } from "../wire/builders.ts";

const PROGRAM = join(import.meta.dirname, "../../lib/cli/main.ts");
const WORKER = 12_345_678_901_234_567_890n;
const LAYERS = { arrangement: "layer-separate/block-second", addresses: [0x40000, 0x80000] } as const;
let folder = "";
let file = "";

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "kvferry-inspect-"));
  file = join(folder, "package");
  await using transport = await Transport.open({
    workerId: WORKER,
    agentName: "exporter",
    nixl: false,
    cuda: false,
  });
  const config = {
    numBlocks: 8,
    numLayers: 4,
    outerDim: 2,
    pageSize: 16,
    numHeads: 8,
    headDim: 64,
    dtype: "bf16",
  } as const;
  await transport.register({
    name: "engine",
    config: { ...config, headWindow: { start: 8, total: 32 } },
    arrangement: "layer-separate/block-second",
    memory: { kind: "system" },
    fingerprint: "model-7",
  });
  writeFileSync(file, await transport.exportMetadata());
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function inspect(words: readonly string[], input?: Uint8Array): { code: number; out: string; words: string } {
  const run = Bun.spawnSync([process.execPath, PROGRAM, "inspect", ...words], {
    stdin: input ?? "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  return { code: run.exitCode, out: run.stdout.toString(), words: run.stderr.toString() };
}

describe("inspect", () => {
  test("says what a package holds, exactly, in words and as JSON", () => {
    const words = inspect([file]);
    expect(words.code).toBe(0);
    for (const part of [
      `Worker ${WORKER}`,
      '"exporter"',
      "no NIXL metadata",
      '"engine"',
      "fingerprint model-7",
      "8 blocks of 4 layers x 2 x 16 tokens x 8 heads of 64 bf16 elements, 131072 bytes each",
      "layer-separate/block-second",
      "4 regions, 1048576 bytes in all",
      "heads 8 to 15 of 32",
    ])
      expect(words.out).toContain(part);
    const json = inspect([file, "--json"]);
    expect(JSON.parse(json.out)).toMatchObject({
      ok: true,
      format: "kvferry",
      workerId: WORKER.toString(),
      layouts: [
        { name: "engine", fingerprint: "model-7", components: [{ name: "kv", storage: { kind: "system" } }] },
      ],
    });
  });

  test("reads standard input", () => {
    expect(inspect(["-"], readFileSync(file)).out).toBe(inspect([file]).out);
  });

  test("a package converted to its own format says the same", () => {
    const out = join(folder, "again");
    expect(inspect([file, "--to", "kvferry", "--out", out]).code).toBe(0);
    expect(inspect([out]).out).toBe(inspect([file]).out);
  });

  test("a format that cannot hold what the package says refuses with the reason, and writes nothing", () => {
    const out = join(folder, "dynamo");
    const refused = inspect([file, "--to", "dynamo-1.0", "--out", out, "--json"]);
    expect(refused.code).toBe(1);
    expect(JSON.parse(refused.out).error.code).toStartWith("ERR_KVF_");
    expect(() => readFileSync(out)).toThrow();
  });

  test("a package that all formats can say is converted between them, and each says the same of it", () => {
    const plain = join(folder, "plain");
    writeFileSync(plain, encodePackage(packageOf([layoutOf(0), layoutOf(3, LAYERS)]), "kvferry"));
    const paths = new Map([["kvferry", plain]]);
    for (const [from, to] of [
      ["kvferry", "dynamo-1.0"],
      ["dynamo-1.0", "kvbm-physical-1"],
      ["kvbm-physical-1", "dynamo-1.0"],
      ["kvbm-physical-1", "kvferry"],
    ] as const) {
      const out = join(folder, `${from}-${to}`);
      expect(inspect([paths.get(from) ?? "", "--to", to, "--out", out]).code).toBe(0);
      expect(decodePackage(readFileSync(out)).format).toBe(to);
      const words = inspect([out]).out;
      for (const part of [
        "Worker 7",
        '"worker-7"',
        '"layout-0"',
        '"layout-3"',
        "layer-separate/block-second",
      ])
        expect(words).toContain(part);
      const { layouts } = JSON.parse(inspect([out, "--json"]).out) as { layouts: unknown };
      expect(layouts).toEqual((JSON.parse(inspect([plain, "--json"]).out) as { layouts: unknown }).layouts);
      paths.set(to, out);
    }
    // Back where it began, byte for byte.
    expect(readFileSync(paths.get("kvferry") ?? "").equals(readFileSync(plain))).toBe(true);
  });

  test("a package with one byte changed is refused with status 1", () => {
    const bytes = readFileSync(file);
    bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1;
    const spoiled = inspect(["-", "--json"], bytes);
    expect(spoiled.code).toBe(1);
    expect(JSON.parse(spoiled.out)).toMatchObject({
      ok: false,
      error: { code: "ERR_KVF_METADATA_MALFORMED" },
    });
  });

  test("a file that is not there is named, with status 3", () => {
    const missing = inspect([join(folder, "nothing")]);
    expect(missing.code).toBe(3);
    expect(missing.words).toContain(join(folder, "nothing"));
  });
});
