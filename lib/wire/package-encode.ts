import { handleGeneration, handleLayoutId, handleWorkerId, MAX_LAYOUT_ID } from "../core/handle.ts";
import { checkedInteger, U64_MAX } from "../core/integers.ts";
import type { HostIdentity, MetadataPackage, PackageComponent, PackageLayout } from "../core/package.ts";
import { unencodable } from "./bincode.ts";
import { leastBytes, MAX_AUDIENCE } from "./bounded.ts";
import { encodeBody } from "./body.ts";
import type { BodyHost, PackageBody } from "./body.ts";
import { columnBytes, textEnds, textIndex } from "./columns.ts";
import type { TextTable } from "./columns.ts";
import { writeEnvelope } from "./envelope.ts";
import type { SigningKey } from "./envelope.ts";
import { leastBytesToSort } from "./regions.ts";
import { COMPONENT_WORDS, LAYOUT_WORDS, NO_WORD, READ_ONLY, STAGED, STORAGES, TIERS } from "./rows.ts";
import { newShapeTable, shapeIndex } from "./shape-table.ts";

/**
 * Writes a package in kvferry's own format.
 *
 * @param signing - Authenticates the package; null leaves it without proof.
 * @returns Bytes that belong to the caller. Layouts stand in the order of their ids.
 * @throws KvferryError `INVALID_CONFIG` with the thing that cannot be written: handles of another worker, two layouts
 *   of one id, regions that do not match their views, more than 65,535 layouts.
 */
export function encodeKvferryPackage(value: MetadataPackage, signing: SigningKey | null = null): Uint8Array {
  checkWorkerId(value.workerId, "workerId");
  for (const id of value.audience ?? []) checkWorkerId(id, "audience");
  if ((value.audience?.length ?? 0) > MAX_AUDIENCE)
    throw unencodable("audience", `at most ${MAX_AUDIENCE} workers`, value.audience?.length);
  const layouts = inIdOrder(value);
  let componentCount = 0;
  let regionCount = 0;
  for (const layout of layouts) {
    componentCount += layout.components.length;
    for (const component of layout.components) regionCount += component.regionAddresses.length;
  }
  const texts: TextTable = { indices: new Map(), texts: [] };
  const shapes = newShapeTable();
  const generations = new Float64Array(new ArrayBuffer(layouts.length * 8));
  const layoutWords = new Uint32Array(new ArrayBuffer(layouts.length * LAYOUT_WORDS * 4));
  const componentWords = new Uint32Array(new ArrayBuffer(componentCount * COMPONENT_WORDS * 4));
  const nixlDevices = new Float64Array(new ArrayBuffer(componentCount * 8));
  const addresses = new Float64Array(new ArrayBuffer(regionCount * 8));
  const sizes = new Float64Array(new ArrayBuffer(regionCount * 8));
  let word = 0;
  let component = 0;
  let region = 0;
  for (const [index, layout] of layouts.entries()) {
    generations[index] = handleGeneration(layout.handle);
    layoutWords[word++] = handleLayoutId(layout.handle);
    layoutWords[word++] = textIndex(texts, layout.name);
    layoutWords[word++] = layout.fingerprint === null ? 0 : textIndex(texts, layout.fingerprint) + 1;
    layoutWords[word++] = layout.components.length;
    layoutWords[word++] =
      TIERS.indexOf(layout.tier) |
      (layout.access === "read" ? READ_ONLY : 0) |
      (layout.stagedOnly ? STAGED : 0);
    for (const part of layout.components) {
      checkComponent(part, layout);
      const { storage } = part;
      const device = storage.kind === "device" || storage.kind === "pinned" ? storage.device : undefined;
      componentWords[component * COMPONENT_WORDS] = shapeIndex(shapes, part, texts);
      componentWords[component * COMPONENT_WORDS + 1] = STORAGES.indexOf(storage.kind);
      componentWords[component * COMPONENT_WORDS + 2] = device ?? NO_WORD;
      nixlDevices[component++] = part.nixlDevice;
      addresses.set(part.regionAddresses, region);
      sizes.set(part.regionSizes, region);
      region += part.regionAddresses.length;
    }
  }
  const audience = value.audience;
  const body: PackageBody = {
    worker: value.workerId,
    agent: value.agentName,
    wire: value.wireName,
    incarnation: value.incarnation,
    sequence: value.sequence,
    issued: value.issuedAtMs,
    expires: value.expiresAtMs,
    audience: audience === null ? null : columnBytes(BigUint64Array.from(audience)),
    nixl: value.nixlMetadata,
    host: value.host === null ? null : bodyHost(value.host),
    text: texts.texts.join(""),
    textEnds: columnBytes(textEnds(texts.texts)),
    shapeNumbers: columnBytes(Float64Array.from(shapes.numbers)),
    shapeWords: columnBytes(Uint32Array.from(shapes.words)),
    shapeLayers: columnBytes(Uint32Array.from(shapes.layers)),
    generations: columnBytes(generations),
    layouts: columnBytes(layoutWords),
    components: columnBytes(componentWords),
    nixlDevices: columnBytes(nixlDevices),
    addresses: columnBytes(addresses),
    sizes: columnBytes(sizes),
  };
  const content = {
    components: componentCount,
    regions: regionCount,
    shapes: shapes.rows.size,
    listedLayers: shapes.layers.length,
  };
  const least = Math.max(leastBytes(content), leastBytesToSort(layouts));
  return writeEnvelope(encodeBody(filledUp(body, least)), signing);
}

