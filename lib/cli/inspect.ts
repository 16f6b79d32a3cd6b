import { isKvferryError, KvferryError } from "../core/errors.ts";
import type { MetadataPackage, PackageComponent, PackageFormat, PackageLayout } from "../core/package.ts";
import { installPackages, restart } from "./checkout.ts";
import { EXIT, textOption, UsageError } from "./command.ts";
import type { Command } from "./command.ts";
import type { Output } from "./output.ts";

const FORMATS: readonly PackageFormat[] = ["kvferry", "dynamo-1.0", "kvbm-physical-1"];

/** `kvferry inspect`. */
export const inspectCommand: Command = {
  name: "inspect",
  operands: "FILE",
  summary: "print a metadata package in plain words, or convert it",
  description: [
    "Reads a metadata package of any format (FILE, or - for standard input) and says what it holds: the worker, its",
    "layouts, their shapes and memory. Nothing of it reaches NIXL. With --to the package is written again in another",
    "format, to --out FILE or to standard output.",
  ].join("\n"),
  options: {
    to: { type: "string", value: "FORMAT", description: `Convert to ${FORMATS.join(", ")}.` },
    out: { type: "string", value: "FILE", description: "Where the converted package goes." },
  },
  run: async (parsed, output) => {
    const [file, ...more] = parsed.operands;
    if (file === undefined || more.length > 0) throw new UsageError("inspect takes one FILE");
    const to = textOption(parsed, "to");
    const format = FORMATS.find((one) => one === to);
    if (to !== undefined && format === undefined)
      throw new UsageError(`${JSON.stringify(to)} is not a format; the formats are ${FORMATS.join(", ")}`);
    const out = textOption(parsed, "out");
    if (format !== undefined && out === undefined && (output.json || process.stdout.isTTY === true))
      throw new UsageError("--to needs --out FILE here: a package is not text");
    if (await installPackages((line) => output.note(line))) return await restart();

    const input = file === "-" ? Bun.stdin : Bun.file(file);
    if (file !== "-" && !(await input.exists()))
      throw new KvferryError("IO", "inspect", `There is no file ${file}.`, "Check the path.", { file });
    const bytes = new Uint8Array(await input.arrayBuffer());
    const wire = await import("../wire/index.ts");
    const value = decoded(() => wire.decodePackage(bytes), file);
    const facts = describePackage(value, bytes.byteLength);
    if (format === undefined)
      for (const line of packageText(value, bytes.byteLength, output)) output.say(line);
    else await convert(wire.encodePackage(value, format), out, format, output);
    output.emit({ ok: true, ...facts, ...(format === undefined ? {} : { convertedTo: format, out }) });
    return EXIT.ok;
  },
};

/** Says first that the file may be something else altogether: how it fails to be a package comes second. */
function decoded(decode: () => MetadataPackage, file: string): MetadataPackage {
  try {
    return decode();
  } catch (error) {
    if (!isKvferryError(error, "METADATA_MALFORMED")) throw error;
    throw new KvferryError(
      "METADATA_MALFORMED",
      "inspect",
      `${file} is no metadata package, or a damaged one. Read as a package: ${error.message}`,
      error.remedy,
      error.details,
      error,
    );
  }
}

async function convert(
  bytes: Uint8Array,
  out: string | undefined,
  format: PackageFormat,
  output: Output,
): Promise<void> {
  await Bun.write(out === undefined ? Bun.stdout : out, bytes);
  output.note(`${bytes.byteLength} bytes of ${format} written${out === undefined ? "" : ` to ${out}`}`);
}

/** A package as plain data: NIXL's blob by its length, handles and worker ids as decimal strings. */
export function describePackage(value: MetadataPackage, bytes: number): Record<string, unknown> {
  return {
    format: value.format,
    bytes,
    workerId: value.workerId.toString(),
    agentName: value.agentName,
    wireName: value.wireName,
    incarnation: value.incarnation,
    sequence: value.sequence,
    issuedAt: isoTime(value.issuedAtMs),
    expiresAt: isoTime(value.expiresAtMs),
    audience: value.audience?.map(String) ?? null,
    nixlMetadataBytes: value.nixlMetadata.byteLength,
    host: value.host,
    layouts: value.layouts.map(describeLayout),
  };
}

