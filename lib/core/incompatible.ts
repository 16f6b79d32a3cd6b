import { refusal } from "./refuse.ts";

/** @throws KvferryError `INCOMPATIBLE_LAYOUTS` when what must be equal on both sides is not. */
export function requireEqual(
  name: string,
  field: string,
  source: number,
  destination: number,
  what: string,
): void {
  if (source !== destination)
    throw incompatible(name, `${what} differ: ${source} at the source, ${destination} at the destination`, {
      field,
      source,
      destination,
    });
}

/** The refusal of two components that cannot be copied into one another. */
export function incompatible(
  name: string,
  message: string,
  details: Readonly<Record<string, unknown>>,
): Error {
  return refusal(
    "INCOMPATIBLE_LAYOUTS",
    `component ${JSON.stringify(name)}: ${message}`,
    "Register both sides with one model's shape; shards may differ only by their head and layer windows.",
    { component: name, ...details },
  );
}