/** Readers take much only from long packages: what is missing is filled with zeros. */
function filledUp(body: PackageBody, least: number): PackageBody {
  const missing = least === 0 ? 0 : least - encodeBody(body).length;
  return missing > 0 ? { ...body, padding: new Uint8Array(missing) } : body;
}

function inIdOrder(value: MetadataPackage): readonly PackageLayout[] {
  let rising = true;
  let previous = -1;
  for (const { handle } of value.layouts) {
    const id = handleLayoutId(handle);
    if (handleWorkerId(handle) !== value.workerId)
      throw unencodable("a layout's handle", `one of worker ${value.workerId}`, handle);
    if (id > MAX_LAYOUT_ID) throw unencodable("a layout id", `0 to ${MAX_LAYOUT_ID}`, id);
    if (id <= previous) rising = false;
    previous = id;
  }
  if (rising) return value.layouts;
  const sorted = value.layouts.toSorted((a, b) => handleLayoutId(a.handle) - handleLayoutId(b.handle));
  for (const [index, layout] of sorted.entries()) {
    const next = sorted[index + 1];
    if (next !== undefined && handleLayoutId(next.handle) === handleLayoutId(layout.handle))
      throw unencodable("a layout id", "used once in a package", handleLayoutId(layout.handle));
  }
  return sorted;
}

function checkWorkerId(id: bigint, field: string): void {
  if (typeof id !== "bigint" || id < 0n || id > U64_MAX)
    throw unencodable(field, "an unsigned 64-bit bigint", id);
}

function checkComponent(component: PackageComponent, layout: PackageLayout): void {
  const { storage, view, regionAddresses, regionSizes } = component;
  if ("device" in storage && storage.device !== undefined)
    checkedInteger(storage.device, "storage.device", 0, NO_WORD - 1, "encodePackage");
  const expected = storage.kind === "disk" ? 0 : view.regionCount;
  if (regionAddresses.length !== expected || regionSizes.length !== expected)
    throw unencodable(
      `the regions of ${component.name} in ${layout.name}`,
      `${expected}`,
      regionAddresses.length,
    );
}

function bodyHost(host: HostIdentity): BodyHost {
  const { pid, ipc, net, user } = host.namespaces;
  return {
    boot: host.bootId,
    pid,
    ipc,
    net,
    user,
    uid: host.userId,
    process: host.processId,
    rendezvous: host.rendezvous,
  };
}
