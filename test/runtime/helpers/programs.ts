/** Runs a program, and says whether it is there and ended well. */
export function ran(...command: [string, ...string[]]): boolean {
  return (
    Bun.which(command[0]) !== null && Bun.spawnSync(command, { stdout: "ignore", stderr: "ignore" }).success
  );
}
