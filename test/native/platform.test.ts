import { describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { libraryPath } from "../../lib/native/library.ts";
import { platformRefusal } from "../../lib/native/platform.ts";
import type { PlatformFacts } from "../../lib/native/platform.ts";
import { runCommand } from "../runtime/helpers/child.ts";

const ROOT = join(import.meta.dir, "..", "..");

/** What a process that takes itself for another platform makes of the entry points. */
interface Elsewhere {
  readonly code: string;
  readonly message: string;
  readonly remedy: string;
  readonly details: Record<string, unknown>;
  /** A layout's bytes by `kvferry/core`, and a package's layouts by `kvferry/wire`. */
  readonly totalBytes: number;
  readonly layouts: number;
}

/** Opens a transport in a process whose first lines are `before`. */
async function elsewhere(before: string): Promise<Elsewhere> {
  const script = `
    ${before}
    const { Transport } = await import(${JSON.stringify(join(ROOT, "index.ts"))});
    const core = await import(${JSON.stringify(join(ROOT, "lib/core/index.ts"))});
    const wire = await import(${JSON.stringify(join(ROOT, "lib/wire/index.ts"))});
    const config = { numBlocks: 4, numLayers: 1, outerDim: 1, pageSize: 4, innerDim: 8 };
    const registry = core.emptyRegistry({ workerId: 1n, agentName: "a", wireName: "a", incarnation: 1 });
    const bytes = wire.encodePackage(core.exportPackage(registry, new Uint8Array(0)), "kvferry");
    const failure = await Transport.open({ workerId: 1n }).then(() => ({}), (error) => error);
    const { code, message, remedy, details } = failure;
    console.log(JSON.stringify({
      code, message, remedy, details,
      totalBytes: core.resolveConfig(config, "test").totalBytes,
      layouts: wire.decodePackage(bytes).layouts.length,
    }));`;
  const { out, words } = await runCommand([process.execPath, "-e", script], { KVFERRY_SHIM: "" });
  expect(words).toBe("");
  return JSON.parse(out) as Elsewhere;
}

const pretend = (system: string, processor: string): string => `
  Object.defineProperty(process, "platform", { value: ${JSON.stringify(system)} });
  Object.defineProperty(process, "arch", { value: ${JSON.stringify(processor)} });`;

describe("where the native library cannot run", () => {
  const cases = [
    ["darwin", "arm64", "macOS on arm64", "docker run"],
    ["win32", "x64", "Windows on x64", "WSL 2"],
    ["freebsd", "x64", "freebsd on x64", "Use Linux."],
    ["linux", "riscv64", "Linux on riscv64", "x86-64 or arm64"],
  ] as const;
  for (const [system, processor, found, remedy] of cases)
    test(`${found}: open is refused with what to do there, and the pure entry points work`, async () => {
      const answer = await elsewhere(pretend(system, processor));
      expect(answer).toMatchObject({
        code: "ERR_KVF_UNSUPPORTED_PLATFORM",
        details: { system, processor },
        totalBytes: 4 * 4 * 8 * 2,
        layouts: 0,
      });
      expect(answer.message).toContain(found);
      expect(answer.remedy).toContain(remedy);
      expect(answer.remedy).toContain("kvferry/core");
    });

  test("the library's path is refused in this very process too, and comes back with the platform", () => {
    const real = process.arch;
    const usual = libraryPath();
    Object.defineProperty(process, "arch", { value: "s390x" });
    try {
      expect(() => libraryPath()).toThrow(
        expect.objectContaining({ code: "ERR_KVF_UNSUPPORTED_PLATFORM", operation: "open" }),
      );
    } finally {
      Object.defineProperty(process, "arch", { value: real });
    }
    expect(libraryPath()).toBe(usual);
  });

  test("musl: a library that the loader refuses is told from one that is broken", async () => {
    // As on a Linux without glibc: nothing of it can be loaded. Only a test process can replace bun:ffi.
    const folder = mkdtempSync(join(tmpdir(), "kvferry-musl-"));
    try {
      const file = join(folder, "musl.test.ts");
      const report = join(folder, "report.json");
      writeFileSync(
        file,
        `import { mock, test } from "bun:test";
        import * as ffi from "bun:ffi";
        await mock.module("bun:ffi", () => ({
          ...ffi,
          dlopen: () => { throw new Error("Error loading shared library ld-linux-x86-64.so.2"); },
        }));
        test("open", async () => {
          const { openLibrary } = await import(${JSON.stringify(join(ROOT, "lib/native/library.ts"))});
          try { openLibrary(); } catch (error) {
            const { code, message, remedy, details } = error;
            await Bun.write(${JSON.stringify(report)}, JSON.stringify({ code, message, remedy, details }));
          }
        });`,
      );
      // Elsewhere than in the repository, whose preload loads libraries.
      await runCommand([process.execPath, "test", file], {}, 30_000, folder);
      const answer = JSON.parse(readFileSync(report, "utf8")) as Elsewhere;
      expect(answer).toMatchObject({ code: "ERR_KVF_UNSUPPORTED_PLATFORM", details: { glibc: null } });
      expect(answer.message).toContain("without glibc");
      expect(answer.remedy).toContain("oven/bun:debian");
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  test("an older glibc is refused by its release; 2.28 and later are not", () => {
    const linux: PlatformFacts = { system: "linux", processor: "x64" };
    expect(platformRefusal({ ...linux, glibc: "2.27" })?.message).toContain("this is glibc 2.27");
    expect(platformRefusal({ ...linux, glibc: "2.9" })?.message).toContain("glibc 2.9");
    for (const glibc of ["2.28", "2.36", "2.100", "3.0"])
      expect(platformRefusal({ ...linux, glibc })).toBeNull();
    expect(platformRefusal(linux)).toBeNull();
  });
});