function describeLayout(layout: PackageLayout): Record<string, unknown> {
  return {
    handle: layout.handle.toString(),
    name: layout.name,
    tier: layout.tier,
    access: layout.access,
    fingerprint: layout.fingerprint,
    stagedOnly: layout.stagedOnly,
    components: layout.components.map((component) => ({
      name: component.name,
      config: component.config,
      arrangement: component.arrangement,
      order: component.order,
      group: component.group,
      wholeBlocks: component.wholeBlocks,
      alias: component.alias,
      storage: component.storage,
      regions: regionsOf(component),
    })),
  };
}

function packageText(value: MetadataPackage, bytes: number, output: Output): string[] {
  const { strong, faint } = output.style;
  const expiry = isoTime(value.expiresAtMs);
  return [
    `${strong(`Worker ${value.workerId}`)}, agent ${JSON.stringify(value.agentName)}${value.wireName === value.agentName ? "" : ` (on the wire ${JSON.stringify(value.wireName)})`}`,
    `${bytes} bytes of format ${value.format}${value.format === "kvferry" ? `, export ${value.sequence} of incarnation ${value.incarnation}` : ""}`,
    ...(value.issuedAtMs === null
      ? []
      : [`made ${isoTime(value.issuedAtMs)}${expiry === null ? "" : `, good until ${expiry}`}`]),
    ...(value.audience === null ? [] : [`meant for workers ${value.audience.join(", ")}`]),
    value.nixlMetadata.byteLength === 0
      ? "no NIXL metadata: only processes of the same host can reach it"
      : `${value.nixlMetadata.byteLength} bytes of NIXL metadata`,
    ...(value.host === null
      ? []
      : [
          faint(
            `process ${value.host.processId} of user ${value.host.userId} on the host with boot id ${value.host.bootId}`,
          ),
        ]),
    "",
    `${value.layouts.length} layout${value.layouts.length === 1 ? "" : "s"}`,
    ...value.layouts.flatMap((layout) => layoutText(layout, output)),
  ];
}

function layoutText(layout: PackageLayout, output: Output): string[] {
  const name = layout.name === "" ? "without a name" : JSON.stringify(layout.name);
  const facts = [
    layout.tier,
    layout.access === "read" ? "read only" : "read and write",
    ...(layout.fingerprint === null ? [] : [`fingerprint ${layout.fingerprint}`]),
    ...(layout.stagedOnly ? ["reachable through its owner only"] : []),
  ];
  return [
    "",
    `${output.style.strong(name)}: ${facts.join(", ")}`,
    output.style.faint(`  handle ${layout.handle}`),
    ...layout.components.flatMap((component) => componentText(component, layout.components.length === 1)),
  ];
}

function componentText(component: PackageComponent, alone: boolean): string[] {
  const { config } = component;
  const inner = config.headsKnown ? `${config.numHeads} heads of ${config.headDim}` : `${config.innerDim}`;
  const element = config.dtype ?? `${config.elementBits}-bit`;
  const arrangement =
    typeof component.arrangement === "string"
      ? component.arrangement
      : `strided, regions ${component.arrangement.regions}`;
  const regions = regionsOf(component);
  const total = regions.reduce((sum, region) => sum + region.size, 0);
  const storage =
    "device" in component.storage && component.storage.device !== undefined
      ? `${component.storage.kind} ${component.storage.device}`
      : component.storage.kind;
  return [
    `  ${alone ? "" : `${component.name}: `}${config.numBlocks} blocks of ${config.numLayers} layers x ${config.outerDim} x ${config.pageSize} tokens x ${inner} ${element} elements, ${config.blockBytes} bytes each`,
    `  ${arrangement}, order ${component.order.join(" ")}; ${storage} memory, ${regions.length} region${regions.length === 1 ? "" : "s"}, ${total} bytes in all`,
    ...(config.modelLayers === null ? [] : [`  layers ${config.modelLayers.join(" ")} of the model`]),
    ...(config.headWindow === null
      ? []
      : [
          `  heads ${config.headWindow.start} to ${config.headWindow.start + config.numHeads - 1} of ${config.headWindow.total}`,
        ]),
    ...(component.wholeBlocks ? ["  blocks pair one to one and are never split"] : []),
    ...(component.alias ? ["  its bytes may belong to other components too"] : []),
  ];
}

function regionsOf(component: PackageComponent): { readonly address: number; readonly size: number }[] {
  return Array.from(component.regionSizes, (size, index) => ({
    address: component.regionAddresses[index] ?? 0,
    size,
  }));
}

function isoTime(milliseconds: number | null): string | null {
  return milliseconds === null ? null : new Date(milliseconds).toISOString();
}
