import type { Arrangement } from "../core/arrangement.ts";
import { resolveArrangement } from "../core/arrangement-view.ts";
import type { ResolvedOrder } from "../core/axes.ts";
import { ORDERS, resolveOrder } from "../core/axes.ts";
import type { ResolvedConfig } from "../core/config.ts";
import { resolveConfig } from "../core/config-resolve.ts";
import type { StridedView } from "../core/view.ts";
import { malformed, mostShapes, refusedAs } from "./bounded.ts";
import { customAxes } from "./dynamo.ts";
import { CONFIG_FIELDS } from "./dynamo-scratch.ts";
import type { LayoutScratch } from "./dynamo-scratch.ts";
import type { DynamoFormat } from "./dynamo-types.ts";

/** What layouts of one config and kind have in common. Frozen. */
export interface DynamoShape {
  readonly config: ResolvedConfig;
  readonly arrangement: Arrangement;
  readonly order: ResolvedOrder;
  readonly view: StridedView;
}

/** The shapes of a package; layouts that say the same share one. */
export interface ShapeBook {
  readonly format: DynamoFormat;
  /** The package. */
  readonly bytes: Uint8Array;
  /** At most this many shapes. */
  readonly limit: number;
  readonly known: Map<string, DynamoShape>;
  /** Which reading of a config the layout before had, its form, and its shape: the same two mean the same shape. */
  reading: number;
  form: number;
  last: DynamoShape | null;
}

/** An empty book for a package with so many layouts. */
export function openShapes(format: DynamoFormat, bytes: Uint8Array, layouts: number): ShapeBook {
  return {
    format,
    bytes,
    limit: mostShapes(bytes.length, layouts),
    known: new Map(),
    reading: -1,
    form: -1,
    last: null,
  };
}

/**
 * The shape of a scanned layout: checked products, strides and order.
 *
 * @throws KvferryError `METADATA_MALFORMED` with what the crates' own constructors or kvferry refuse.
 */
export function shapeOf(book: ShapeBook, scratch: LayoutScratch): DynamoShape {
  // Each config has one spelling, so its bytes name it.
  const { configAt, configLength, form } = scratch;
  const config = book.bytes.subarray(configAt, configAt + configLength) as unknown as number[];
  const key = String.fromCharCode(form) + String.fromCharCode.apply(null, config);
  let shape = book.known.get(key);
  if (shape === undefined) {
    if (book.known.size >= book.limit)
      throw refused(book, scratch, `more than ${book.limit} different shapes in a package of this length`);
    shape = refusedAs(book.format, scratch.at, "layout_config", () => newShape(book, scratch));
    book.known.set(key, shape);
  }
  book.last = shape;
  book.reading = scratch.configReading;
  book.form = form;
  return shape;
}

function newShape(book: ShapeBook, scratch: LayoutScratch): DynamoShape {
  const field = (index: number): number => narrow(book, scratch, index);
  const width = field(6);
  // The formats have a place for one-byte elements, but the crates' own readers refuse them.
  if (width !== 2 && width !== 4 && width !== 8)
    throw refused(book, scratch, `dtype_width_bytes is ${width}, not 2, 4 or 8`);
  const { order, heads } = blockOrder(book, scratch);
  const inner = field(4);
  if (heads !== null && (heads === 0 || inner % heads !== 0))
    throw refused(book, scratch, `num_heads ${heads} does not divide inner_dim ${inner}`);
  const config = resolveConfig(
    {
      numBlocks: field(0),
      numLayers: field(1),
      outerDim: field(2) as 1 | 2, // checked there
      pageSize: field(3),
      ...(heads === null ? { innerDim: inner } : { numHeads: heads, headDim: inner / heads }),
      dtypeBits: width * 8,
      alignment: field(5),
    },
    "decodePackage",
  );
  const arrangement =
    scratch.details === 0
      ? "fully-contiguous"
      : scratch.sub === 0
        ? "layer-separate/block-first"
        : "layer-separate/block-second";
  const { view } = resolveArrangement(config, arrangement, order, "decodePackage");
  return Object.freeze({ config, arrangement, order, view });
}

/**
 * The order inside a block, and the heads where the package says how they lie. Unknown orders are opaque tokens: `nhd`
 * with one head of `inner_dim` elements, so that nothing is ever reordered by a guess.
 */
function blockOrder(
  book: ShapeBook,
  scratch: LayoutScratch,
): { readonly order: ResolvedOrder; readonly heads: number | null } {
  if (scratch.innerShape >= 0)
    return { order: scratch.innerShape === HND_SHAPE ? ORDERS.hnd : ORDERS.nhd, heads: null };
  const operational = scratch.kvLayout === OPERATIONAL_HND || scratch.kvLayout === OPERATIONAL_NHD;
  // The crate itself rebuilds layer-separate layouts of any but the two operational orders as unknown ones.
  if (scratch.kvLayout === UNKNOWN || (scratch.details === 1 && !operational))
    return { order: ORDERS.nhd, heads: null };
  const order =
    KV_ORDERS[scratch.kvLayout] ??
    resolveOrder(
      customAxes(scratch.custom).map((axis) => AXES[axis]),
      "decodePackage",
    );
  if (scratch.headsKnown) return { order, heads: scratch.heads1 * 2 ** 32 + scratch.heads0 };
  if (order.indexOf("head") < Math.max(order.indexOf("layer"), order.indexOf("outer")))
    throw refused(
      book,
      scratch,
      "heads lie outside layers or outers, and num_heads does not say how many there are",
    );
  return { order, heads: null };
}

const HND_SHAPE = 2;
const OPERATIONAL_HND = 2;
const OPERATIONAL_NHD = 3;
const UNKNOWN = 5;

const KV_ORDERS: readonly (ResolvedOrder | undefined)[] = [
  ORDERS["universal-tp"],
  ORDERS["universal-pp"],
  ORDERS.hnd,
  ORDERS.nhd,
];

const AXES = { Layer: "layer", Outer: "outer", Page: "page", Head: "head" } as const;

function narrow(book: ShapeBook, scratch: LayoutScratch, index: number): number {
  const high = scratch.config[2 * index + 1] ?? 0;
  if (high >= 2 ** 21) throw refused(book, scratch, `${CONFIG_FIELDS[index]} passes 2^53`);
  return high * 2 ** 32 + (scratch.config[2 * index] ?? 0);
}

function refused(book: ShapeBook, scratch: LayoutScratch, reason: string): Error {
  return malformed(book.format, scratch.at, reason);
}
