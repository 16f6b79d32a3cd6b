import { MAX_FINGERPRINT_LENGTH, MAX_NAME_LENGTH } from "../core/bundle.ts";
import { MAX_GENERATION, MAX_LAYOUT_ID } from "../core/handle.ts";
import type { HostIdentity, MetadataPackage, PackageLayout } from "../core/package.ts";
import { decodeBody } from "./body.ts";
import type { BodyHost, PackageBody } from "./body.ts";
import { malformed, MAX_AUDIENCE, MAX_PACKAGE_LAYOUTS, mostShapes } from "./bounded.ts";
import { floatColumn, rowCount, splitTexts, wideColumn, wordColumn } from "./columns.ts";
import { authenticate, readEnvelope } from "./envelope.ts";
import type { MacFunction } from "./envelope.ts";
import { nextHandle, openHandles } from "./handles.ts";
import { openComponents, takeComponent, takeComponents } from "./package-components.ts";
import { COMPONENT_WORDS, LAYOUT_WORDS, READ_ONLY, STAGED, TIERS } from "./rows.ts";
import { SHAPE_NUMBERS, SHAPE_WORDS } from "./shape-rows.ts";
import type { PackageShape } from "./shape-rows.ts";
import { readShapes } from "./shape-read.ts";

/**
 * Reads a package of kvferry's own format into the common form, with configs and views computed anew.
 *
 * All objects are frozen; lists are read-only by type (a frozen list becomes a hash table in JavaScriptCore).
 *
 * @param mac - Demands an authentication code of a key that this function knows. Nothing of the body is decoded
 *   before that is checked.
 * @throws KvferryError `METADATA_MALFORMED` with offset and reason, `METADATA_UNAUTHENTICATED`.
 */
export function decodeKvferryPackage(
  bytes: Uint8Array,
  mac: MacFunction | null = null,
  maxBytes?: number,
): MetadataPackage {
  const envelope = readEnvelope(bytes, maxBytes);
  if (mac !== null) authenticate(envelope, mac);
  const body = decodeBody(envelope);
  const shapeRows = rowCount(body.shapeWords, SHAPE_WORDS * 4, "shapeWords");
  const texts = readTexts(body, shapeRows, envelope.bodyAt);
  const components = rowCount(body.components, COMPONENT_WORDS * 4, "components");
  if (shapeRows > mostShapes(bytes.length, components))
    throw tooManyShapes(shapeRows, components, bytes.length, envelope.bodyAt);
  const shapes = readShapes({
    numbers: floatColumn(body.shapeNumbers, shapeRows * SHAPE_NUMBERS, "shapeNumbers"),
    words: wordColumn(body.shapeWords, shapeRows * SHAPE_WORDS, "shapeWords"),
    layers: wordColumn(body.shapeLayers, rowCount(body.shapeLayers, 4, "shapeLayers"), "shapeLayers"),
    texts,
    offset: envelope.bodyAt,
    bytes: bytes.length,
  });
  return Object.freeze({
    format: "kvferry" as const,
    workerId: body.worker,
    agentName: body.agent,
    wireName: body.wire,
    incarnation: body.incarnation,
    sequence: body.sequence,
    issuedAtMs: body.issued,
    expiresAtMs: body.expires,
    audience: body.audience === null ? null : readAudience(body.audience, envelope.bodyAt),
    nixlMetadata: body.nixl.slice(),
    host: body.host === null ? null : hostOf(body.host),
    layouts: readLayouts(body, texts, shapes, envelope.bodyAt, bytes.length),
  });
}

/** All strings: names and groups of shapes, names and fingerprints of layouts, none that nobody could name. */
function readTexts(body: PackageBody, shapeRows: number, offset: number): readonly string[] {
  const rows = rowCount(body.textEnds, 4, "textEnds");
  const layoutRows = rowCount(body.layouts, LAYOUT_WORDS * 4, "layouts");
  if (rows > 2 * (shapeRows + layoutRows))
    throw malformed("kvferry", offset, `${rows} strings for ${layoutRows} layouts`, { rows });
  return splitTexts(body.text, wordColumn(body.textEnds, rows, "textEnds"));
}

