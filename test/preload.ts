// Runs before the tests of every process: readies the native library and NIXL, so that `bun test` alone works on a
// clean clone. Where all is ready it looks at files and starts nothing.
import { withLock } from "../lib/cli/lock.ts";
import { cacheDirectory, findNixl } from "../lib/native/find-nixl.ts";
import { CODES_VARIABLE, noteCodes } from "./codes-seen.ts";

const codes = process.env[CODES_VARIABLE] ?? "";
if (codes !== "") noteCodes(codes);

const note = (line: string): void => void process.stderr.write(`test set-up: ${line}\n`);

// A library that was named is used as it is: sanitizer runs name theirs. Tests of the pure parts go on without one.
if ((process.env["KVFERRY_SHIM"] ?? "") === "") {
  const { buildShim } = await import("../cshim/build.ts");
  await buildShim({ note }).catch((error: unknown) => note(`WITHOUT THE NATIVE LIBRARY: ${String(error)}`));
}

if (process.env["KVFERRY_TEST_WITHOUT_NIXL"] !== "1") {
  const library = findNixl()?.library ?? (await fetchNixl());
  if (library !== null) process.env["KVFERRY_NIXL_LIBRARY"] = library;
}

/** Tries once for all processes of a run: without network each of them would wait for the same failure. */
async function fetchNixl(): Promise<string | null> {
  const { setupNixl } = await import("../lib/cli/nixl-setup.ts");
  const failure = Bun.file(`${cacheDirectory()}/setup-failed`);
  return await withLock(`${cacheDirectory()}/test-setup.lock`, async () => {
    const recent = (await failure.exists()) && Date.now() - failure.lastModified < 60_000;
    try {
      if (!recent) return (await setupNixl({ progress: note })).library;
      note(await failure.text());
    } catch (error) {
      const words = error instanceof Error ? error.message : String(error);
      await failure.write(words);
      note(words);
    }
    note("WITHOUT NIXL: every test that needs it is skipped. Run `bun run setup` where there is a network.");
    return null;
  });
}
