import type { HostIdentity } from "../core/package.ts";
import { nodeLibrary } from "../native/node-library.ts";

/** What two processes must have in common to share memory. */
export type HostPlace = Omit<HostIdentity, "rendezvous">;

const NAMESPACES: readonly (keyof HostIdentity["namespaces"])[] = ["pid", "ipc", "net", "user"];

/**
 * Where this process is: the kernel's boot id and the namespaces it lives in.
 *
 * @returns Null when the kernel does not say.
 */
export function hostPlace(): HostPlace | null {
  try {
    const [pid, ipc, net, user] = NAMESPACES.map((name) => namespaceOf(name));
    if (pid === undefined || ipc === undefined || net === undefined || user === undefined) return null;
    return {
      bootId: nodeLibrary.fs.readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
      namespaces: { pid, ipc, net, user },
      userId: process.geteuid?.() ?? -1,
      processId: process.pid,
    };
  } catch {
    return null;
  }
}

/**
 * Why a process cannot be a neighbour of this one, judged by where it says it is. Namespaces are compared, never
 * guessed.
 *
 * @returns A sentence, or null when nothing stands against it.
 */
export function strangerReason(own: HostPlace, other: HostPlace): string | null {
  if (own.bootId !== other.bootId) return "The peer is on another host.";
  const differing = NAMESPACES.filter((name) => own.namespaces[name] !== other.namespaces[name]);
  if (differing.length > 0)
    return `The peer is in another ${differing.join(", ")} namespace of this host (another container).`;
  if (own.userId !== other.userId)
    return `The peer runs as user ${other.userId}, this process as user ${own.userId}.`;
  return null;
}

function namespaceOf(name: string): string | undefined {
  return /\[(\d+)\]$/.exec(nodeLibrary.fs.readlinkSync(`/proc/self/ns/${name}`))?.[1];
}
