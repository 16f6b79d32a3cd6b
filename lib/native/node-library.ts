import type * as fs from "node:fs";
import type * as os from "node:os";
import type * as path from "node:path";

/**
 * Parts of Node's library, each loaded when it is first used: together they are a tenth of a program's time to its first
 * transfer, and a program that only moves host memory needs none of them.
 */
export const nodeLibrary = {
  get fs(): typeof fs {
    return process.getBuiltinModule("node:fs");
  },
  get os(): typeof os {
    return process.getBuiltinModule("node:os");
  },
  get path(): typeof path {
    return process.getBuiltinModule("node:path");
  },
} as const;
