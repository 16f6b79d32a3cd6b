// A router over workers with prefix caches: it picks the worker that has the longest prefix of a prompt; where that
// worker is busy, it picks another one and lets it pull the prefix instead of computing it again.
//
//   bun run examples/router.ts
import { Transport, type LayoutConfig } from "kvferry";
import { answerParent, startChild, type Child } from "./children.ts";

const PAGE = 16;
const CONFIG: LayoutConfig = {
  numBlocks: 64,
  numLayers: 4,
  outerDim: 2,
  pageSize: PAGE,
  numHeads: 4,
  headDim: 64,
  dtype: "bf16",
};

/** The key of a block: a hash of its tokens and of all tokens before them. */
function blockKeys(tokens: readonly number[]): string[] {
  const keys: string[] = [];
  for (let end = PAGE; end <= tokens.length; end += PAGE)
    keys.push(Bun.hash(`${keys.at(-1) ?? ""}/${tokens.slice(end - PAGE, end).join()}`).toString(16));
  return keys;
}

// ---- a worker ----

/** Pull blocks of a prefix from another worker. */
interface Pull {
  readonly worker: string;
  readonly blocks: readonly number[];
}

type Question =
  | { readonly metadata: true }
  | { readonly meet: Uint8Array[] }
  | { readonly run: readonly string[]; readonly pull: Pull | null };

interface Answer {
  /** Where each block of the prompt lies in the worker now. */
  readonly blocks: readonly number[];
  readonly computed: number;
  readonly pulled: number;
  /** Whether every block of the prompt holds what computing it gives. */
  readonly correct: boolean;
}

async function worker(id: string): Promise<void> {
  await using transport = await Transport.open({ workerId: BigInt(id) });
  const cache = await transport.register({ name: "cache", config: CONFIG, memory: { kind: "system" } });
  const known = new Map<string, number>();
  let next = 0;

  const run = async (keys: readonly string[], pull: Pull | null): Promise<Answer> => {
    const here = keys.filter((key) => known.has(key)).length;
    let pulled = 0;
    if (pull !== null && pull.blocks.length > here) {
      const peer = transport.peer(BigInt(pull.worker));
      if (peer === undefined) throw new Error(`worker ${pull.worker} is not known here`);
      const wanted = pull.blocks.slice(here);
      const into = wanted.map(() => next++);
      await transport.transfer({
        source: peer.layout("cache"),
        sourceBlocks: wanted,
        destination: cache,
        destinationBlocks: into,
      });
      into.forEach((block, at) => known.set(keys[here + at] ?? "", block));
      pulled = into.length;
    }
    let computed = 0;
    for (const key of keys) {
      if (known.has(key)) continue;
      await cache.write(next, compute(key));
      known.set(key, next++);
      computed++;
    }
    const blocks = keys.map((key) => known.get(key) ?? -1);
    const contents = await Promise.all(blocks.map((block) => cache.read(block)));
    const correct = contents.every((bytes, at) => Buffer.compare(bytes, compute(keys[at] ?? "")) === 0);
    return { blocks, computed, pulled, correct };
  };

  await answerParent(async (question: Question) => {
    if ("metadata" in question) return await transport.exportMetadata();
    if ("run" in question) return await run(question.run, question.pull);
    for (const metadata of question.meet) await transport.importMetadata(metadata);
    return null;
  });
  /** Stands for the forward pass: the same key gives the same bytes in every worker. */
  function compute(key: string): Uint8Array {
    const seed = Number.parseInt(key.slice(-6), 16);
    return new Uint8Array(cache.config.blockBytes).map((_, at) => (at * 31 + seed) >>> 3);
  }
}

// ---- the router ----

interface Known {
  readonly child: Child;
  readonly blocks: Map<string, number>;
  load: number;
}

/** Requests that a worker may have more than the idlest before a prefix is moved away from it. */
const SLACK = 1;

/** Which worker takes a prompt, and what it pulls from whom first. */
function choose(
  workers: ReadonlyMap<string, Known>,
  keys: readonly string[],
): { readonly worker: string; readonly pull: Pull | null } {
  const prefix = ({ blocks }: Known): number => {
    const missing = keys.findIndex((key) => !blocks.has(key));
    return missing < 0 ? keys.length : missing;
  };
  const ordered = [...workers].toSorted(([, a], [, b]) => prefix(b) - prefix(a) || a.load - b.load);
  const idlest = [...workers].toSorted(([, a], [, b]) => a.load - b.load)[0];
  const best = ordered[0];
  if (best === undefined || idlest === undefined) throw new Error("there is no worker");
  if (best[1].load <= idlest[1].load + SLACK) return { worker: best[0], pull: null };
  const blocks = keys.slice(0, prefix(best[1])).map((key) => best[1].blocks.get(key) ?? 0);
  return { worker: idlest[0], pull: blocks.length === 0 ? null : { worker: best[0], blocks } };
}

async function router(): Promise<void> {
  const ids = ["1", "2"];
  const workers = new Map<string, Known>(
    ids.map((id) => [
      id,
      { child: startChild(import.meta.path, "worker", id), blocks: new Map<string, number>(), load: 0 },
    ]),
  );
  const metadata = new Map<string, Uint8Array>();
  for (const [id, { child }] of workers) metadata.set(id, await child.ask<Uint8Array>({ metadata: true }));
  for (const [id, { child }] of workers)
    await child.ask({ meet: [...metadata].filter(([other]) => other !== id).map(([, bytes]) => bytes) });

  let pulled = 0;
  const submit = async (tokens: readonly number[]): Promise<void> => {
    const keys = blockKeys(tokens);
    const { worker: id, pull } = choose(workers, keys);
    const chosen = workers.get(id);
    if (chosen === undefined) throw new Error(`there is no worker ${id}`);
    chosen.load++;
    const answer = await chosen.child.ask<Answer>({ run: keys, pull });
    keys.forEach((key, at) => chosen.blocks.set(key, answer.blocks[at] ?? 0));
    pulled += answer.pulled;
    const from = pull === null ? "" : `, ${answer.pulled} pulled from worker ${pull.worker}`;
    console.log(`worker ${id}: ${keys.length} blocks, ${answer.computed} computed${from}`);
    if (!answer.correct) throw new Error(`worker ${id} holds a wrong block`);
  };

  // A long system prompt, then users' own words; the requests stay open, so that the load grows.
  const system = Array.from({ length: 8 * PAGE }, (_, at) => at);
  for (let user = 0; user < 4; user++)
    await submit([...system, ...Array.from({ length: 2 * PAGE }, (_, at) => 1_000 * user + at)]);
  for (const { child } of workers.values()) await child.end();
  if (pulled === 0) throw new Error("no prefix was moved");
  console.log(`verified: every block of every prompt is right, ${pulled} of them moved instead of computed`);
}

await (process.argv[2] === "worker" ? worker(process.argv[3] ?? "1") : router());
