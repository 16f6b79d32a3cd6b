// oxlint-disable-next-line typescript/triple-slash-reference -- a virtual module is nothing that could be imported
/// <reference path="./native-module.d.ts" preserve="true" />
import type { BunPlugin } from "bun";
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { ABI_HASH } from "../native/symbols.ts";

/** Name of the virtual module that says what is embedded. */
export const NATIVE_MODULE = "kvferry:native" as const;

/** What `kvferry:native` exports as `native`. */
export interface NativeModule {
  /** `linux-x64` or `linux-arm64`. */
  readonly platform: string;
  /** Path of the library, as the process sees it. */
  readonly path: string;
  /** Hash of the native interface that it was built from. */
  readonly abi: string;
  /** The notices that go with the library and its compiled kernels: hand them on with an executable. */
  readonly notice: string;
}

/** Options of {@link kvferryPlugin}. */
export interface KvferryPluginOptions {
  /** `linux-x64` or `linux-arm64`; default the target of the build, else this machine. */
  readonly platform?: string;
  /** Path of the library to embed; default the package's own for the platform. */
  readonly library?: string;
}

const ROOT: string = resolve(import.meta.dir, "..", "..");

/**
 * A Bun plugin for `bun build --compile` and for `preload`.
 *
 * It puts kvferry's native library for the target into the executable and gives the virtual module `kvferry:native`,
 * whose `native` says what is embedded. NIXL and UCX are never embedded: they stay a download of their own.
 * For targets without a native library (macOS, Windows, musl) nothing is embedded and `native` is null.
 *
 * @throws Error during the build when there is no library for the target, naming where it was looked for.
 */
export function kvferryPlugin(options: KvferryPluginOptions = {}): BunPlugin {
  return {
    name: "kvferry",
    setup(build) {
      // A preload has no build to configure: the library is used where it lies.
      const bundling = build.config?.entrypoints !== undefined;
      const platform = options.platform ?? targetPlatform(build.config);
      const contents = (name: string): string => moduleText(name, platform, options.library, bundling);
      if (!bundling) {
        build.module(NATIVE_MODULE, () => ({ contents: contents("native"), loader: "js" }));
        return;
      }
      build.onLoad({ filter: /[\\/]lib[\\/]native[\\/]embedded\.(ts|js)$/ }, () => ({
        contents: contents("embeddedShim"),
        loader: "js",
      }));
      build.onResolve({ filter: /^kvferry:native$/ }, () => ({ path: "native", namespace: "kvferry" }));
      build.onLoad({ filter: /^native$/, namespace: "kvferry" }, () => ({
        contents: contents("native"),
        loader: "js",
      }));
    },
  };
}

/** The plugin with its defaults, for `plugins: [plugin]` in `Bun.build`. */
const plugin: BunPlugin = kvferryPlugin();
export default plugin;

// As a preload (`preload = ["kvferry/plugin"]`) nobody else would register it.
if (typeof Bun !== "undefined") void Bun.plugin(plugin);

/** A module whose one export says what is embedded; the notices travel with the library, whoever reads them. */
function moduleText(
  name: string,
  platform: string | null,
  given: string | undefined,
  bundling: boolean,
): string {
  if (platform === null) return `export const ${name} = null;\n`;
  const path = libraryFor(platform, given);
  const shim = bundling
    ? `import path from ${JSON.stringify(path)} with { type: "file" };`
    : `const path = ${JSON.stringify(path)};`;
  const facts = `platform: ${JSON.stringify(platform)}, path, abi: ${JSON.stringify(ABI_HASH)}`;
  const notice = JSON.stringify(readFileSync(join(ROOT, "NOTICE"), "utf8"));
  return `${shim}\nexport const ${name} = { ${facts}, notice: ${notice} };\n`;
}

function libraryFor(platform: string, given: string | undefined): string {
  const candidates =
    given !== undefined
      ? [resolve(given)]
      : [
          join(ROOT, "cshim", "prebuilt", platform, "libkvf.so"),
          ...(platform === `${process.platform}-${process.arch}`
            ? [join(ROOT, "cshim", "build", "libkvf.so")]
            : []),
        ];
  const found = candidates.find((path) => existsSync(path));
  if (found !== undefined) return found;
  throw new Error(
    `kvferry has no native library for ${platform}; looked for ${candidates.join(", ")}. Run \`bun run build:shim\` in kvferry's folder, or give \`library\`.`,
  );
}

/**
 * The platform of a compile target such as `bun-linux-arm64`; this machine's when the build names none.
 *
 * @returns Null where kvferry has no native library.
 */
function targetPlatform(config: unknown): string | null {
  const target = compileTarget(config) ?? `${process.platform}-${process.arch}`;
  if (target.includes("musl")) return null;
  const processor = /linux-(x64|arm64|aarch64)/.exec(target)?.[1];
  return processor === undefined ? null : `linux-${processor === "aarch64" ? "arm64" : processor}`;
}

function compileTarget(config: unknown): string | undefined {
  if (typeof config !== "object" || config === null || !("compile" in config)) return undefined;
  const { compile } = config;
  const target =
    typeof compile === "object" && compile !== null && "target" in compile ? compile.target : compile;
  return typeof target === "string" ? target : undefined;
}
