// Run by `bun run check:full`: packs, and installs into an empty directory as a user would.
import { afterAll, expect, test } from "bun:test";
import { existsSync, lstatSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pack } from "../../.ci/pack.ts";
import { runCommand } from "../runtime/helpers/child.ts";
import {
  demand,
  project,
  removeScratch,
  ROOT,
  SCRATCH,
  tarball,
  TEN_LINES,
  USER_ENVIRONMENT,
} from "./packed.ts";

afterAll(removeScratch);

/** The strictest that a user may have, over what `bun init` writes. */
const STRICTEST = {
  target: "ESNext",
  lib: ["ESNext"],
  module: "Preserve",
  moduleDetection: "force",
  noEmit: true,
  strict: true,
  skipLibCheck: false,
  exactOptionalPropertyTypes: true,
  noUncheckedIndexedAccess: true,
  noPropertyAccessFromIndexSignature: true,
  noImplicitReturns: true,
  noImplicitOverride: true,
  noFallthroughCasesInSwitch: true,
  noUnusedLocals: true,
  noUnusedParameters: true,
  verbatimModuleSyntax: true,
  isolatedModules: true,
  types: ["bun"],
};

/** Looser than anybody should be: types that lean on an option break here. */
const LOOSER = {
  target: "ES2022",
  module: "NodeNext",
  noEmit: true,
  strict: false,
  skipLibCheck: false,
  types: ["bun"],
};

/** Everything that the package offers, used as its types say. */
const USER = `import { isKvferryError, Transport, type LayoutConfig } from "kvferry";
import { resolveConfig } from "kvferry/core";
import { kvferryPlugin } from "kvferry/plugin";
import { decodePackage } from "kvferry/wire";
import { native } from "kvferry:native";

const config: LayoutConfig = { numBlocks: 4, numLayers: 1, outerDim: 1, pageSize: 4, innerDim: 8 };
export const bytes: number = resolveConfig(config, "user").totalBytes;
export const name: string = kvferryPlugin().name;
export const embedded: string | undefined = native?.platform;
export async function workerOf(transport: Transport): Promise<bigint> {
  try {
    return decodePackage(await transport.exportMetadata()).workerId;
  } catch (error) {
    if (isKvferryError(error, "CLOSED")) return 0n;
    throw error;
  }
}
`;

test("two packs of the same sources are the same bytes", async () => {
  const [first, second] = [await tarball(), await pack(join(SCRATCH, "again"))];
  const hash = async (file: string): Promise<string> =>
    new Bun.CryptoHasher("sha256").update(await Bun.file(file).arrayBuffer()).digest("hex");
  expect(await hash(second)).toBe(await hash(first));
}, 300_000);

test("an empty project that adds the tarball runs the ten lines, without a compiler on its path", async () => {
  const folder = await project();
  const { out, words } = await demand([process.execPath, "run", "index.ts"], folder, { PATH: "" });
  expect({ out, words }).toEqual({ out: "", words: "" });
  // What ran is the package's own library, not one that a clone built.
  const report = JSON.parse(
    (await demand([process.execPath, "node_modules/.bin/kvferry", "doctor", "--json"], folder)).out,
  ) as {
    readonly checks: readonly { readonly name: string; readonly ok: boolean; readonly found: string }[];
  };
  const library = report.checks.find(({ name }) => name === "native library");
  expect(library).toMatchObject({ ok: true });
  expect(library?.found).toContain(join(folder, "node_modules/kvferry/cshim/prebuilt"));
}, 300_000);

test("the installed command line measures what it can, and says what takes a clone", async () => {
  const folder = await project();
  const command = [process.execPath, "node_modules/.bin/kvferry", "bench"];
  const { out } = await demand([...command, "--list"], folder);
  expect(out).toBe("calibrate\nreport\nwire\n");
  const refused = await runCommand([...command, "host"], USER_ENVIRONMENT, 60_000, folder);
  expect({ code: refused.code, out: refused.out }).toEqual({ code: 3, out: "" });
  expect(refused.words).toContain("needs a clone of the repository");
  const quick = [...command, "wire", "--quick", "--only", "dynamo-1.0.decode", "--json"];
  const { results } = JSON.parse((await demand(quick, folder)).out) as { readonly results: unknown[] };
  expect(results).toHaveLength(1);
}, 300_000);

test("nothing of the package runs at installation, and it is small", async () => {
  const folder = join(await project(), "node_modules/kvferry");
  const manifest = (await Bun.file(join(folder, "package.json")).json()) as Record<string, unknown>;
  expect(manifest["scripts"]).toBeUndefined();
  const bytes = readdirSync(folder, { recursive: true, encoding: "utf8" })
    .map((file) => lstatSync(join(folder, file)))
    .reduce((sum, facts) => sum + (facts.isFile() ? facts.size : 0), 0);
  // The compiled kernels are in the library of each of the two processors.
  const kernels = 2 * Bun.file(join(ROOT, "cshim/kernels/embedded.bin")).size;
  expect(kernels).toBeGreaterThan(0);
  expect(bytes - kernels).toBeLessThan(3_000_000);
  expect(existsSync(join(folder, "test"))).toBe(false);
}, 300_000);

for (const version of ["6.0.3", "7.0.2"])
  test(`the types pass TypeScript ${version} at its strictest and at its loosest, libraries included`, async () => {
    const folder = await project();
    writeFileSync(join(folder, "user.ts"), USER);
    writeFileSync(
      join(folder, "wrong.ts"),
      `import { Transport } from "kvferry";\nawait Transport.open({ workerId: "one" });\n`,
    );
    const check = async (file: string, options: object = STRICTEST): Promise<string> => {
      const config = join(folder, `tsconfig.${file}.json`);
      writeFileSync(config, JSON.stringify({ compilerOptions: options, files: [file, "index.ts"] }));
      const child = Bun.spawn(
        [process.execPath, "x", "--package", `typescript@${version}`, "tsc", "-p", config],
        { cwd: folder, stdin: "ignore", stdout: "pipe", stderr: "pipe" },
      );
      const [out, words] = await Promise.all([
        new Response(child.stdout).text(),
        new Response(child.stderr).text(),
      ]);
      return (await child.exited) === 0 ? "" : `${out}${words}`;
    };
    expect(TEN_LINES).toContain("Transport.open");
    expect(await check("user.ts")).toBe("");
    expect(await check("user.ts", LOOSER)).toBe("");
    // Silence would otherwise mean that nothing was checked.
    expect(await check("wrong.ts")).toContain("TS2322");
  }, 300_000);
