/**
 * `kvferry/core`: the pure part. Values in, values out: no FFI, no clock, no I/O, no randomness; runs wherever
 * JavaScript runs.
 */
export type {
  Arrangement,
  ArrangementPreset,
  EnginePreset,
  Order,
  OrderAxis,
  OrderName,
  RegionScheme,
  StridedArrangement,
} from "./arrangement.ts";
export type { ResolvedArrangement } from "./arrangement-view.ts";
export { arrangementView, DEFAULT_ARRANGEMENT, resolveArrangement } from "./arrangement-view.ts";
export {
  attachmentBases,
  isDirect,
  mappedAddresses,
  openFile,
  ownAddresses,
  throughNixl,
  throughPeer,
} from "./attachment.ts";
export type { PresetAxis, ResolvedOrder } from "./axes.ts";
export {
  ENGINE_AXES,
  isEnginePreset,
  ORDER_AXES,
  orderName,
  ORDERS,
  resolveOrder,
  sameOrder,
} from "./axes.ts";
export type { ResolvedComponent, ResolvedLayout } from "./bundle.ts";
export {
  DEFAULT_GROUP,
  MAX_COMPONENTS,
  MAX_FINGERPRINT_LENGTH,
  MAX_NAME_LENGTH,
  resolveLayout,
  SHORT_FORM_COMPONENT,
} from "./bundle.ts";
export type { ShapeParts } from "./component-shape.ts";
export { resolveShape } from "./component-shape.ts";
export type { AxisWindow, DTypeName, LayoutConfig, ResolvedConfig } from "./config.ts";
export { configOf, MAX_AXIS, MAX_BLOCKS, MAX_LAYERS, resolveConfig } from "./config-resolve.ts";
export type { PlacedComponent, SharedBytes } from "./coverage.ts";
export { findSharedBytes, MAX_REGION_PAIRS } from "./coverage.ts";
export { DEFAULT_ELEMENT_BITS, DTYPE_BITS, dtypeBits, isDTypeName } from "./dtype.ts";
export type { ErrorCode, ErrorDetails, ErrorWord, Settlement } from "./errors.ts";
export { ERROR_CODES, isKvferryError, KvferryError } from "./errors.ts";
export type { LayoutHandle } from "./handle.ts";
export {
  formatHandle,
  handleGeneration,
  handleLayoutId,
  handleWorkerId,
  makeHandle,
  MAX_GENERATION,
  MAX_LAYOUT_ID,
} from "./handle.ts";
export { checkedInteger, checkedProduct, checkedSum, greatestCommonDivisor, U64_MAX } from "./integers.ts";
export type {
  Access,
  Attachment,
  ComponentRecord,
  ComponentShape,
  ComponentSpec,
  LayoutCommon,
  LayoutRecord,
  LayoutSpec,
  MemorySpec,
  Region,
  Storage,
  StorageKind,
  Tier,
} from "./layout.ts";
export { checkMemory, placementsOf, storageOf, tierOf } from "./memory-spec.ts";
export type { OverlapVerdict, StridedSet } from "./overlap.ts";
export { OVERLAP_BUDGET, regionSet, stridedSetOverlapsItself, stridedSetsOverlap } from "./overlap.ts";
export type {
  HostIdentity,
  MetadataPackage,
  PackageComponent,
  PackageFormat,
  PackageLayout,
} from "./package.ts";
export type { PersistentVector } from "./persistent-vector.ts";
export { emptyVector, vectorAt, vectorPush, vectorSet, vectorValues } from "./persistent-vector.ts";
export type { ExecutorName, Hop, Leg, MethodCandidate, TransferPlan } from "./plan.ts";
export type { CopyProgram, ProgramMemory } from "./program.ts";
export { MAX_LOOPS } from "./program.ts";
export * from "./registry.ts";
export type { BlockList, BlockSelection, PlanRequest } from "./request.ts";
export type { TensorAxis, TensorDescription, TensorLayout, TensorNumbers } from "./tensor.ts";
export type { TensorDType } from "./tensor-dtype.ts";
export { layoutFromTensor } from "./tensor.ts";
export type { StridedView } from "./view.ts";
export { descriptorsOf } from "./compile.ts";
export type { BesideLists } from "./encode.ts";
export { encodeHop, HOP_HEADER_WORDS, HOP_MAGIC, HOP_VERSION, listsBeside, PROGRAM_WORDS } from "./encode.ts";
export type { Explanation, HopExplanation, ProgramSummary } from "./explain.ts";
export { explainPlan, formatExplanation } from "./explain.ts";
export type { Choice } from "./method.ts";
export type { Work } from "./work.ts";
export { chooseMethod, hostCopyMicros } from "./method.ts";
export { planPrepared, planTransfer } from "./planner.ts";
export type { PreparedPair, PrepareRequest } from "./prepare.ts";
export { preparePair } from "./prepare.ts";
export type {
  CudaProfile,
  FileProfile,
  HostProfile,
  MachineProfile,
  NixlProfile,
  NixlTransportProfile,
  RatePoint,
} from "./profile.ts";
export { cudaProfileOf, defaultProfile, hopperCuda, unknownCuda } from "./machine-figures.ts";
export { rateAt } from "./profile.ts";
export type { PlanEnvironment } from "./environment.ts";
export type { Place, Reach, Route, RouteRule } from "./route.ts";
export { findRoute, placeOf, ROUTES } from "./route.ts";
