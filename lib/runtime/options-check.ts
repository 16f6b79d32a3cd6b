import { KvferryError } from "../core/errors.ts";
import { U64_MAX } from "../core/integers.ts";
import type { OpenOptions } from "./options.ts";

/**
 * Checks the options of `Transport.open` by a table of rules, which needs none of the library that parses packages:
 * that takes longer to load than a small transfer takes, and every program opens a transport.
 *
 * @throws KvferryError `INVALID_CONFIG` that names the option, what it takes and what was found.
 */
export function checkOptions(options: unknown): asserts options is OpenOptions {
  OPTIONS(options, "");
}

/** Throws for a value that is not what it must be; the path names the option. */
type Rule = (value: unknown, path: string) => void;

const flag: Rule = rule("true or false", (value) => typeof value === "boolean");
const path: Rule = text(1, 4_096);
const bytes: Rule = integer(1);
const key: Rule = rule(
  "a Uint8Array of at least 16 bytes",
  (value) => value instanceof Uint8Array && value.byteLength >= 16,
);
const workerId: Rule = rule("an unsigned 64-bit bigint, or a safe integer from 0", (value) =>
  typeof value === "bigint" ? value >= 0n && value <= U64_MAX : isInteger(value, 0, Number.MAX_SAFE_INTEGER),
);

const OPTIONS: Rule = fields(
  {
    workerId,
    agentName: text(1, 256),
    nixl: falseOr(fields({ backends: record(record(text(0, Infinity))), library: path })),
    cuda: falseOr(fields({ device: integer(0), busy: flag, library: path })),
    capabilities: fields({ gds: flag, gpuRdma: flag }),
    prefer: rule('"automatic", "native" or "nixl"', (value) =>
      ["automatic", "native", "nixl"].includes(value as string),
    ),
    staging: fields(
      {
        sendBytes: bytes,
        receiveBytes: bytes,
        chunkBytes: bytes,
        deviceBytes: integer(0),
        deviceChunkBytes: bytes,
      },
      ["sendBytes", "receiveBytes"],
    ),
    profile: rule("a machine profile", isObject),
    neighbours: flag,
    secret: (value, at) => (Array.isArray(value) ? keys(value, at) : key(value, at)),
    acceptUnauthenticated: flag,
    trustedNetwork: flag,
    heartbeatMs: integer(0),
    deadlineMs: rule(
      "milliseconds from 1 to 2^31 - 1",
      (value) => typeof value === "number" && value >= 1 && value <= 2 ** 31 - 1,
    ),
    maxInFlight: integer(1, 65_536),
  },
  ["workerId"],
);

const secretKey: Rule = fields({ keyId: text(1, 64), key }, ["keyId", "key"]);

function keys(list: readonly unknown[], at: string): void {
  if (list.length === 0) throw invalid(at, "a key, or a list of at least one { keyId, key }", list);
  for (const [index, item] of list.entries()) secretKey(item, `${at}.${index}`);
}

function rule(words: string, holds: (value: unknown) => boolean): Rule {
  return (value, at) => {
    if (!holds(value)) throw invalid(at, words, value);
  };
}

/** An object with no fields but these, each of which may be left out unless it is needed. */
function fields(rules: Readonly<Record<string, Rule>>, needed: readonly string[] = []): Rule {
  return (value, at) => {
    if (!isObject(value)) throw invalid(at, `an object with ${Object.keys(rules).join(", ")}`, value);
    for (const name of new Set([...needed, ...Object.keys(value)])) {
      const inner = at === "" ? name : `${at}.${name}`;
      const found = (value as Readonly<Record<string, unknown>>)[name];
      if (!Object.hasOwn(rules, name)) throw invalid(inner, "left out: there is no such option", found);
      if (found !== undefined || needed.includes(name)) rules[name]?.(found, inner);
    }
  };
}

function record(each: Rule): Rule {
  return (value, at) => {
    if (!isObject(value)) throw invalid(at, "an object", value);
    for (const [name, found] of Object.entries(value)) each(found, `${at}.${name}`);
  };
}

function falseOr(other: Rule): Rule {
  return (value, at) => {
    if (value !== false) other(value, at);
  };
}

function text(shortest: number, longest: number): Rule {
  const words = longest === Infinity ? "a string" : `a string of ${shortest} to ${longest} characters`;
  return rule(
    words,
    (value) => typeof value === "string" && value.length >= shortest && value.length <= longest,
  );
}

function integer(least: number, most: number = Number.MAX_SAFE_INTEGER): Rule {
  return rule(
    most === Number.MAX_SAFE_INTEGER ? `a safe integer from ${least}` : `an integer from ${least} to ${most}`,
    (value) => isInteger(value, least, most),
  );
}

function isInteger(value: unknown, least: number, most: number): boolean {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= least && value <= most;
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function invalid(option: string, words: string, found: unknown): KvferryError {
  const name = option === "" ? "(all)" : option;
  // A key must not stand in a message, however it was given.
  const plain = typeof found !== "object" && typeof found !== "function" && !option.startsWith("secret");
  const shown = plain ? String(found) : typeof found;
  return new KvferryError(
    "INVALID_CONFIG",
    "open",
    `option ${name} is not valid: it must be ${words}, found ${shown.slice(0, 64)}`,
    "See OpenOptions for what each option takes.",
    { option },
  );
}
