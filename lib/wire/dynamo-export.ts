import { orderName } from "../core/axes.ts";
import { DEFAULT_GROUP, SHORT_FORM_COMPONENT } from "../core/bundle.ts";
import { KvferryError } from "../core/errors.ts";
import { handleLayoutId, handleWorkerId, makeHandle } from "../core/handle.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "../core/package.ts";
import { mostDynamoLayouts, mostRegions, mostShapes } from "./bounded.ts";
import { encodeDynamoPackage } from "./dynamo.ts";
import { leastBytesToSort } from "./regions.ts";
import type {
  CustomAxis,
  DynamoFormat,
  DynamoLayoutConfig,
  DynamoLayoutDetails,
  DynamoPackage,
  DynamoPackageLayout,
  InnerShape,
  KvBlockLayout,
  WideInteger,
} from "./dynamo-types.ts";

/**
 * Writes a package in one of Dynamo's formats.
 *
 * What would change which bytes move or who may touch them, and has no place in the format, is refused: nothing of
 * that kind is dropped in silence. Labels without a place (names, tiers in dynamo-1.0, element types, the GPU that pinned
 * memory lies near) and what only kvferry peers use (generation, sequence, host) are left out; so are disk layouts, as the original leaves them out.
 *
 * @throws KvferryError `INVALID_CONFIG` whose details name the `thing` and the layout.
 */
export function exportDynamoPackage(value: MetadataPackage, format: DynamoFormat): Uint8Array {
  if (value.expiresAtMs !== null) throw unsayable(format, "an expiry", null);
  if (value.audience !== null) throw unsayable(format, "an audience", null);
  const layouts: DynamoPackageLayout<WideInteger>[] = [];
  for (const layout of value.layouts) {
    if (layout.components.some(({ storage }) => storage.kind === "disk")) continue;
    layouts.push(layoutFor(value, layout, format));
  }
  const packed: DynamoPackage<WideInteger> = {
    worker_address: { worker_id: value.workerId, nixl_agent_name: value.wireName },
    nixl_metadata: value.nixlMetadata,
    layouts,
  };
  const bytes = encodeDynamoPackage(packed, format);
  // What kvferry itself would not take is not written.
  checkLimit(format, bytes, "layouts", layouts.length, mostDynamoLayouts(bytes.length));
  let regions = 0;
  for (const { layout } of layouts) regions += layout.memory_descriptors.length;
  checkLimit(format, bytes, "regions", regions, mostRegions(bytes.length));
  const least = leastBytesToSort(value.layouts);
  if (least > bytes.length)
    throw unsayable(format, `regions out of order in ${bytes.length} bytes (at least ${least})`, null);
  const mostDifferent = mostShapes(bytes.length, layouts.length);
  const views = new Set(value.layouts.map((layout) => layout.components[0]?.view));
  // Views that are not one object may still be equal.
  if (views.size > mostDifferent) checkLimit(format, bytes, "shapes", shapesOf(layouts), mostDifferent);
  return bytes;
}

function checkLimit(
  format: DynamoFormat,
  bytes: Uint8Array,
  what: string,
  found: number,
  most: number,
): void {
  if (found > most)
    throw unsayable(format, `${found} ${what} in ${bytes.length} bytes (at most ${most})`, null);
}

function shapesOf(layouts: readonly DynamoPackageLayout<WideInteger>[]): number {
  const shapes = new Set<string>();
  for (const { layout } of layouts)
    shapes.add(`${Object.values(layout.layout_config).join()};${JSON.stringify(layout.layout_type_details)}`);
  return shapes.size;
}

function layoutFor(
  value: MetadataPackage,
  layout: PackageLayout,
  format: DynamoFormat,
): DynamoPackageLayout<WideInteger> {
  const component = onlyComponent(layout, format);
  if (handleWorkerId(layout.handle) !== value.workerId)
    throw unsayable(format, "a handle of another worker", layout);
  if (layout.fingerprint !== null) throw unsayable(format, "a fingerprint", layout);
  if (layout.access !== "read-write") throw unsayable(format, "access other than read-write", layout);
  const addresses = component.regionAddresses;
  const { storage } = component;
  const details = detailsFor(component, layout, format);
  const descriptor = {
    version: 1,
    layout_config: configFor(component, layout, format),
    location:
      storage.kind === "device"
        ? { Device: storage.device }
        : storage.kind === "pinned"
          ? ("Pinned" as const)
          : ("System" as const),
    nixl_metadata: {
      agent_name: value.wireName,
      mem_type: storage.kind === "device" ? ("Vram" as const) : ("Dram" as const),
      device_id: component.nixlDevice,
    },
    memory_descriptors: Array.from(addresses, (addr, index) => ({
      addr,
      size: component.regionSizes[index] ?? 0,
    })),
    layout_type_details: details,
  };
  const handle = makeHandle(value.workerId, handleLayoutId(layout.handle));
  return format === "dynamo-1.0"
    ? { handle, layout: descriptor }
    : { handle, logical_type: layout.tier, layout: descriptor };
}

