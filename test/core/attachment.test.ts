import { expect, test } from "bun:test";
import {
  attachmentBases,
  isDirect,
  mappedAddresses,
  openFile,
  ownAddresses,
  throughNixl,
  throughPeer,
} from "../../lib/core/index.ts";

test("each way to reach bytes says whose bases it has and whether this process touches them itself", () => {
  const bases = new Float64Array([4096]);
  expect(ownAddresses(bases)).toEqual({ kind: "addresses", origin: "own", bases });
  expect(mappedAddresses(bases)).toEqual({ kind: "addresses", origin: "mapped", bases });
  expect(openFile(3, bases)).toEqual({ kind: "file", file: 3, bases });
  expect(throughNixl("a", bases)).toEqual({ kind: "nixl", agent: "a", bases });
  expect(throughPeer("a")).toEqual({ kind: "staged", agent: "a" });
  const all = [
    ownAddresses(bases),
    mappedAddresses(bases),
    openFile(3, bases),
    throughNixl("a", bases),
    throughPeer("a"),
  ];
  expect(all.map(isDirect)).toEqual([true, true, true, false, false]);
  expect(all.map((attachment) => attachmentBases(attachment))).toEqual([bases, bases, bases, bases, null]);
});
