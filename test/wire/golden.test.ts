import { describe, expect, test } from "bun:test";
import { isKvferryError } from "../../lib/core/errors.ts";
import {
  decodeDynamoPackage,
  decodePackage,
  descriptorFromJson,
  descriptorToJson,
  encodeDynamoPackage,
} from "../../lib/wire/index.ts";
import { formatOf, goldenRecords, rawOf } from "./golden.ts";
import { malformedAt, refusalOf } from "./refusal.ts";

describe("bytes of the published crates", () => {
  test("every kind of record is there", () => {
    const kinds = new Map<string, number>();
    for (const { kind, crate } of goldenRecords)
      kinds.set(`${crate} ${kind}`, (kinds.get(`${crate} ${kind}`) ?? 0) + 1);
    expect(goldenRecords.length).toBeGreaterThanOrEqual(317);
    expect([...kinds.keys()].toSorted()).toEqual([
      "dynamo-llm decode",
      "dynamo-llm json-decode",
      "dynamo-llm package",
      "kvbm-physical decode",
      "kvbm-physical json-decode",
      "kvbm-physical package",
    ]);
  });

  for (const record of goldenRecords) {
    const format = formatOf(record);
    const title = `${record.crate} ${record.kind} ${record.name}`;
    if (record.kind === "package")
      test(`${title}: decodes to its input and encodes back to its bytes`, () => {
        const bytes = Uint8Array.fromHex(record.hex);
        const input = rawOf(record.input);
        expect(decodeDynamoPackage(bytes, format)).toStrictEqual(input);
        expect(encodeDynamoPackage(input, format).toHex()).toBe(record.hex);
        for (const { layout } of input.layouts)
          expect(descriptorFromJson(descriptorToJson(layout, format), format)).toStrictEqual(layout);
      });
    else if (record.kind === "decode" && !record.accepted)
      test(`${title}: is refused with its place`, () => {
        const bytes = Uint8Array.fromHex(record.hex);
        malformedAt(format, bytes.length, () => decodeDynamoPackage(bytes, format));
      });
    else if (record.kind === "decode")
      test(`${title}: is read the same, or refused where it is not canonical`, () => {
        const bytes = Uint8Array.fromHex(record.hex);
        if (record.canonical !== true) {
          refusalOf("METADATA_MALFORMED", () => decodeDynamoPackage(bytes, format));
          return;
        }
        const found = decodeDynamoPackage(bytes, format);
        const said: unknown = {
          handles: found.layouts.map(({ handle }) => handle.toString()),
          layouts_json: found.layouts.map(({ layout }) => descriptorToJson(layout, format)),
          ...(format === "kvbm-physical-1"
            ? { logical_types: found.layouts.map(({ logical_type }) => logical_type ?? "none") }
            : {}),
          nixl_agent_name: found.worker_address.nixl_agent_name,
          nixl_metadata_hex: found.nixl_metadata.toHex(),
          worker_id: found.worker_address.worker_id.toString(),
        };
        expect(said).toEqual(record.decoded);
        expect(encodeDynamoPackage(found, format).toHex()).toBe(record.hex);
      });
    else if (record.kind === "json-decode")
      test(`${title}: is ${record.accepted ? "taken" : "refused"}`, () => {
        if (!record.accepted) {
          refusalOf("METADATA_MALFORMED", () => descriptorFromJson(record.input, format));
          return;
        }
        const descriptor = descriptorFromJson(record.input, format);
        // What the text says is what is read: the same as JSON.parse finds, up to 2^53 and defaults.
        expect(descriptorFromJson(descriptorToJson(descriptor, format), format)).toStrictEqual(descriptor);
        const { addr } = JSON.parse(record.input).memory_descriptors[0];
        expect(Number(descriptor.memory_descriptors[0]?.addr)).toBe(addr);
      });
  }

  test("whatever a crate reads means the same here, or is refused", () => {
    let meant = 0;
    let refused = 0;
    for (const record of goldenRecords) {
      if (record.kind !== "package") continue;
      const format = formatOf(record);
      const raw = rawOf(record.input);
      try {
        const found = decodePackage(Uint8Array.fromHex(record.hex));
        meant++;
        expect(found.format).toBe(raw.layouts.length === 0 ? "dynamo-1.0" : format);
        expect(found.workerId).toBe(raw.worker_address.worker_id);
        expect(found.layouts.map(({ handle }) => handle as bigint)).toEqual(
          raw.layouts.map(({ handle }) => handle),
        );
        for (const [index, layout] of found.layouts.entries()) {
          const descriptor = raw.layouts[index]?.layout;
          const [component] = layout.components;
          const disk = component?.storage.kind === "disk";
          expect(component?.config.blockBytes).toBe(blockBytes({ ...descriptor?.layout_config }));
          expect([...(component?.regionAddresses ?? [])].map(BigInt)).toEqual(
            disk ? [] : (descriptor?.memory_descriptors.map(({ addr }) => addr) ?? []),
          );
        }
      } catch (error) {
        if (!isKvferryError(error, "METADATA_MALFORMED")) throw error;
        refused++;
        expect(error.details["format"]).toBe(format);
        expect(error.details["offset"]).toBeNumber();
      }
    }
    expect(meant).toBeGreaterThan(30);
    expect(refused).toBeGreaterThan(30);
  });
});

function blockBytes(config: Readonly<Record<string, unknown>>): number {
  return ["num_layers", "outer_dim", "page_size", "inner_dim", "dtype_width_bytes"].reduce(
    (product, field) => product * Number(config[field]),
    1,
  );
}
