// What a transfer must do, by definition: address arithmetic cell by cell, from what the caller wrote. Shares no code
// with lib/: it neither fuses nor merges, and knows nothing of views, programs or plans.

/** A component as a caller describes it, and where its regions lie. */
export interface OracleComponent {
  readonly name: string;
  readonly config: OracleConfig;
  readonly arrangement: OracleArrangement;
  readonly order: readonly OracleAxis[];
  readonly group: string;
  readonly wholeBlocks: boolean;
  /** Address of each region. */
  readonly regions: readonly number[];
}

export interface OracleConfig {
  readonly numBlocks: number;
  readonly numLayers: number;
  readonly outerDim: 1 | 2;
  readonly pageSize: number;
  readonly numHeads?: number;
  readonly headDim?: number;
  readonly innerDim?: number;
  readonly dtypeBits: number;
  readonly headWindow?: { readonly start: number; readonly total: number };
  readonly layerWindow?: { readonly start: number; readonly total: number };
  readonly layers?: readonly number[];
}

export type OracleAxis = "layer" | "outer" | "page" | "head";

export type OracleArrangement =
  | "fully-contiguous"
  | "layer-separate/block-first"
  | "layer-separate/block-second"
  | "LBHNC"
  | "LBNHC"
  | "LHBNC"
  | "BLHNC"
  | "BLNHC"
  | "BHLNC"
  | "NHD"
  | "HND"
  | "MLA"
  | {
      readonly strides: {
        readonly block: number;
        readonly layer?: number;
        readonly outer?: number;
        readonly page: number;
        readonly head?: number;
      };
      readonly regions: "one" | "per-layer" | "per-layer-and-outer";
    };

/** A transfer as a caller asks for it. */
export interface OracleRequest {
  readonly source: readonly OracleComponent[];
  readonly destination: readonly OracleComponent[];
  readonly sourceBlocks: Readonly<Record<string, readonly number[]>>;
  readonly destinationBlocks: Readonly<Record<string, readonly number[]>>;
  readonly components?: readonly string[];
  readonly layers?: { readonly start: number; readonly end: number };
  readonly tokens?: {
    readonly sourceStart: number;
    readonly destinationStart: number;
    readonly count: number;
  };
}

/** Every row that must be copied, and how many bytes the destination was asked to get. */
export interface OracleResult {
  /** Layer (the model's where a side has a shard), source address, destination address, bytes: four numbers a row. */
  readonly rows: readonly number[];
  readonly movedBytes: number;
  readonly askedBytes: number;
}

interface Cell {
  readonly block: number;
  readonly layer: number;
  readonly outer: number;
  readonly page: number;
  readonly head: number;
}

/** Bytes of one head's elements; of a whole token where the caller gave `innerDim`. */
export function headBytes(config: OracleConfig): number {
  return ((config.innerDim ?? config.headDim ?? 0) * config.dtypeBits) / 8;
}

export function headCount(config: OracleConfig): number {
  return config.innerDim === undefined ? (config.numHeads ?? 0) : 1;
}

/** The model layer of each of the layout's layers. */
export function modelLayers(config: OracleConfig): readonly number[] {
  if (config.layers !== undefined) return config.layers;
  const first = config.layerWindow?.start ?? 0;
  return Array.from({ length: config.numLayers }, (_, index) => first + index);
}

/** Address of the first byte of a head's row, by the definition of each arrangement. */
export function addressOf(component: OracleComponent, cell: Cell): number {
  const { config, arrangement } = component;
  const B = config.numBlocks;
  const L = config.numLayers;
  const O = config.outerDim;
  const N = config.pageSize;
  const H = headCount(config);
  const R = headBytes(config);
  const { block: b, layer: l, outer: o, page: n, head: h } = cell;
  const region = (index: number): number => component.regions[index] ?? Number.NaN;
  if (typeof arrangement === "object") {
    const { strides } = arrangement;
    const inside = b * strides.block + n * strides.page + h * (strides.head ?? R);
    if (arrangement.regions === "one")
      return region(0) + inside + l * (strides.layer ?? 0) + o * (strides.outer ?? 0);
    if (arrangement.regions === "per-layer") return region(l) + inside + o * (strides.outer ?? 0);
    return region(l * O + o) + inside;
  }
  switch (arrangement) {
    case "fully-contiguous":
      return (
        region(0) +
        b * (L * O * N * H * R) +
        inOrder(component.order, { layer: [l, L], outer: [o, O], page: [n, N], head: [h, H] }) * R
      );
    case "layer-separate/block-first":
      return (
        region(l) +
        b * (O * N * H * R) +
        inOrder(component.order, { layer: [0, 1], outer: [o, O], page: [n, N], head: [h, H] }) * R
      );
    case "layer-separate/block-second":
      return (
        region(l) +
        o * (B * N * H * R) +
        b * (N * H * R) +
        inOrder(component.order, { layer: [0, 1], outer: [0, 1], page: [n, N], head: [h, H] }) * R
      );
    case "LBHNC":
      return region(l) + (((b * H + h) * N + n) * O + o) * R;
    case "LBNHC":
      return region(l) + (((b * N + n) * H + h) * O + o) * R;
    case "LHBNC":
      return region(l) + (((h * B + b) * N + n) * O + o) * R;
    case "BLHNC":
      return region(0) + ((((b * L + l) * H + h) * N + n) * O + o) * R;
    case "BLNHC":
      return region(0) + ((((b * L + l) * N + n) * H + h) * O + o) * R;
    case "BHLNC":
      return region(0) + ((((b * H + h) * L + l) * N + n) * O + o) * R;
    case "NHD":
      return region(l) + (((b * O + o) * N + n) * H + h) * R;
    case "HND":
      return region(l) + (((b * O + o) * H + h) * N + n) * R;
    case "MLA":
      return region(l) + (b * N + n) * R;
  }
}

