// oxlint-disable-next-line typescript/triple-slash-reference -- a virtual module is nothing that could be imported
/// <reference path="./lib/plugin/native-module.d.ts" preserve="true" />
export { Transport } from "./lib/runtime/transport.ts";
export { LocalLayout, type UnregisterOptions } from "./lib/runtime/local-layout.ts";
export type { LocalComponent } from "./lib/runtime/local-component.ts";
export { RemoteLayout, type RemoteComponent } from "./lib/runtime/remote-layout.ts";
export { Peer, type PeerLoss } from "./lib/runtime/peer.ts";
export {
  Transfer,
  type SettledTransfer,
  type TransferResult,
  type TransferState,
} from "./lib/runtime/transfer.ts";
export { PreparedTransfer, type RunOptions } from "./lib/runtime/prepared.ts";
export { Arrival, type ArrivalResult, type ExpectOptions } from "./lib/runtime/arrival.ts";
export type { BlockRange, FillPattern } from "./lib/runtime/block-arguments.ts";
export type { CloseReport } from "./lib/runtime/closing.ts";
export type { TransportDump } from "./lib/runtime/dump.ts";
export type {
  PeerEvent,
  QuarantineEvent,
  TransferEvent,
  TransportEvents,
  WarningEvent,
} from "./lib/runtime/events.ts";
export type { ExportOptions } from "./lib/runtime/exporting.ts";
export type { QuarantinedBlock } from "./lib/runtime/leases.ts";
export { prometheusText, type RouteMetrics, type TransportMetrics } from "./lib/runtime/metrics.ts";
export type { Notification, NotificationOptions } from "./lib/runtime/notifications.ts";
export type { OpenOptions, SecretKey } from "./lib/runtime/options.ts";
export type { OrderOptions } from "./lib/runtime/cuda-order.ts";
export type {
  LayoutReference,
  PrepareRequest,
  TransferOptions,
  TransferRequest,
} from "./lib/runtime/submit.ts";
export {
  ERROR_CODES,
  isKvferryError,
  KvferryError,
  type ErrorCode,
  type ErrorDetails,
  type ErrorWord,
  type Settlement,
} from "./lib/core/errors.ts";
export {
  formatHandle,
  handleGeneration,
  handleLayoutId,
  handleWorkerId,
  makeHandle,
  type LayoutHandle,
} from "./lib/core/handle.ts";
export { formatExplanation, type Explanation } from "./lib/core/explain.ts";
export { defaultProfile } from "./lib/core/machine-figures.ts";
export type { MachineProfile } from "./lib/core/profile.ts";
export type { AxisWindow, DTypeName, LayoutConfig, ResolvedConfig } from "./lib/core/config.ts";
export type {
  Arrangement,
  ArrangementPreset,
  EnginePreset,
  Order,
  OrderAxis,
  OrderName,
  RegionScheme,
  StridedArrangement,
} from "./lib/core/arrangement.ts";
export type {
  Access,
  ComponentSpec,
  LayoutSpec,
  MemorySpec,
  Region,
  Storage,
  StorageKind,
  Tier,
} from "./lib/core/layout.ts";
export type { BlockList, BlockSelection } from "./lib/core/request.ts";
export type { PackageFormat } from "./lib/core/package.ts";
