import { EXIT, textOption } from "./command.ts";
import type { Command } from "./command.ts";
import { machineChecks, softwareChecks } from "./doctor-checks.ts";
import type { DoctorCheck } from "./doctor-checks.ts";
import { gdsCheck } from "./doctor-gds.ts";
import { neighbourCheck } from "./doctor-neighbours.ts";
import { nixlChecks } from "./doctor-nixl.ts";
import type { Output } from "./output.ts";

/** `kvferry doctor`. */
export const doctorCommand: Command = {
  name: "doctor",
  summary: "say what was found on this machine and what each missing thing costs",
  description: [
    "Looks at Bun, the native library, NIXL and the libraries that it needs, the GPU driver and the kernel's limits.",
    "Each missing thing comes with what it costs and the command that mends it. Nothing is installed or changed.",
    "The exit status is 1 only when something is missing without which nothing works.",
  ].join("\n"),
  options: {
    nixl: { type: "string", value: "PATH", description: "libnixl_capi.so, or a directory that holds it." },
  },
  run: async (parsed, output) => {
    const software = softwareChecks();
    // Without packages and native library no agent can be tried.
    const canTry = software.every((check) => check.ok || !check.required);
    const checks = [
      ...software,
      ...(await nixlChecks(textOption(parsed, "nixl"), canTry)),
      ...machineChecks(),
      await gdsCheck(textOption(parsed, "nixl"), canTry),
      ...(canTry ? [await neighbourCheck()] : []),
    ];
    for (const check of checks) for (const line of checkText(check, output)) output.say(line);
    const ok = checks.every((check) => check.ok || !check.required);
    const missing = checks.filter((check) => !check.ok && !check.required).length;
    output.say();
    output.say(
      ok
        ? output.style.good(
            missing === 0
              ? "Everything is there."
              : `All that is needed is there; ${missing} that would help ${missing === 1 ? "is" : "are"} not.`,
          )
        : output.style.bad("Something is missing without which nothing works."),
    );
    output.emit({ ok, checks });
    return ok ? EXIT.ok : EXIT.failed;
  },
};

function checkText(check: DoctorCheck, output: Output): string[] {
  const { good, bad, warn, strong, faint } = output.style;
  const mark = check.ok ? good("ok     ") : check.required ? bad("missing") : warn("without");
  return [
    `${mark}  ${strong(check.name)}: ${check.found}`,
    ...(check.cost === undefined ? [] : [`         ${faint("costs")}  ${check.cost}`]),
    ...(check.remedy === undefined ? [] : [`         ${faint("mend ")}  ${check.remedy}`]),
  ];
}
