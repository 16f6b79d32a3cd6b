import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseHeader, readAbi, stubsSource, symbolsSource } from "../../cshim/generate.ts";

// The tables that JavaScript calls through are made from the header: what they say must be what C compiles.

const ROOT = join(import.meta.dir, "..", "..");

describe("kvf.h", () => {
  test("symbols.ts is what the header gives: a stale table calls functions with wrong arguments", () => {
    expect(readFileSync(join(ROOT, "lib", "native", "symbols.ts"), "utf8")).toBe(symbolsSource(readAbi()));
  });

  test("every function that the header declares is in the table", () => {
    const declared = [
      ...readFileSync(join(ROOT, "cshim", "kvf.h"), "utf8").matchAll(/^KVF_API int32_t (kvf_\w+)\(/gm),
    ];
    expect(readAbi().functions.map(({ name }) => name)).toEqual(declared.map((found) => found[1] ?? ""));
    expect(declared.length).toBeGreaterThan(30);
  });
});

describe("parseHeader", () => {
  const HEADER = `
/* KVF_API int32_t kvf_commented(int32_t a); */
#define KVF_API __attribute__((visibility("default")))
#define KVF_ONE 1u /* a comment */
#define KVF_MINUS -3
#define KVF_HEX 0x10
#define KVF_SHIFTED (1 << 4)
#define KVF_TEXT "no number"
KVF_API int32_t kvf_first(kvf_word a, const double *list, uint32_t n, int32_t k, double x);
KVF_API int32_t kvf_second(
    const uint8_t *bytes,
    char *out);
`;

  test("types map to what bun:ffi passes without conversion", () => {
    const { functions } = parseHeader(HEADER);
    expect(functions.map(({ name }) => name)).toEqual(["kvf_first", "kvf_second"]);
    expect(functions[0]?.parameters.map(({ ffi }) => ffi)).toEqual(["ptr", "ptr", "u32", "i32", "f64"]);
    expect(functions[1]?.parameters.map(({ type, name }) => [type, name])).toEqual([
      ["const uint8_t *", "bytes"],
      ["char *", "out"],
    ]);
  });

  test("constants keep their values", () => {
    expect([...parseHeader(HEADER).constants]).toEqual([
      ["KVF_ONE", 1],
      ["KVF_MINUS", -3],
      ["KVF_HEX", 16],
      ["KVF_SHIFTED", 16],
    ]);
  });

  test("the hash ignores comments and spacing and sees every type and constant", () => {
    const { hash } = parseHeader(HEADER);
    expect(hash).toMatch(/^[0-9a-f]{16}$/);
    expect(parseHeader(HEADER.replaceAll("    ", " ").replace("a comment", "another")).hash).toBe(hash);
    for (const change of [
      HEADER.replace("KVF_HEX 0x10", "KVF_HEX 0x11"),
      HEADER.replace("uint32_t n", "int32_t n"),
      HEADER.replace("kvf_second", "kvf_third"),
      HEADER.replace("int32_t k, ", ""),
    ])
      expect(parseHeader(change).hash).not.toBe(hash);
  });

  test.each([
    "KVF_API int64_t kvf_x(int32_t a);",
    "KVF_API int32_t kvf_x(uint64_t a);",
    "KVF_API int32_t kvf_x(struct thing a);",
    "KVF_API int32_t kvf_x(void (*call)(void));",
    "KVF_API int32_t kvf_x(int32_t a);\nKVF_API int32_t kvf_x(int32_t a);",
  ])("refuses what the ABI cannot hold: %s", (text) => {
    expect(() => parseHeader(text)).toThrow(/kvf\.h/);
  });

  test("stubs define every function weakly, so that a missing part answers instead of failing to load", () => {
    const source = stubsSource(parseHeader(HEADER));
    expect(source.match(/__attribute__\(\(weak\)\) int32_t kvf_(first|second)\(/g)).toHaveLength(2);
    expect(source.match(/KVF_E_UNAVAILABLE/g)).toHaveLength(2);
  });
});
