import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { cacheDirectory, findNixl, nixlInstallDirectory, nixlPlugins } from "../../lib/native/find-nixl.ts";

let root = "";
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "kvferry-find-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

const LIBRARY = "libnixl_capi.so";

function place(path: string): string {
  const file = join(root, path);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, "");
  return file;
}

function look(environment: Record<string, string> = {}, library?: string): ReturnType<typeof findNixl> {
  return findNixl({
    environment,
    home: join(root, "home"),
    root,
    ...(library === undefined ? {} : { library }),
  });
}

describe("finding NIXL", () => {
  test("an empty machine has none", () => {
    expect(look()).toBeNull();
  });

  test("each place is found, and an earlier one wins over all later ones", () => {
    const triplet = process.arch === "arm64" ? "aarch64-linux-gnu" : "x86_64-linux-gnu";
    const system = place(`opt/nvidia/nvda_nixl/lib/${triplet}/${LIBRARY}`);
    expect(look()).toMatchObject({ library: system, source: "system" });
    const python = place(`home/.local/lib/python3.12/site-packages/.nixl_cu12.mesonpy.libs/${LIBRARY}`);
    expect(look()).toMatchObject({ library: python, source: "python" });
    const venv = place(`venv/lib/python3.11/site-packages/.nixl_cu13.mesonpy.libs/${LIBRARY}`);
    expect(look({ VIRTUAL_ENV: join(root, "venv") })).toMatchObject({ library: venv, source: "python" });
    const installed = nixlInstallDirectory({}, join(root, "home"));
    const cache = place(`${installed.slice(root.length)}/.nixl_cu12.mesonpy.libs/${LIBRARY}`);
    expect(look()).toMatchObject({ library: cache, source: "cache" });
    const named = place(`elsewhere/${LIBRARY}`);
    expect(look({ KVFERRY_NIXL_LIBRARY: named })).toMatchObject({ library: named, source: "environment" });
    const given = place(`given/${LIBRARY}`);
    expect(look({ KVFERRY_NIXL_LIBRARY: named }, given)).toMatchObject({ library: given, source: "given" });
    expect(look({}, dirname(given))).toMatchObject({ library: given, source: "given" });
  });

  test("a path that was named and is not there is never replaced by another installation", () => {
    place(`usr/lib/${LIBRARY}`);
    expect(look()?.source).toBe("system");
    expect(look({ KVFERRY_NIXL_LIBRARY: join(root, "gone", LIBRARY) })).toBeNull();
    expect(look({}, join(root, "gone"))).toBeNull();
    expect(look({ KVFERRY_NIXL_LIBRARY: "" })?.source).toBe("system");
  });

  test("the release is read from the wheel of the same flavour, and is null where nothing tells it", () => {
    const packages = "usr/lib/python3/dist-packages";
    place(`${packages}/.nixl_cu12.mesonpy.libs/${LIBRARY}`);
    place(`${packages}/nixl_cu13-9.9.9.dist-info/METADATA`);
    expect(look()?.version).toBeNull();
    place(`${packages}/nixl_cu12-1.4.2.dist-info/METADATA`);
    expect(look()?.version).toBe("1.4.2");
  });

  test("a Python package without the C library (releases before 0.10.1) is passed over", () => {
    place("usr/lib/python3/dist-packages/.nixl_cu12.mesonpy.libs/libnixl.so");
    expect(look()).toBeNull();
  });

  test("plugins are named by their files", () => {
    const library = place(`n/${LIBRARY}`);
    expect(nixlPlugins(library)).toEqual([]);
    for (const name of ["libplugin_UCX.so", "libplugin_POSIX.so", "libtelemetry_x.so"])
      place(`n/plugins/${name}`);
    expect(nixlPlugins(library)).toEqual(["POSIX", "UCX"]);
  });

  test("the cache directory follows XDG_CACHE_HOME, but not a relative one", () => {
    expect(cacheDirectory({ XDG_CACHE_HOME: "/x" }, "/h")).toBe("/x/kvferry");
    expect(cacheDirectory({ XDG_CACHE_HOME: "x" }, "/h")).toBe("/h/.cache/kvferry");
    expect(cacheDirectory({}, "/h")).toBe("/h/.cache/kvferry");
  });
});
