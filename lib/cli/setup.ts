import { EXIT, textOption } from "./command.ts";
import type { Command } from "./command.ts";
import { setupNixl } from "./nixl-setup.ts";

/** `kvferry setup`. */
export const setupCommand: Command = {
  name: "setup",
  summary: "find NIXL, or fetch it into the user's cache directory",
  description: [
    "Looks for NIXL where --nixl or KVFERRY_NIXL_LIBRARY say, in the cache directory ($XDG_CACHE_HOME/kvferry,",
    "default ~/.cache/kvferry), in Python environments and in system directories. Where there is none, pip fetches",
    "the pinned wheel (with its own mirrors, proxies and certificates), its SHA-256 is checked, and its libraries",
    "are unpacked into the cache directory. Without network: fetch the wheel elsewhere and give it with --wheel.",
  ].join("\n"),
  options: {
    nixl: {
      type: "string",
      value: "PATH",
      description: "libnixl_capi.so, or a directory that holds it; only checked.",
    },
    wheel: { type: "string", value: "FILE", description: "Unpack this wheel; nothing is downloaded." },
    sha256: {
      type: "string",
      value: "HEX",
      description: "Accept a wheel with this SHA-256 instead of the pinned one.",
    },
    python: {
      type: "string",
      value: "PROGRAM",
      description: "Python whose pip is called (default KVFERRY_PYTHON, python3, python).",
    },
    force: { type: "boolean", description: "Fetch and unpack again even where NIXL was found." },
  },
  run: async (parsed, output) => {
    const started = performance.now();
    const library = textOption(parsed, "nixl");
    const wheel = textOption(parsed, "wheel");
    const sha256 = textOption(parsed, "sha256");
    const python = textOption(parsed, "python");
    const nixl = await setupNixl({
      ...(library === undefined ? {} : { library }),
      ...(wheel === undefined ? {} : { wheel }),
      ...(sha256 === undefined ? {} : { sha256 }),
      ...(python === undefined ? {} : { python }),
      force: parsed.values["force"] === true,
      progress: (line) => output.note(line),
      unpacked: (bytes, total) => output.progress("unpacking", bytes, total),
    });
    const seconds = Math.round(performance.now() - started) / 1_000;
    output.say(
      `${output.style.good(nixl.fetched ? "installed" : "found")} NIXL ${nixl.version ?? "of unknown release"}: ${nixl.library}`,
    );
    output.emit({ ok: true, ...nixl, seconds });
    return EXIT.ok;
  },
};
