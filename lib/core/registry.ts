export type { ExportOptions } from "./registry-export.ts";
export { exportPackage } from "./registry-export.ts";
export { emptyRegistry, registerLayout, unregisterLayout } from "./registry-local.ts";
export type { Attach, ImportOptions } from "./registry-import.ts";
export { importPackage } from "./registry-import.ts";
export { forgetPeer, MAX_FORGOTTEN_PEERS, setAttachment, takeBackLayout } from "./registry-peers.ts";
export {
  getLayout,
  getLocal,
  getPeer,
  getRemote,
  isLocal,
  isRemote,
  localCount,
  localHandles,
  localLayouts,
  peers,
  remoteCount,
  remoteHandles,
  remoteLayouts,
} from "./registry-queries.ts";
export type {
  ForgottenPeer,
  FreeId,
  FreeIds,
  FreeSlot,
  NewLayout,
  PeerRecord,
  RegistryIdentity,
  RegistrySnapshot,
} from "./registry-snapshot.ts";
export { MAX_INCARNATION, REUSES_PER_INCARNATION } from "./registry-snapshot.ts";
