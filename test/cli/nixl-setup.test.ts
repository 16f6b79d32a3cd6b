import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setupNixl } from "../../lib/cli/nixl-setup.ts";
import type { SetupNixlOptions } from "../../lib/cli/nixl-setup.ts";
import { isKvferryError } from "../../lib/core/errors.ts";
import { nixlInstallDirectory } from "../../lib/native/find-nixl.ts";
import { makeZip } from "./make-zip.ts";

const LIBRARY = ".nixl_cu12.mesonpy.libs/libnixl_capi.so";
const WHEEL = makeZip({
  [LIBRARY]: new TextEncoder().encode("the library"),
  ".nixl_cu12.mesonpy.libs/plugins/libplugin_UCX.so": new Uint8Array(5_000).fill(7),
  "nixl_cu12.libs/libucp-1.so": new TextEncoder().encode("ucp"),
  "nixl_cu12.libs/nixl/libplugin_UCX.so": new TextEncoder().encode("a second copy"),
  "nixl_cu12-1.5.1.dist-info/METADATA": new TextEncoder().encode("Name: nixl-cu12"),
  "nixl_cu12-1.5.1.data/headers/asio.hpp": new TextEncoder().encode("a header"),
  "nixl_cu12/_api.py": new TextEncoder().encode("python"),
});
const SHA256 = new Bun.CryptoHasher("sha256").update(WHEEL).digest("hex");

let home = "";
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "kvferry-setup-"));
  mkdirSync(join(home, "bin"));
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

/** A `python3` that is the shell script of the test; `$3` is pip's command. */
function python(script: string): void {
  const file = join(home, "bin/python3");
  writeFileSync(file, `#!/bin/sh\n${script}\n`);
  chmodSync(file, 0o755);
}

/** The place that pip was told to put the wheel, in the script. */
const DESTINATION = `while [ $# -gt 0 ]; do [ "$1" = --dest ] && dest=$2; shift; done`;
const VERSION = `[ "$3" = --version ] && { echo "pip 24.0 from here"; exit 0; }`;

function set(options: SetupNixlOptions = {}): Promise<{ library: string; fetched: boolean }> {
  return setupNixl({
    environment: {
      PATH: `${join(home, "bin")}:/usr/bin:/bin`,
      HOME: home,
      KVFERRY_PYTHON: join(home, "bin/python3"),
    },
    home,
    root: home,
    ...options,
  });
}

async function refusal(
  options: SetupNixlOptions = {},
): Promise<{ code: string; message: string; remedy: string }> {
  const error: unknown = await set(options).then(
    () => new Error("not refused"),
    (reason: unknown) => reason,
  );
  if (!isKvferryError(error)) throw error;
  return { code: error.code, message: error.message, remedy: error.remedy };
}

const target = (): string => nixlInstallDirectory({}, home);
const cacheEntries = (): string[] => readdirSync(join(home, ".cache/kvferry")).toSorted();