/** All rows that a request must copy. The request is taken to be valid. */
export function expectedRows(request: OracleRequest): OracleResult {
  const rows: number[] = [];
  let movedBytes = 0;
  let askedBytes = 0;
  const sharded = (component: OracleComponent): boolean =>
    component.config.layers !== undefined || component.config.layerWindow !== undefined;
  for (const to of request.destination) {
    if (request.components !== undefined && !request.components.includes(to.name)) continue;
    const from = request.source.find((component) => component.name === to.name);
    const toIds = request.destinationBlocks[to.group] ?? [];
    const toLayers = modelLayers(to.config);
    const wanted = toLayers.filter(
      (layer) =>
        request.layers === undefined || (layer >= request.layers.start && layer < request.layers.end),
    );
    const toTokenBytes = headCount(to.config) * headBytes(to.config);
    const whole = to.wholeBlocks || from?.wholeBlocks === true;
    const tokens =
      whole || request.tokens === undefined ? toIds.length * to.config.pageSize : request.tokens.count;
    askedBytes += tokens * wanted.length * to.config.outerDim * toTokenBytes;
    if (from === undefined) continue;
    const fromIds = request.sourceBlocks[from.group] ?? [];
    // Without a shard on either side both count their own layers, which are the same.
    const fromLayers = sharded(from) || sharded(to) ? modelLayers(from.config) : toLayers;
    const fromStart = whole ? 0 : (request.tokens?.sourceStart ?? 0);
    const toStart = whole ? 0 : (request.tokens?.destinationStart ?? 0);
    for (let token = 0; token < tokens; token++) {
      const fromToken = fromStart + token;
      const toToken = toStart + token;
      const fromBlock = fromIds[Math.floor(fromToken / from.config.pageSize)] ?? Number.NaN;
      const toBlock = toIds[Math.floor(toToken / to.config.pageSize)] ?? Number.NaN;
      const fromPage = fromToken % from.config.pageSize;
      const toPage = toToken % to.config.pageSize;
      for (const layer of wanted) {
        const fromLayer = fromLayers.indexOf(layer);
        if (fromLayer < 0) continue;
        const toLayer = toLayers.indexOf(layer);
        for (let outer = 0; outer < to.config.outerDim; outer++) {
          for (const row of tokenRows(from.config, to.config)) {
            const source = addressOf(from, {
              block: fromBlock,
              layer: fromLayer,
              outer,
              page: fromPage,
              head: row.fromHead,
            });
            const destination = addressOf(to, {
              block: toBlock,
              layer: toLayer,
              outer,
              page: toPage,
              head: row.toHead,
            });
            rows.push(layer, source + row.fromByte, destination + row.toByte, row.bytes);
            movedBytes += row.bytes;
          }
        }
      }
    }
  }
  return { rows, movedBytes, askedBytes };
}

interface TokenRow {
  readonly fromHead: number;
  readonly fromByte: number;
  readonly toHead: number;
  readonly toByte: number;
  readonly bytes: number;
}

/** Which heads of a token both sides hold; a side without heads has their rows side by side. */
function tokenRows(from: OracleConfig, to: OracleConfig): readonly TokenRow[] {
  if (from.innerDim !== undefined && to.innerDim !== undefined)
    return [{ fromHead: 0, fromByte: 0, toHead: 0, toByte: 0, bytes: headBytes(to) }];
  const rows: TokenRow[] = [];
  if (from.innerDim !== undefined) {
    const bytes = headBytes(to);
    for (let head = 0; head < headCount(to); head++)
      rows.push({ fromHead: 0, fromByte: head * bytes, toHead: head, toByte: 0, bytes });
    return rows;
  }
  const bytes = headBytes(from);
  if (to.innerDim !== undefined) {
    for (let head = 0; head < headCount(from); head++)
      rows.push({ fromHead: head, fromByte: 0, toHead: 0, toByte: head * bytes, bytes });
    return rows;
  }
  const fromFirst = from.headWindow?.start ?? 0;
  const toFirst = to.headWindow?.start ?? 0;
  for (let toHead = 0; toHead < headCount(to); toHead++) {
    const fromHead = toFirst + toHead - fromFirst;
    if (fromHead >= 0 && fromHead < headCount(from))
      rows.push({ fromHead, fromByte: 0, toHead, toByte: 0, bytes });
  }
  return rows;
}

/** Position among the axes, the last one of the order running fastest. */
function inOrder(
  order: readonly OracleAxis[],
  axes: Readonly<Record<OracleAxis, readonly [number, number]>>,
): number {
  let position = 0;
  for (const axis of order) position = position * axes[axis][1] + axes[axis][0];
  return position;
}
