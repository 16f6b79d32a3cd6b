/** 2025-01-01T00:00:00Z in milliseconds. */
const EPOCH_MILLIS = 1_735_689_600_000;

/** Milliseconds that one step of an incarnation lasts; 36 bits of them reach past the year 2059. */
const STEP_MILLIS = 16;

let last = 0;

/**
 * A number that rises with every transport that is opened, here and after a restart: 16 ms steps since 2025,
 * at least one more than the last in this process. Fits 36 bits.
 */
export function nextIncarnation(nowMillis: number): number {
  const step = Math.max(1, Math.floor((nowMillis - EPOCH_MILLIS) / STEP_MILLIS));
  last = Math.max(last + 1, step);
  return last;
}

/** The name under which a worker's agent is known on NIXL's wire: old descriptors never reach a new incarnation. */
export function wireName(agentName: string, incarnation: number): string {
  return `${agentName}#${incarnation.toString(36)}`;
}

/** The name that users see for a wire name; a name without an incarnation is itself. */
export function agentNameOf(wire: string): string {
  return wire.replace(/#[0-9a-z]+$/, "");
}
