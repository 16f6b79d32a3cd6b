import { describe, expect, test } from "bun:test";
import { descriptorFromJson, descriptorToJson } from "../../lib/wire/index.ts";
import type { DynamoDescriptor } from "../../lib/wire/index.ts";
import { kvbmOf, rawOf } from "./builders.ts";
import { malformedAt, refusalOf } from "./refusal.ts";

function first(raw: ReturnType<typeof rawOf>): DynamoDescriptor {
  const [layout] = raw.layouts;
  if (layout === undefined) throw new Error("no layout");
  return layout.layout;
}

const OLD = first(rawOf());
const NEW = first(kvbmOf(rawOf(), 2n, ["Head", "Layer", "Outer", "Page"]));
const OLD_TEXT =
  '{"version":1,"layout_config":{"num_blocks":2,"num_layers":2,"outer_dim":2,"page_size":4,"inner_dim":8,' +
  '"alignment":1,"dtype_width_bytes":2,"inner_shape":"NHD"},"location":"System","nixl_metadata":{"agent_name":"w",' +
  '"mem_type":"Dram","device_id":0},"memory_descriptors":[{"addr":4096,"size":4096}],' +
  '"layout_type_details":{"FullyContiguous":{"block_format":"Operational"}}}';

/** The text with a part replaced, which must be there. */
function text(from: string, to: string): string {
  expect(OLD_TEXT).toContain(from);
  return OLD_TEXT.replace(from, to);
}

function refused(given: string, format: "dynamo-1.0" | "kvbm-physical-1" = "dynamo-1.0"): string {
  return malformedAt(format, given.length, () => descriptorFromJson(given, format)).reason;
}

describe("writing", () => {
  test("compact, in the order of declaration", () => {
    expect(descriptorToJson(OLD, "dynamo-1.0")).toBe(OLD_TEXT);
    expect(descriptorToJson(NEW, "kvbm-physical-1")).toBe(
      OLD_TEXT.replace('"inner_shape":"NHD"', '"num_heads":2').replace(
        '"block_format":"Operational"',
        '"block_format":"Operational","kv_block_layout":{"Custom":["Head","Layer","Outer","Page"]}',
      ),
    );
  });

  test("integers above 2^53 are exact, and safe numbers are taken", () => {
    const wide = first(rawOf({ memory_descriptors: [{ addr: 2n ** 64n - 1n, size: 2n ** 53n + 1n }] }));
    expect(descriptorToJson(wide, "dynamo-1.0")).toContain(
      '{"addr":18446744073709551615,"size":9007199254740993}',
    );
    const numbers = { ...OLD, memory_descriptors: [{ addr: 4096, size: 4096 }] };
    expect(descriptorToJson(numbers, "dynamo-1.0")).toBe(OLD_TEXT);
  });

  test("control characters as serde_json escapes them, all else as it is", () => {
    const agent_name = '\u0000\b\t\n\f\r\u001f"\\/\u007f\u2028é🦀';
    const odd = first(rawOf({ nixl_metadata: { agent_name, mem_type: "Dram", device_id: 0n } }));
    const written = descriptorToJson(odd, "dynamo-1.0");
    expect(written).toContain('"agent_name":"\\u0000\\b\\t\\n\\f\\r\\u001f\\"\\\\/\u007f\u2028é🦀"');
    expect(descriptorFromJson(written, "dynamo-1.0")).toStrictEqual(odd);
  });

  test("what the binary form refuses is refused", () => {
    refusalOf("INVALID_CONFIG", () => descriptorToJson({ ...OLD, version: -1 }, "dynamo-1.0"));
    refusalOf("INVALID_CONFIG", () => descriptorToJson(OLD, "kvbm-physical-1"));
    refusalOf("INVALID_CONFIG", () => descriptorToJson(NEW, "dynamo-1.0"));
  });
});

