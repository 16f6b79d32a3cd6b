// Run by `bun run check:full`: the library for arm64, run under emulation.
import { afterAll, expect, test } from "bun:test";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildShim } from "../../cshim/build.ts";
import { runCommand } from "../runtime/helpers/child.ts";
import { debianPackages } from "./debian.ts";
import { BUILD, copyOfProject, demand, PROGRAM, removeScratch, ROOT } from "./packed.ts";

afterAll(removeScratch);

const OUT = join(ROOT, "cshim/build/arm64");
const TARGET = "aarch64-linux-gnu.2.28";

const tools = await debianPackages(["qemu-user-static", "libc6-arm64-cross"]);
const qemu = Bun.which("qemu-aarch64") ?? inside(tools, "usr/bin/qemu-aarch64-static");
const system = ["/usr/aarch64-linux-gnu", inside(tools, "usr/aarch64-linux-gnu")].find(
  (path) => path !== null && existsSync(path),
);

if (process.arch === "arm64" || qemu === null || system === undefined || system === null) {
  test.skip(`NOT RUN: the arm64 library under emulation (${tools.problem ?? "this machine is arm64 itself"})`, () =>
    undefined);
} else {
  test("the C driver of the library passes on arm64, under emulation", async () => {
    const program = await buildShim({
      compiler: "zig",
      target: TARGET,
      program: join(ROOT, "test/native/driver.c"),
      without: ["nixl", "cuda"],
      out: join(OUT, "driver"),
    });
    // A tenth of the cases: emulation is slow.
    const { code, signal, out, words } = await runCommand([qemu, "-L", system, program, "10"], {}, 300_000);
    expect({ code, signal, words }).toEqual({ code: 0, signal: null, words: "" });
    expect(out).toContain("random hops");
  }, 400_000);

  test("an executable that was cross-compiled with the plugin runs the ten lines on arm64, under emulation", async () => {
    const folder = await copyOfProject("cross-compiled");
    writeFileSync(join(folder, "program.ts"), PROGRAM);
    writeFileSync(join(folder, "build.ts"), BUILD);
    const app = join(folder, "app");
    // Bun fetches its own executable for the target from the package registry.
    await demand([process.execPath, "build.ts", "./program.ts", app, "bun-linux-arm64"], folder);
    const { code, signal, out, words } = await runCommand([qemu, "-L", system, app], {}, 120_000, folder);
    expect({ code, signal, words }).toEqual({ code: 0, signal: null, words: "" });
    expect(JSON.parse(out)).toEqual({ same: true, platform: "linux-arm64", kernels: true });
  }, 400_000);
}

function inside(found: { readonly folder: string | null }, path: string): string | null {
  return found.folder === null ? null : join(found.folder, path);
}