function readLayouts(
  body: PackageBody,
  texts: readonly string[],
  shapes: readonly PackageShape[],
  offset: number,
  bytes: number,
): readonly PackageLayout[] {
  const rows = rowCount(body.layouts, LAYOUT_WORDS * 4, "layouts");
  if (rows > MAX_PACKAGE_LAYOUTS) throw tooManyLayouts(rows, offset);
  const generations = floatColumn(body.generations, rows, "generations");
  const words = wordColumn(body.layouts, rows * LAYOUT_WORDS, "layouts");
  const source = openComponents(body, shapes, offset, bytes);
  const layouts: PackageLayout[] = [];
  const handles = openHandles(body.worker);
  let previous = -1;
  for (let row = 0; row < rows; row++) {
    const at = row * LAYOUT_WORDS;
    const id = words[at] ?? 0;
    if (id <= previous || id > MAX_LAYOUT_ID) throw badId(row, id, previous, offset);
    previous = id;
    const flags = words[at + 4] ?? 0;
    const tier = TIERS[flags & 3];
    if (flags > 15 || tier === undefined) throw badLayout(id, `flags ${flags}`, offset);
    const fingerprint = words[at + 2] ?? 0;
    const count = words[at + 3] ?? 0;
    const components =
      count === 1 && source.next < source.rows
        ? [takeComponent(source, id, true)]
        : takeComponents(source, count, id);
    const generation = generations[row] ?? 0;
    // The fraction, the sign and the size in one comparison each, without calls.
    if (!(generation % 1 === 0 && generation >= 0 && generation <= MAX_GENERATION))
      throw badLayout(id, `the generation ${generation}`, offset);
    const name = texts[words[at + 1] ?? 0];
    layouts.push(
      Object.freeze({
        handle: nextHandle(handles, id, generation),
        name:
          name !== undefined && name.length <= MAX_NAME_LENGTH
            ? name
            : readText(texts, words[at + 1] ?? 0, MAX_NAME_LENGTH, offset),
        tier,
        access: (flags & READ_ONLY) !== 0 ? ("read" as const) : ("read-write" as const),
        fingerprint:
          fingerprint === 0 ? null : readText(texts, fingerprint - 1, MAX_FINGERPRINT_LENGTH, offset),
        stagedOnly: (flags & STAGED) !== 0,
        components,
      }),
    );
  }
  if (source.next !== source.rows || source.region !== source.addresses.length) throw spareRows(offset);
  return layouts;
}

// Refusals have functions of their own, which a package that is right never compiles.

function tooManyShapes(shapes: number, components: number, bytes: number, offset: number): Error {
  const limit = mostShapes(bytes, components);
  return malformed(
    "kvferry",
    offset,
    `${shapes} different shapes with ${components} components, more than the ${limit} of a package of ${bytes} bytes`,
    { shapes, limit },
  );
}

function tooManyLayouts(rows: number, offset: number): Error {
  return malformed("kvferry", offset, `${rows} layouts, more than ids`, { rows });
}

function badId(row: number, id: number, previous: number, offset: number): Error {
  return malformed("kvferry", offset, `layout ${row} has the id ${id} after ${previous}`, { row, id });
}

function badLayout(id: number, what: string, offset: number): Error {
  return malformed("kvferry", offset, `layout ${id} has ${what}`, { id });
}

function spareRows(offset: number): Error {
  return malformed("kvferry", offset, "components or regions are listed that belong to no layout");
}

function readText(texts: readonly string[], index: number, longest: number, offset: number): string {
  const text = texts[index];
  if (text === undefined || text === "" || text.length > longest)
    throw malformed("kvferry", offset, `string ${index} is no name of 1 to ${longest} characters`, { index });
  return text;
}

function readAudience(column: Uint8Array, offset: number): readonly bigint[] {
  const rows = rowCount(column, 8, "audience");
  if (rows > MAX_AUDIENCE)
    throw malformed("kvferry", offset, `an audience of ${rows}, more than ${MAX_AUDIENCE}`, { rows });
  const ids = wideColumn(column, rows, "audience");
  const audience: bigint[] = [];
  for (let row = 0; row < rows; row++) audience.push(ids[row] ?? 0n);
  return audience;
}

function hostOf(host: BodyHost): HostIdentity {
  return Object.freeze({
    bootId: host.boot,
    namespaces: Object.freeze({ pid: host.pid, ipc: host.ipc, net: host.net, user: host.user }),
    userId: host.uid,
    processId: host.process,
    rendezvous: host.rendezvous,
  });
}