describe("reading", () => {
  test("white space, any order of members, unknown members", () => {
    const spaced = OLD_TEXT.replaceAll(/([{}[\]:,])/g, " \n\t\r$1 ");
    expect(descriptorFromJson(spaced, "dynamo-1.0")).toStrictEqual(OLD);
    const last = text('"version":1,', "").replace(/}$/, ',"version":1}');
    expect(descriptorFromJson(last, "dynamo-1.0")).toStrictEqual(OLD);
    for (const unknown of [
      "null",
      "true",
      "false",
      "-0",
      "-12.5e-3",
      "1E+9",
      "0.1",
      '"x\\u00e9"',
      "[]",
      "{}",
      '[1,{"a":[null]}]',
    ])
      expect(
        descriptorFromJson(text('"version":1', `"extra":${unknown},"version":1`), "dynamo-1.0"),
      ).toStrictEqual(OLD);
  });

  test("structs as arrays of their fields", () => {
    const arrays =
      '[1,[2,2,2,4,8,1,2,"NHD"],"System",["w","Dram",0],[[4096,4096]],{"FullyContiguous":["Operational"]}]';
    expect(descriptorFromJson(arrays, "dynamo-1.0")).toStrictEqual(OLD);
    const shorter =
      '[1,[2,2,2,4,8,1,2],"System",["w","Dram",0],[[4096,4096]],{"FullyContiguous":["Operational"]}]';
    expect(descriptorFromJson(shorter, "kvbm-physical-1")).toStrictEqual(
      first(kvbmOf(rawOf(), null, "Unknown")),
    );
  });

  test("unit variants also with a null", () => {
    expect(descriptorFromJson(text('"System"', '{"System":null}'), "dynamo-1.0")).toStrictEqual(OLD);
    expect(descriptorFromJson(text('"NHD"', '{"NHD":null}'), "dynamo-1.0")).toStrictEqual(OLD);
    expect(refused(text('"System"', '{"System":1}'))).toContain("no value");
    expect(refused(text('"NHD"', '{"NHD":{}}'))).toContain("no value");
  });

  test("every location", () => {
    for (const [word, location] of [
      ['"Pinned"', "Pinned"],
      ['{"Device":4294967295}', { Device: 4_294_967_295 }],
      ['{"Disk":18446744073709551615}', { Disk: 2n ** 64n - 1n }],
    ] as const)
      expect(descriptorFromJson(text('"System"', word), "dynamo-1.0").location).toStrictEqual(location);
    for (const word of [
      '"Device"',
      '"Disk"',
      '{"Device":null}',
      '{"Device":4294967296}',
      '{"Disk":-1}',
      '{"System":null,"Pinned":null}',
      "{}",
      "1",
    ])
      expect(refused(text('"System"', word))).toBeTruthy();
  });

  test("separate layers, and every block layout of kvbm", () => {
    const separate = text(
      '{"FullyContiguous":{"block_format":"Operational"}}',
      '{"LayerSeparate":{"block_dim":"BlockIsSecondDim"}}',
    );
    expect(descriptorFromJson(separate, "dynamo-1.0").layout_type_details).toStrictEqual({
      LayerSeparate: { block_dim: "BlockIsSecondDim" },
    });
    for (const layout of [
      "UniversalTP",
      "UniversalPP",
      "OperationalHND",
      "OperationalNHD",
      "Unknown",
    ] as const) {
      const given = text('"Operational"}', `"Operational","kv_block_layout":"${layout}"}`);
      expect(descriptorFromJson(given, "kvbm-physical-1").layout_type_details).toStrictEqual({
        FullyContiguous: { block_format: "Operational", kv_block_layout: layout },
      });
    }
    for (const layout of [
      "null",
      '"Custom"',
      '{"Custom":[]}',
      '{"Custom":["Layer","Layer","Layer"]}',
      '{"Custom":["Layer","Layer","Layer","Layer","Layer"]}',
      '{"Custom":["Block","Layer","Layer","Layer"]}',
    ])
      expect(
        refused(text('"Operational"}', `"Operational","kv_block_layout":${layout}}`), "kvbm-physical-1"),
      ).toBeTruthy();
    expect(
      refused(text('{"FullyContiguous":{"block_format":"Operational"}}', '"FullyContiguous"')),
    ).toContain("needs a value");
  });

  test("missing, doubled and superfluous fields by name", () => {
    expect(refused(text('"version":1,', ""))).toContain("version is missing");
    expect(refused(text(',"size":4096', ""))).toContain("size is missing");
    expect(refused(text(',"inner_shape":"NHD"', ""))).toContain("inner_shape is missing");
    expect(refused(text('"version":1', '"version":1,"version":1'))).toContain("version stands twice");
    expect(refused(text('{"addr":4096,"size":4096}', '{"addr":4096,"size":4096,"addr":4096}'))).toContain(
      "addr stands twice",
    );
    expect(refused(text('{"addr":4096,"size":4096}', "[4096,4096,4096]"))).toContain("more than 2");
    expect(refused(text('{"addr":4096,"size":4096}', "[4096]"))).toContain("size is missing");
  });

  test("integers that are none", () => {
    for (const number of [
      "1.0",
      "1e0",
      "-1",
      "-0",
      '"1"',
      "01",
      "0x1",
      "",
      "null",
      "true",
      "18446744073709551616",
      "1".repeat(21),
      "+1",
      "1_0",
    ])
      expect(refused(text('"addr":4096', `"addr":${number}`))).toBeTruthy();
    expect(refused(text('"version":1', '"version":4294967296'))).toContain("32 bits");
  });

  test("text that is no JSON", () => {
    for (const given of [
      "",
      " ",
      "{",
      "[",
      "{]",
      '{"version"',
      '{"version":',
      '{"version":1',
      '{"version":1,}',
      "{version:1}",
      "{'version':1}",
      `${OLD_TEXT}x`,
      `${OLD_TEXT}${OLD_TEXT}`,
      OLD_TEXT.slice(0, -1),
      `\ufeff${OLD_TEXT}`,
      text('"w"', '"w'),
      text('"w"', '"\n"'),
      text('"w"', '"\\x41"'),
      text('"w"', '"\\u12"'),
      text('"w"', '"\\ud800"'),
      text('"w"', "w"),
      text('"version":1', '"extra":nul,"version":1'),
      text('"version":1', '"extra":tru,"version":1'),
      text('"version":1', '"extra":00,"version":1'),
      text('"version":1', '"extra":1.,"version":1'),
      text('"version":1', '"extra":1e,"version":1'),
      text('"version":1', '"extra":-,"version":1'),
      text('"version":1', '"extra":.5,"version":1'),
      text('"version":1', '"extra":[1,],"version":1'),
    ])
      expect(refused(given)).toBeTruthy();
  });

  test("nesting without end", () => {
    expect(refused(text('"version":1', `"extra":${"[".repeat(100_000)}`))).toContain("deeper");
    expect(refused(text('"version":1', `"extra":${'{"a":'.repeat(100_000)}`))).toContain("deeper");
  });

  test("regions without end", () => {
    const many = text('[{"addr":4096,"size":4096}]', `[${"[0,0],".repeat(2 * 65_536)}[0,0]]`);
    expect(refused(many)).toContain("131072");
  });

  test("an unknown format", () => {
    refusalOf("INVALID_CONFIG", () => descriptorFromJson(OLD_TEXT, "kvferry" as "dynamo-1.0"));
  });
});