describe("setup", () => {
  test("a given wheel is unpacked: libraries and licences only, nothing half made beside them", async () => {
    const wheel = join(home, "nixl.whl");
    writeFileSync(wheel, WHEEL);
    const found = await set({ wheel, sha256: SHA256 });
    expect(found).toMatchObject({
      library: join(target(), LIBRARY),
      fetched: true,
      version: "1.5.1",
      source: "cache",
    });
    expect(readFileSync(found.library, "utf8")).toBe("the library");
    const files = readdirSync(target(), { recursive: true, encoding: "utf8" });
    expect(files).toContain("nixl_cu12.libs/libucp-1.so");
    expect(files.filter((file) => /headers|_api\.py|libs\/nixl/.test(file))).toEqual([]);
    expect(cacheEntries()).toEqual([target().split("/").at(-1) ?? ""]);
    expect(existsSync(wheel)).toBe(true);
    expect(await set()).toMatchObject({ library: found.library, fetched: false });
  });

  test("a wheel of another content is refused with its own SHA-256 and leaves nothing", async () => {
    const wheel = join(home, "nixl.whl");
    writeFileSync(wheel, WHEEL);
    const refused = await refusal({ wheel });
    expect(refused.code).toBe("ERR_KVF_CHECKSUM");
    expect(refused.remedy).toContain(SHA256);
    expect(existsSync(target())).toBe(false);
  });

  test("a damaged wheel leaves the installation that was there", async () => {
    const wheel = join(home, "nixl.whl");
    writeFileSync(wheel, WHEEL);
    await set({ wheel, sha256: SHA256 });
    const damaged = WHEEL.slice();
    damaged.set(new Uint8Array(40), 300);
    writeFileSync(wheel, damaged);
    const hash = new Bun.CryptoHasher("sha256").update(damaged).digest("hex");
    expect((await refusal({ wheel, sha256: hash })).code).toBe("ERR_KVF_IO");
    expect(readFileSync(join(target(), LIBRARY), "utf8")).toBe("the library");
    expect(cacheEntries()).toEqual([target().split("/").at(-1) ?? ""]);
  });

  test("pip is tried again when the network fails, and what arrived is checked", async () => {
    writeFileSync(join(home, "served.whl"), WHEEL);
    python(`${VERSION}
${DESTINATION}
echo try >> ${home}/tries
[ $(wc -l < ${home}/tries) -lt 3 ] && { echo "ERROR: connection broken" >&2; exit 1; }
cp ${home}/served.whl $dest/nixl_cu12-1.5.1.whl`);
    expect(await set({ sha256: SHA256 })).toMatchObject({ fetched: true });
    expect(readFileSync(join(home, "tries"), "utf8")).toBe("try\ntry\ntry\n");
    expect(cacheEntries()).toEqual([target().split("/").at(-1) ?? ""]);
  });

  test("a wheel that an interrupted setup had fetched is used without asking pip again", async () => {
    mkdirSync(join(home, ".cache/kvferry/downloads"), { recursive: true });
    writeFileSync(join(home, ".cache/kvferry/downloads/nixl_cu12-1.5.1.whl"), WHEEL);
    python("exit 9");
    expect(await set({ sha256: SHA256 })).toMatchObject({ fetched: true });
  });

  test("a wheel of a mirror that is not the pinned one never reaches the cache", async () => {
    writeFileSync(join(home, "served.whl"), WHEEL);
    python(`${VERSION}\n${DESTINATION}\ncp ${home}/served.whl $dest/nixl_cu12-1.5.1.whl`);
    expect((await refusal()).code).toBe("ERR_KVF_CHECKSUM");
    expect(existsSync(target())).toBe(false);
  });

  test("a network that stays away ends in NO_NIXL with pip's words and the way around", async () => {
    python(`${VERSION}\necho "ERROR: Could not connect" >&2; exit 1`);
    const refused = await refusal();
    expect(refused.code).toBe("ERR_KVF_NO_NIXL");
    expect(refused.message).toContain("Could not connect");
    expect(refused.remedy).toContain("--wheel");
  });

  test("a Python without pip is named with its remedy", async () => {
    python(`echo "No module named pip" >&2; exit 1`);
    const refused = await refusal();
    expect(refused.code).toBe("ERR_KVF_NO_NIXL");
    expect(refused.message).toContain(`${join(home, "bin/python3")} has no pip`);
    expect(refused.remedy).toContain("python3-pip");
  });

  test("a machine without Python is told so", async () => {
    const refused = await refusal();
    expect(refused.code).toBe("ERR_KVF_NO_NIXL");
    expect(refused.message).toContain("no Python");
    expect(refused.remedy).toContain("--wheel");
  });

  test("a path that was named and is not there is refused instead of fetched around", async () => {
    const refused = await refusal({ library: join(home, "gone.so") });
    expect(refused.code).toBe("ERR_KVF_NO_NIXL");
    expect(refused.message).toContain("gone.so");
    expect(existsSync(join(home, ".cache"))).toBe(false);
  });

  test("of several at once one fetches, and all find what it made", async () => {
    writeFileSync(join(home, "served.whl"), WHEEL);
    python(
      `${VERSION}\n${DESTINATION}\necho try >> ${home}/tries\nsleep 0.2\ncp ${home}/served.whl $dest/nixl_cu12-1.5.1.whl`,
    );
    const all = await Promise.all(Array.from({ length: 4 }, () => set({ sha256: SHA256 })));
    expect(new Set(all.map((one) => one.library)).size).toBe(1);
    expect(readFileSync(join(home, "tries"), "utf8")).toBe("try\n");
  });
});
