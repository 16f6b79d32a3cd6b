import { expect, test } from "bun:test";
import { countTests } from "../../.ci/suite.ts";

const end = (output: string, code = 0): ReturnType<typeof countTests> =>
  countTests(["bun", "test"], { code, output, seconds: 1 });
const CLOSING =
  "\n 12 pass\n 2 skip\n 1 todo\n 0 fail\n 40 expect() calls\nRan 15 tests across 3 files. [1.00s]\n";

test("the closing lines are counted", () => {
  expect(end(CLOSING)).toMatchObject({ passed: 12, failed: 0, skipped: 3 });
});

test("skipped tests are named", () => {
  expect(end(`(skip) needs a GPU\n${CLOSING}`).text).toContain("needs a GPU");
});

test("tests that needed another try are named", () => {
  const { text } = end(`(pass) waits for a peer (attempt 2) [3.00ms]\n(pass) does not\n${CLOSING}`);
  expect(text).toContain("more than one try: (pass) waits for a peer (attempt 2)");
  expect(text).not.toContain("does not");
});

test.each([
  ["a run that died before its closing lines", "(pass) one\nSegmentation fault\n", 139],
  ["a run without tests", "No tests found!\n", 1],
  ["a run that ended badly though no test failed", CLOSING, 1],
  ["a run in which nothing ran", " 0 pass\n 0 fail\nRan 0 tests across 0 files. [1ms]\n", 0],
])("%s counts as a failure", (_name, output, code) => {
  expect(end(output, code).failed).toBe(1);
});

test("failed tests are counted as they are", () => {
  expect(end(CLOSING.replace(" 0 fail", " 3 fail"), 1)).toMatchObject({ passed: 12, failed: 3 });
});

test("what a failed test said is shown, however much came after it, and nothing of others", () => {
  const others = "(pass) another\nnothing of note\n".repeat(300);
  const { text } = end(
    `said before\n(pass) first\nerror: the bytes differ\n(fail) second [1.00ms]\n${others}\n1 tests failed:\n(fail) second [1.00ms]\n${CLOSING.replace(" 0 fail", " 1 fail")}`,
    1,
  );
  expect(text.startsWith("error: the bytes differ\n(fail) second [1.00ms]\n")).toBe(true);
  expect(text).not.toContain("said before");
});
