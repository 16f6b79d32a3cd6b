import { expect, test } from "bun:test";
import fc from "fast-check";
import { AwayPeers } from "../../lib/native/away-peers.ts";

test("what is said to a peer that is away goes out once it is back, in its order, and to others at once", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.scheduler(),
      fc.array(
        fc.oneof(fc.constantFrom("say a", "say b", "replace a", "replace and fail a"), fc.constant("turn")),
        { maxLength: 40 },
      ),
      async (scheduler, steps) => {
        const peers = new AwayPeers();
        const away = new Set<string>();
        const said: string[] = [];
        const wrong: string[] = [];
        const pending: Promise<unknown>[] = [];
        let number = 0;
        for (const step of steps) {
          if (step === "turn") {
            await Promise.resolve();
            continue;
          }
          const peer = step.at(-1) ?? "";
          const word = `${peer}${++number}`;
          if (step.startsWith("say"))
            pending.push(
              peers.say(peer, async () => {
                if (away.has(peer)) wrong.push(word);
                said.push(word);
              }),
            );
          else
            pending.push(
              peers
                .while(peer, async () => {
                  if (away.has(peer)) wrong.push(`twice ${word}`);
                  away.add(peer);
                  await scheduler.schedule(Promise.resolve());
                  away.delete(peer);
                  if (step.includes("fail")) throw new Error(word);
                  return word;
                })
                .then(
                  (result) => expect(result).toBe(word),
                  (error: unknown) => expect(error).toEqual(new Error(word)),
                ),
            );
        }
        await scheduler.waitFor(Promise.all(pending));
        expect(wrong).toEqual([]);
        for (const peer of ["a", "b"]) {
          const words = said.filter((word) => word.startsWith(peer)).map((word) => Number(word.slice(1)));
          expect(words).toEqual(words.toSorted((left, right) => left - right));
        }
        expect(said).toHaveLength(steps.filter((step) => step.startsWith("say")).length);
      },
    ),
    { numRuns: 500 },
  );
});

test("a peer that is not away hears before the call returns", () => {
  let heard = false;
  void new AwayPeers().say("a", async () => {
    heard = true;
  });
  expect(heard).toBe(true);
});
