// A process that lives to be killed, or to stay: it has a pool of blocks, and pushes and pulls when it is told to.
import { Transport, type Peer, type Transfer } from "../../index.ts";
import { ALL_BLOCKS, KILL_OPTIONS, POOL, type PeerWord, type SurvivorWord } from "./kill-words.ts";

const workerId = BigInt(process.argv[2] ?? "2");
const transport = await Transport.open({ workerId, ...KILL_OPTIONS });
const pool = await transport.register({ ...POOL, name: "pool" });
await pool.fill({ random: Number(workerId) });
let survivor: Peer | undefined;
const running = new Set<Transfer>();

const say = (word: PeerWord): void => void process.send?.(word);

process.on("message", (word: SurvivorWord) => {
  void act(word).catch((error: unknown) => say({ say: "failed", why: String(error) }));
});

async function act(word: SurvivorWord): Promise<void> {
  switch (word.do) {
    case "export":
      say({ say: "package", bytes: await transport.exportMetadata() });
      return;
    case "import":
      survivor = await transport.importMetadata(word.bytes);
      say({ say: "imported" });
      return;
    case "forget":
      await survivor?.forget();
      survivor = undefined;
      say({ say: "imported" });
      return;
    case "fill": {
      // What it pulled itself may be in quarantine here too.
      const held = new Set(pool.quarantinedBlocks().map(({ block }) => block));
      const blocks = ALL_BLOCKS.filter((block) => !held.has(block));
      await pool.fill({ random: word.seed }, { blocks });
      const sums = ALL_BLOCKS.map(() => "");
      for (const [at, sum] of (await pool.checksums(blocks)).entries()) sums[blocks[at] ?? -1] = sum;
      say({ say: "sums", sums });
      return;
    }
    case "push":
    case "pull": {
      if (survivor === undefined) return;
      const there = survivor.layout("pool");
      const [source, destination] = word.do === "push" ? [pool, there] : [there, pool];
      const { sourceBlocks, destinationBlocks, deadlineMs } = word;
      const tag = word.tag === null ? {} : { notify: word.tag };
      const transfer = transport.transfer({
        source,
        sourceBlocks,
        destination,
        destinationBlocks,
        deadlineMs,
        ...tag,
      });
      running.add(transfer);
      // Whatever becomes of it is for the survivor to see.
      transfer.catch(() => undefined).finally(() => running.delete(transfer));
      return;
    }
    case "end":
      await Promise.allSettled(running);
      say({ say: "ended" });
      return;
    case "checksums":
      say({ say: "sums", sums: await pool.checksums(word.blocks) });
      return;
  }
}
