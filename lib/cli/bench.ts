import { existsSync } from "node:fs";
import { join } from "node:path";

import { PACKAGE_ROOT } from "./checkout.ts";
import { EXIT } from "./command.ts";
import type { Command } from "./command.ts";

/** `kvferry bench`: hands over to the benches of a clone. */
export const benchCommand: Command = {
  name: "bench",
  operands: "SUITE",
  summary: "measure against the machine's limits (most suites in a clone of the repository)",
  description:
    "Runs a suite of bench/ in processes of its own and prints a table, or the machine and all results as JSON.",
  options: {
    out: { type: "string", value: "FILE", description: "Write the JSON result to a file too." },
    processes: { type: "string", value: "N", description: "Processes per comparison (default 5)." },
    samples: { type: "string", value: "N", description: "Samples per process (default 20)." },
    only: { type: "string", value: "TEXT", description: "Only results whose id contains this." },
    quick: {
      type: "boolean",
      description: "Few processes and samples: shows that it runs, measures nothing.",
    },
    format: {
      type: "string",
      value: "FORMAT",
      description: "Print as mitata does: mitata, markdown or json (mitata's own, with all samples).",
    },
    list: { type: "boolean", description: "Print the names of the suites." },
    calibrate: {
      type: "boolean",
      description: "Measure this machine and print a profile for Transport.open; SUITE is left out.",
    },
  },
  run: async (parsed, output) => {
    const program = join(PACKAGE_ROOT, "bench/main.ts");
    if (!existsSync(program)) {
      output.note(
        "kvferry bench: the benches are not part of the installed package; run them in a clone of the repository.",
      );
      output.emit({ ok: false, error: { message: "The benches are not part of the installed package." } });
      return EXIT.unavailable;
    }
    const words = parsed.raw.filter((word) => word !== "--calibrate");
    if (words.length < parsed.raw.length) words.unshift("calibrate");
    return await Bun.spawn([process.execPath, program, ...words], {
      stdin: "ignore",
      stdout: "inherit",
      stderr: "inherit",
    }).exited;
  },
};
