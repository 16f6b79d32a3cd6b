import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import { buildShim } from "../cshim/build.ts";

/** Compiles the declarations; needed only here, so it is no dependency of anything. */
const TYPESCRIPT = "typescript@7.0.2";

const TARGETS = [
  { platform: "linux-x64", target: "x86_64-linux-gnu.2.28" },
  { platform: "linux-arm64", target: "aarch64-linux-gnu.2.28" },
] as const;

const ROOT: string = resolve(import.meta.dir, "..");

/** What a tarball holds beside package.json. */
const CONTENTS = ["index.ts", "lib", "bench", "cshim/kvf.h", "README.md", "LICENSE", "NOTICE"] as const;

/** What is left out of the folders above. */
const LEFT_OUT: RegExp = /(?:^|\/)(?:results|native\/[^/]+\.c)$/;

/**
 * Makes the tarball that `bun add` installs: sources for Bun, declarations for any tsc, and the native library
 * prebuilt for every platform inside.
 *
 * The libraries are inside the one tarball, not in packages for each platform: both together are smaller than a
 * round trip, and package managers ignore `os` and `cpu` of tarballs that are installed from files.
 *
 * @returns Path of the tarball.
 */
export async function pack(destination: string): Promise<string> {
  // Not where a clone looks for prebuilt libraries: one that is there would be used instead of a newly built one.
  const built = (platform: string): string => join(ROOT, "cshim", "build", "pack", platform, "libkvf.so");
  for (const { platform, target } of TARGETS) {
    mkdirSync(join(built(platform), ".."), { recursive: true });
    await buildShim({ compiler: "zig", target, out: built(platform), flags: ["-Wl,-s"] });
  }
  const stage = mkdtempSync(join(tmpdir(), "kvferry-pack-"));
  try {
    for (const name of CONTENTS)
      cpSync(join(ROOT, name), join(stage, name), {
        recursive: true,
        filter: (path) => !LEFT_OUT.test(path),
      });
    for (const { platform } of TARGETS)
      cpSync(built(platform), join(stage, "cshim", "prebuilt", platform, "libkvf.so"));
    declarations(join(stage, "types"));
    writeFileSync(join(stage, "package.json"), `${JSON.stringify(manifest(), null, 2)}\n`);
    settleTimes(stage);
    mkdirSync(destination, { recursive: true });
    run([process.execPath, "pm", "pack", "--quiet", "--destination", resolve(destination)], stage);
    const { name, version } = manifest();
    return join(resolve(destination), `${name}-${version}.tgz`);
  } finally {
    rmSync(stage, { recursive: true, force: true });
  }
}

interface Manifest {
  readonly name: string;
  readonly version: string;
  readonly [field: string]: unknown;
}

/** The package's own manifest, for installing: no scripts and no development dependencies. */
function manifest(): Manifest {
  const {
    scripts: _scripts,
    devDependencies: _development,
    exports: entries,
    ...rest
  } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as Manifest & {
    readonly exports: Record<string, string>;
  };
  const exports = Object.fromEntries(
    Object.entries(entries).map(([name, path]) => [
      name,
      { types: path.replace("./", "./types/").replace(/\.ts$/, ".d.ts"), default: path },
    ]),
  );
  return {
    ...rest,
    exports,
    peerDependencies: { "bun-types": ">=1.4.5" },
    peerDependenciesMeta: { "bun-types": { optional: true } },
  };
}

/** Writes .d.ts files whose imports any resolution of tsc finds. */
function declarations(directory: string): void {
  const config = join(ROOT, "tsconfig.json");
  const options = [
    "--noEmit",
    "false",
    "--emitDeclarationOnly",
    "--declaration",
    "--outDir",
    directory,
    "--rootDir",
    ROOT,
    "--module",
    "Preserve",
  ];
  const entries = ["index.ts", "lib/core/index.ts", "lib/wire/index.ts", "lib/plugin/index.ts"].map((name) =>
    join(ROOT, name),
  );
  const project = join(ROOT, `.pack-${process.pid}.json`);
  writeFileSync(project, JSON.stringify({ extends: config, include: [], files: entries }));
  try {
    run([process.execPath, "x", "--package", TYPESCRIPT, "tsc", "-p", project, ...options], ROOT);
  } finally {
    rmSync(project, { force: true });
  }
  // Declarations that were written by hand are not emitted.
  const ambient = "lib/plugin/native-module.d.ts";
  cpSync(join(ROOT, ambient), join(directory, ambient));
  for (const path of readdirSync(directory, { recursive: true, encoding: "utf8" })) {
    if (!path.endsWith(".d.ts")) continue;
    const file = join(directory, path);
    const text = readFileSync(file, "utf8")
      .replaceAll(/(from\s+|import\()"(\.[^"]+)\.ts"/g, '$1"$2.js"')
      // The compiler lets references point back to the sources.
      .replaceAll(/(<reference path=")[^"]*"/g, `$1${relative(dirname(file), join(directory, ambient))}"`);
    writeFileSync(file, text);
  }
}

/** The same commit gives the same bytes: no file tells when it was packed. */
function settleTimes(directory: string): void {
  const when = new Date("2026-01-01T00:00:00Z");
  for (const path of readdirSync(directory, { recursive: true, encoding: "utf8" }))
    utimesSync(join(directory, path), when, when);
}

function run(command: readonly string[], directory: string): void {
  const result = Bun.spawnSync([...command], { cwd: directory, stdout: "pipe", stderr: "pipe" });
  if (result.exitCode !== 0)
    throw new Error(`${command.join(" ")} failed:\n${result.stdout.toString()}${result.stderr.toString()}`);
}

if (import.meta.main) {
  const tarball = await pack(process.argv[2] ?? join(ROOT, "dist"));
  console.log(`${tarball} ${(statSync(tarball).size / 1e6).toFixed(2)} MB`);
}
