import type * as parts from "./exchange-parts.ts";

/** What exchanges packages with peers. */
export type ExchangeParts = typeof parts;

let loaded: ExchangeParts | undefined;

/** What exchanges packages with peers, once {@link loadExchange} has resolved. */
export function loadedExchange(): ExchangeParts | undefined {
  return loaded;
}

/**
 * Loads what exchanges packages with peers. It is a third of the code and local work needs none of it, so a program
 * that has no peers does not pay for it when it starts.
 */
export async function loadExchange(): Promise<ExchangeParts> {
  loaded ??= await import("./exchange-parts.ts");
  return loaded;
}
