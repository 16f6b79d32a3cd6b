/** What UCX chose for one kind of connection. */
export interface UcxEndpoint {
  /** `self`, `intra-node` or `inter-node`. */
  readonly scope: string;
  /** UCX's own words, e.g. `rma_am(tcp/lo)  am(tcp/lo cma/memory)`. */
  readonly lanes: string;
  /** Transports with their devices, each once, e.g. `["cma/memory", "tcp/lo"]`. */
  readonly transports: readonly string[];
}

/** What a UCX log at level `info` tells. */
export interface UcxFacts {
  readonly version: string | null;
  readonly endpoints: readonly UcxEndpoint[];
}

/**
 * Variables that make UCX in a child process say what it chose, on standard error: a file would stay in its buffer,
 * since Bun's processes leave without flushing C streams.
 */
export const UCX_LOG_ENVIRONMENT: Readonly<Record<string, string>> = {
  UCX_LOG_LEVEL: "info",
  UCX_LOG_FILE: "stderr",
};

/** What {@link splitUcxLog} made of a stream so far. */
export interface UcxLogReader {
  /** Facts of the lines that came until now. */
  facts(): UcxFacts;
  /** Everything that was not UCX's, as it came. */
  rest(): string;
  /** Resolves when the stream has ended. */
  readonly ended: Promise<void>;
}

/**
 * Reads a child's standard error to its end and keeps UCX's lines apart.
 *
 * @param other - Receives every line that is not UCX's as it comes.
 */
export function splitUcxLog(
  stream: ReadableStream<Uint8Array>,
  other: (line: string) => void = () => {},
): UcxLogReader {
  const own: string[] = [];
  const rest: string[] = [];
  const sort = (line: string): void => {
    if (/^\[\d+\.\d+\] \[.*\] +\S+:\d+ +UCX +[A-Z]+ /.test(line)) own.push(line);
    else {
      rest.push(line);
      other(line);
    }
  };
  const ended = (async () => {
    const decoder = new TextDecoder();
    let open = "";
    for await (const chunk of stream) {
      const lines = (open + decoder.decode(chunk, { stream: true })).split("\n");
      open = lines.pop() ?? "";
      for (const line of lines) sort(line);
    }
    if (open !== "") sort(open);
  })();
  return { facts: () => parseUcxLog(own.join("\n")), rest: () => rest.join("\n"), ended };
}

/** Takes UCX's version and the lanes of every connection from a log. */
export function parseUcxLog(text: string): UcxFacts {
  const version = /UCX\s+INFO\s+Version (\S+)/.exec(text)?.[1] ?? null;
  const endpoints = [...text.matchAll(/UCX\s+INFO\s+.*?(self|intra-node|inter-node) cfg#\d+\s+(.+)$/gm)].map(
    (match) => {
      const lanes = (match[2] ?? "").trim();
      return { scope: match[1] ?? "", lanes, transports: transportsOf(lanes) };
    },
  );
  return { version, endpoints };
}

function transportsOf(lanes: string): string[] {
  const named = [...lanes.matchAll(/\(([^)]*)\)/g)].flatMap((match) => (match[1] ?? "").split(/\s+/));
  return [...new Set(named.filter((name) => name.includes("/")))].toSorted();
}
