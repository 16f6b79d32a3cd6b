import { describe, expect, test } from "bun:test";
import { isKvferryError } from "../../lib/core/errors.ts";
import { readZipEntry, zipEntries } from "../../lib/cli/zip.ts";
import { makeZip } from "./make-zip.ts";

const FILES = {
  "a/plain.txt": new TextEncoder().encode("stored and short"),
  "a/deep/packed.bin": new Uint8Array(70_000).map((_, index) => (index * index) % 251),
  empty: new Uint8Array(0),
};

describe("zip archives", () => {
  test("every file comes back with its bytes, stored or deflated", () => {
    const archive = makeZip(FILES);
    const entries = zipEntries(archive);
    expect(entries.map((entry) => entry.name)).toEqual(Object.keys(FILES));
    for (const entry of entries)
      expect(readZipEntry(archive, entry)).toEqual(FILES[entry.name as keyof typeof FILES]);
    expect(new Set(entries.map((entry) => entry.method))).toEqual(new Set([0, 8]));
  });

  test("an archive that was cut anywhere is refused, and never gives wrong bytes", () => {
    const archive = makeZip({ one: FILES["a/deep/packed.bin"] });
    for (let length = 0; length < archive.byteLength; length += 97) {
      const cut = archive.slice(0, length);
      expect(() => zipEntries(cut).map((entry) => readZipEntry(cut, entry))).toThrow();
    }
  });

  test("a flipped bit in a file's bytes is noticed", () => {
    const archive = makeZip({ one: FILES["a/deep/packed.bin"], two: FILES["a/plain.txt"] });
    for (const entry of zipEntries(archive)) {
      const start = entry.headerOffset + 30 + entry.name.length;
      for (const offset of [0, entry.compressedBytes >> 1, entry.compressedBytes - 1]) {
        const spoiled = archive.slice();
        spoiled[start + offset] = (spoiled[start + offset] ?? 0) ^ 0x10;
        expect(refusal(() => readZipEntry(spoiled, entry))).toBe("ERR_KVF_IO");
      }
    }
  });

  test.each(["../outside", "/etc/outside", "a/../../outside", "a\\outside"])(
    "the path %s, which leaves the directory, is refused",
    (name) => {
      expect(refusal(() => zipEntries(makeZip({ [name]: FILES["empty"] })))).toBe("ERR_KVF_IO");
    },
  );

  test("a file that inflates to more than the directory says is refused", () => {
    const archive = makeZip({ one: FILES["a/deep/packed.bin"] });
    const entry = zipEntries(archive)[0];
    if (entry === undefined) throw new Error("the archive is empty");
    expect(refusal(() => readZipEntry(archive, { ...entry, bytes: 100 }))).toBe("ERR_KVF_IO");
  });
});

function refusal(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    return isKvferryError(error) ? error.code : String(error);
  }
  return "not refused";
}
