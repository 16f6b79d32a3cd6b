import type * as wire from "../wire/index.ts";

type Codecs = typeof wire;

let loaded: Codecs | undefined;

/** The package codecs, once {@link loadCodecs} has resolved. */
export function loadedCodecs(): Codecs | undefined {
  return loaded;
}

/**
 * Loads the package codecs. They are a quarter of the code and local work needs none of it, so a program that has no
 * peers does not pay for them when it starts.
 */
export async function loadCodecs(): Promise<Codecs> {
  loaded ??= await import("../wire/index.ts");
  return loaded;
}
