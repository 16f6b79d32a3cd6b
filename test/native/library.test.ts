import { describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildShim } from "../../cshim/build.ts";
import { openLibrary } from "../../lib/native/library.ts";
import { ABI_HASH, KVF_E_INVALID, KVF_OK } from "../../lib/native/symbols.ts";

const LIBRARY = join(import.meta.dir, "..", "..", "lib", "native", "library.ts");

/** Opens a library in a process of its own and gives what it threw, or "opened". */
async function openIn(environment: Record<string, string>): Promise<unknown> {
  const script = `
    const { openLibrary } = await import(${JSON.stringify(LIBRARY)});
    try { openLibrary(); console.log(JSON.stringify("opened")); }
    catch (error) { console.log(JSON.stringify({ code: error.code, remedy: error.remedy, details: error.details })); }`;
  const child = Bun.spawn([process.execPath, "-e", script], {
    env: { ...process.env, ...environment },
    stdout: "pipe",
  });
  return JSON.parse(await new Response(child.stdout).text());
}

async function inFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "kvferry-library-"));
  try {
    await run(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

describe("openLibrary", () => {
  test("answers the hash of this interface and the text of the last refusal", () => {
    const library = openLibrary();
    expect(openLibrary()).toBe(library);
    const text = new Uint8Array(new ArrayBuffer(200));
    expect(library.kvf_abi_hash(text, 200)).toBe(KVF_OK);
    expect(new TextDecoder().decode(text.subarray(0, 17))).toBe(`${ABI_HASH}\0`);
    expect(library.kvf_memory_map(0, 0, 0, new Float64Array(new ArrayBuffer(24)))).toBe(KVF_E_INVALID);
    expect(library.kvf_last_error(text, 200)).toBe(KVF_OK);
    expect(new TextDecoder().decode(text)).toStartWith("kvf_memory_map: 0 bytes");
  });

  test("a library that is not there is refused with what builds it", async () => {
    expect(await openIn({ KVFERRY_SHIM: "/nonexistent/libkvf.so" })).toEqual({
      code: "ERR_KVF_UNSUPPORTED_PLATFORM",
      remedy: "Run `bun run build:shim` in kvferry's folder.",
      details: { platform: `linux-${process.arch}`, looked: ["/nonexistent/libkvf.so"] },
    });
  });

  test("a file that is no library is refused, not crashed on", () =>
    inFolder(async (folder) => {
      const path = join(folder, "libkvf.so");
      writeFileSync(path, "no library");
      expect(await openIn({ KVFERRY_SHIM: path })).toMatchObject({
        code: "ERR_KVF_UNSUPPORTED_PLATFORM",
        details: { path },
      });
    }));

  test(
    "a library built from another interface is refused by both hashes, before any other call",
    () =>
      inFolder(async (folder) => {
        const flags = ["-UKVF_ABI_HASH", '-DKVF_ABI_HASH="0123456789abcdef"'];
        const path = await buildShim({
          out: join(folder, "libkvf.so"),
          without: ["nixl", "cuda"],
          debug: true,
          flags,
        });
        expect(await openIn({ KVFERRY_SHIM: path })).toMatchObject({
          code: "ERR_KVF_UNSUPPORTED_PLATFORM",
          remedy: "Run `bun run build:shim` in kvferry's folder.",
          details: { path, found: "0123456789abcdef", wanted: ABI_HASH },
        });
      }),
    120_000,
  );
});

describe("buildShim", () => {
  test(
    "builds once, builds again when the result was touched, and two builders do not disturb each other",
    () =>
      inFolder(async (folder) => {
        const said: string[] = [];
        const options = {
          out: join(folder, "libkvf.so"),
          without: ["nixl", "cuda"],
          debug: true,
          note: (line: string) => void said.push(line),
        };
        const paths = await Promise.all([buildShim(options), buildShim(options)]);
        expect(paths).toEqual([options.out, options.out]);
        expect(await openIn({ KVFERRY_SHIM: options.out })).toBe("opened");
        said.length = 0;
        await buildShim(options);
        expect(said).toEqual([]);
        writeFileSync(options.out, "something else");
        await buildShim(options);
        expect(said).toHaveLength(1);
        expect(await openIn({ KVFERRY_SHIM: options.out })).toBe("opened");
      }),
    120_000,
  );
});
