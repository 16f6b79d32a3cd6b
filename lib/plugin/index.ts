import type { BunPlugin } from "bun";
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { ABI_HASH } from "../native/symbols.ts";

/** Name of the virtual module that says what is embedded. */
export const NATIVE_MODULE = "kvferry:native" as const;

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
 *
 * @throws Error during the build when there is no library for the target, naming where it was looked for.
 */
export function kvferryPlugin(options: KvferryPluginOptions = {}): BunPlugin {
  return {
    name: "kvferry",
    setup(build) {
      // A preload has no build to configure: the library is used where it lies.
      const bundling = build.config?.entrypoints !== undefined;
      const platform =
        options.platform ?? targetPlatform(build.config) ?? `${process.platform}-${process.arch}`;
      const module = (): string => {
        const path = libraryFor(platform, options.library);
        const shim = bundling
          ? `import path from ${JSON.stringify(path)} with { type: "file" };`
          : `const path = ${JSON.stringify(path)};`;
        return `${shim}\nexport const embeddedShim = { platform: ${JSON.stringify(platform)}, path, abi: ${JSON.stringify(ABI_HASH)} };\n`;
      };
      if (bundling) {
        build.onLoad({ filter: /[\\/]lib[\\/]native[\\/]embedded\.(ts|js)$/ }, () => ({
          contents: module(),
          loader: "js",
        }));
        build.onResolve({ filter: /^kvferry:native$/ }, () => ({ path: "native", namespace: "kvferry" }));
        build.onLoad({ filter: /^native$/, namespace: "kvferry" }, () => ({
          contents: module().replace("embeddedShim", "native"),
          loader: "js",
        }));
      } else {
        build.module(NATIVE_MODULE, () => ({
          contents: module().replace("embeddedShim", "native"),
          loader: "js",
        }));
      }
    },
  };
}

/** The plugin with its defaults: `plugins: [plugin]` in `Bun.build`, or a module that preloads it. */
const plugin: BunPlugin = kvferryPlugin();
export default plugin;

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

/** The platform of a compile target such as `bun-linux-arm64`; undefined when the build names none. */
function targetPlatform(config: unknown): string | undefined {
  if (typeof config !== "object" || config === null) return undefined;
  const compile = "compile" in config ? config.compile : undefined;
  const target =
    typeof compile === "string"
      ? compile
      : typeof compile === "object" && compile !== null && "target" in compile
        ? compile.target
        : undefined;
  return /linux-(?:x64|arm64)/.exec(typeof target === "string" ? target : "")?.[0];
}