function onlyComponent(layout: PackageLayout, format: DynamoFormat): PackageComponent {
  const [component, ...more] = layout.components;
  if (component === undefined || more.length > 0)
    throw unsayable(format, `a bundle of ${layout.components.length} components`, layout);
  if (component.name !== SHORT_FORM_COMPONENT)
    throw unsayable(format, `a component named ${JSON.stringify(component.name)}`, layout);
  if (component.group !== DEFAULT_GROUP)
    throw unsayable(format, `a group of block ids (${JSON.stringify(component.group)})`, layout);
  if (component.alias) throw unsayable(format, "alias", layout);
  if (component.wholeBlocks) throw unsayable(format, "wholeBlocks", layout);
  const { config } = component;
  if (config.headWindow !== null) throw unsayable(format, "a headWindow", layout);
  if (config.modelLayers !== null)
    throw unsayable(
      format,
      config.modelLayerTotal === null ? "a list of model layers" : "a layerWindow",
      layout,
    );
  return component;
}

function configFor(
  component: PackageComponent,
  layout: PackageLayout,
  format: DynamoFormat,
): DynamoLayoutConfig<WideInteger> {
  const { config } = component;
  const width = config.elementBits / 8;
  if (width !== 2 && width !== 4 && width !== 8)
    throw unsayable(
      format,
      `an element of ${config.elementBits} bits (its readers take 2, 4 or 8 bytes)`,
      layout,
    );
  const common = {
    num_blocks: config.numBlocks,
    num_layers: config.numLayers,
    outer_dim: config.outerDim,
    page_size: config.pageSize,
    inner_dim: config.innerDim,
    alignment: config.alignment,
    dtype_width_bytes: width,
  };
  if (format === "dynamo-1.0") return { ...common, inner_shape: innerShape(component, layout) };
  return { ...common, num_heads: config.headsKnown ? config.numHeads : null };
}

function innerShape(component: PackageComponent, layout: PackageLayout): InnerShape {
  switch (orderName(component.order)) {
    // Tokens whose heads are not known are opaque: no order is claimed for them.
    case "nhd":
      return component.config.headsKnown ? "NHD" : "Unknown";
    case "hnd":
      return "HND";
    default:
      throw unsayable("dynamo-1.0", `the order ${component.order.join(", ")}`, layout);
  }
}

function detailsFor(
  component: PackageComponent,
  layout: PackageLayout,
  format: DynamoFormat,
): DynamoLayoutDetails {
  const { arrangement } = component;
  const kv = (): { readonly kv_block_layout?: KvBlockLayout } =>
    format === "dynamo-1.0" ? {} : { kv_block_layout: blockLayout(component, layout) };
  switch (arrangement) {
    case "fully-contiguous":
      return { FullyContiguous: { block_format: "Operational", ...kv() } };
    case "layer-separate/block-first":
      return { LayerSeparate: { block_dim: "BlockIsFirstDim", ...kv() } };
    case "layer-separate/block-second":
      return { LayerSeparate: { block_dim: "BlockIsSecondDim", ...kv() } };
    default:
      throw unsayable(
        format,
        typeof arrangement === "string" ? `the arrangement ${arrangement}` : "an arrangement by strides",
        layout,
      );
  }
}

function blockLayout(component: PackageComponent, layout: PackageLayout): KvBlockLayout {
  const { config, order, arrangement } = component;
  const name = orderName(order);
  if (name === "nhd") return config.headsKnown ? "OperationalNHD" : "Unknown";
  if (name === "hnd") return "OperationalHND";
  // Its readers turn these into unknown ones, and opaque tokens have no heads to put outside.
  if (arrangement !== "fully-contiguous")
    throw unsayable("kvbm-physical-1", `the order ${order.join(", ")} in separate layers`, layout);
  if (!config.headsKnown && order.indexOf("head") < Math.max(order.indexOf("layer"), order.indexOf("outer")))
    throw unsayable(
      "kvbm-physical-1",
      `the order ${order.join(", ")} of tokens whose heads are not known`,
      layout,
    );
  if (name === "universal-tp") return "UniversalTP";
  if (name === "universal-pp") return "UniversalPP";
  const [first, second, third, fourth] = order.map((axis) => AXES[axis]);
  if (first === undefined || second === undefined || third === undefined || fourth === undefined)
    throw unsayable("kvbm-physical-1", `an order of ${order.length} axes`, layout);
  return { Custom: [first, second, third, fourth] };
}

const AXES: Readonly<Record<"layer" | "outer" | "page" | "head", CustomAxis>> = {
  layer: "Layer",
  outer: "Outer",
  page: "Page",
  head: "Head",
};

function unsayable(format: DynamoFormat, thing: string, layout: PackageLayout | null): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    "encodePackage",
    `format ${format} has no place for ${thing}${layout === null ? "" : ` (layout ${JSON.stringify(layout.name)})`}`,
    "Export in kvferry's own format, or leave the thing out of the layout.",
    { format, thing, ...(layout === null ? {} : { layout: layout.name, handle: layout.handle.toString() }) },
  );
}
