import type { HostIdentity } from "../core/package.ts";
import { nodeLibrary } from "../native/node-library.ts";

/** What decides which of UCX's transports carries bytes to a peer. */
export interface TransportClues {
  /** Where this process and the peer run; null where one did not say. */
  readonly own: Pick<HostIdentity, "bootId"> | null;
  readonly peer: Pick<HostIdentity, "bootId"> | null;
  /** The variable UCX_TLS, by which a user allows or forbids transports. */
  readonly allowed: string | undefined;
  /** Whether this host has an RDMA device. */
  readonly rdma: boolean;
}

/**
 * The transport that UCX will probably take to a peer, as the machine profile names it.
 *
 * @returns Undefined where nothing is known of the peer's host.
 */
export function likelyTransport({
  own,
  peer,
  allowed,
  rdma,
}: TransportClues): "cma" | "tcp" | "rdma" | undefined {
  if (own === null || peer === null) return undefined;
  if (own.bootId === peer.bootId) return permits(allowed, SHARED) ? "cma" : "tcp";
  return rdma && permits(allowed, RDMA) ? "rdma" : "tcp";
}

/** Whether the kernel knows an RDMA device. */
export function hasRdma(): boolean {
  try {
    return nodeLibrary.fs.readdirSync("/sys/class/infiniband").length > 0;
  } catch {
    return false;
  }
}

const SHARED: readonly string[] = ["cma", "sm", "shm"];
const RDMA: readonly string[] = ["rc", "rc_x", "rc_v", "rc_mlx5", "rc_verbs", "dc", "dc_x", "ib", "ud"];

/** UCX_TLS names what is allowed, or after a `^` what is not. */
function permits(allowed: string | undefined, transports: readonly string[]): boolean {
  if (allowed === undefined || allowed === "") return true;
  const forbids = allowed.startsWith("^");
  const names = (forbids ? allowed.slice(1) : allowed).split(",").map((name) => name.trim());
  if (forbids) return transports.some((name) => !names.includes(name));
  return names.includes("all") || transports.some((name) => names.includes(name));
}
