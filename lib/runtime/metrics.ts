import type { EndedTransfer } from "./task.ts";

/** Counters of one route. */
export interface RouteMetrics {
  readonly route: string;
  readonly transfers: number;
  readonly failures: number;
  /** Failures by error code. */
  readonly causes: Readonly<Record<string, number>>;
  readonly bytes: number;
  readonly descriptors: number;
  readonly seconds: number;
}

/** What a transport counted so far; names follow OpenTelemetry's conventions. */
export interface TransportMetrics {
  readonly "kvferry.transfers": number;
  readonly "kvferry.transfer.bytes": number;
  readonly "kvferry.transfer.descriptors": number;
  readonly "kvferry.transfer.duration": number;
  readonly "kvferry.transfer.failures": Readonly<Record<string, number>>;
  readonly "kvferry.transfers.in_flight": number;
  readonly "kvferry.transfers.in_doubt": number;
  readonly "kvferry.blocks.quarantined": number;
  readonly "kvferry.layouts.local": number;
  readonly "kvferry.layouts.remote": number;
  readonly "kvferry.peers": number;
  readonly routes: readonly RouteMetrics[];
}

/** What is read off the transport when metrics are asked for. */
export interface Gauges {
  readonly inFlight: number;
  readonly inDoubt: number;
  readonly quarantined: number;
  readonly localLayouts: number;
  readonly remoteLayouts: number;
  readonly peers: number;
}

interface Counters {
  transfers: number;
  readonly causes: Map<string, number>;
  bytes: number;
  descriptors: number;
  micros: number;
}

/** Route of what was refused before it had one. */
const NO_ROUTE = "none";

/** Counts transfers by route and failures by cause. */
export class MetricsBook {
  readonly #routes: Map<string, Counters> = new Map();

  record(ended: EndedTransfer): void {
    const counters = this.#of(ended.plan.route);
    counters.transfers++;
    counters.micros += ended.durationMicros;
    counters.bytes += ended.bytes;
    if (ended.error === null) {
      for (const leg of ended.plan.legs)
        for (const hop of leg.hops) counters.descriptors += hop.descriptorsAfter;
    } else countIn(counters.causes, ended.error.code);
  }

  /** A transfer was refused before there was a plan for it. */
  refused(code: string): void {
    const counters = this.#of(NO_ROUTE);
    counters.transfers++;
    countIn(counters.causes, code);
  }

  #of(route: string): Counters {
    let counters = this.#routes.get(route);
    if (counters === undefined) {
      counters = { transfers: 0, causes: new Map(), bytes: 0, descriptors: 0, micros: 0 };
      this.#routes.set(route, counters);
    }
    return counters;
  }

  snapshot(gauges: Gauges): TransportMetrics {
    const routes = [...this.#routes].map(([route, counters]): RouteMetrics => ({
      route,
      transfers: counters.transfers,
      failures: [...counters.causes.values()].reduce((sum, count) => sum + count, 0),
      causes: Object.fromEntries(counters.causes),
      bytes: counters.bytes,
      descriptors: counters.descriptors,
      seconds: counters.micros / 1e6,
    }));
    const causes = new Map<string, number>();
    for (const route of routes)
      for (const [code, count] of Object.entries(route.causes)) countIn(causes, code, count);
    const sum = (pick: (route: RouteMetrics) => number): number =>
      routes.reduce((total, route) => total + pick(route), 0);
    return {
      "kvferry.transfers": sum((route) => route.transfers),
      "kvferry.transfer.bytes": sum((route) => route.bytes),
      "kvferry.transfer.descriptors": sum((route) => route.descriptors),
      "kvferry.transfer.duration": sum((route) => route.seconds),
      "kvferry.transfer.failures": Object.fromEntries(causes),
      "kvferry.transfers.in_flight": gauges.inFlight,
      "kvferry.transfers.in_doubt": gauges.inDoubt,
      "kvferry.blocks.quarantined": gauges.quarantined,
      "kvferry.layouts.local": gauges.localLayouts,
      "kvferry.layouts.remote": gauges.remoteLayouts,
      "kvferry.peers": gauges.peers,
      routes,
    };
  }
}

/** Metrics as a page that Prometheus reads (text format 0.0.4). */
export function prometheusText(metrics: TransportMetrics): string {
  const lines: string[] = [];
  const family = (
    name: string,
    kind: "counter" | "gauge",
    help: string,
    rows: readonly [labels: string, value: number][],
  ): void => {
    lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${kind}`);
    for (const [labels, value] of rows) lines.push(`${name}${labels} ${value}`);
  };
  const byRoute = (pick: (route: RouteMetrics) => number): [string, number][] =>
    metrics.routes.map((route) => [`{route="${label(route.route)}"}`, pick(route)]);
  family(
    "kvferry_transfers_total",
    "counter",
    "Transfers that ended.",
    byRoute((route) => route.transfers),
  );
  family(
    "kvferry_transfer_bytes_total",
    "counter",
    "Bytes moved.",
    byRoute((route) => route.bytes),
  );
  family(
    "kvferry_transfer_descriptors_total",
    "counter",
    "Contiguous runs moved, after merging.",
    byRoute((route) => route.descriptors),
  );
  family(
    "kvferry_transfer_duration_seconds_total",
    "counter",
    "Time from start to end, summed over transfers.",
    byRoute((route) => route.seconds),
  );
  family(
    "kvferry_transfer_failures_total",
    "counter",
    "Transfers that failed, by route and cause.",
    metrics.routes.flatMap(({ route, causes }) =>
      Object.entries(causes).map(([code, value]): [string, number] => [
        `{route="${label(route)}",code="${label(code)}"}`,
        value,
      ]),
    ),
  );
  family("kvferry_transfers_in_flight", "gauge", "Transfers that run now.", [
    ["", metrics["kvferry.transfers.in_flight"]],
  ]);
  family("kvferry_transfers_in_doubt", "gauge", "Transfers that ended in doubt without proof yet.", [
    ["", metrics["kvferry.transfers.in_doubt"]],
  ]);
  family("kvferry_blocks_quarantined", "gauge", "Blocks in quarantine.", [
    ["", metrics["kvferry.blocks.quarantined"]],
  ]);
  family("kvferry_layouts", "gauge", "Registered layouts.", [
    ['{side="local"}', metrics["kvferry.layouts.local"]],
    ['{side="remote"}', metrics["kvferry.layouts.remote"]],
  ]);
  family("kvferry_peers", "gauge", "Imported peers.", [["", metrics["kvferry.peers"]]]);
  return `${lines.join("\n")}\n`;
}

function countIn(counts: Map<string, number>, key: string, count = 1): void {
  counts.set(key, (counts.get(key) ?? 0) + count);
}

function label(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
