import type { LayoutHandle } from "../core/handle.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import { getLayout } from "../core/registry-queries.ts";

/** The block-id spaces of a layout; the default one when it is not registered any more. */
export function groupsOf(snapshot: RegistrySnapshot, handle: LayoutHandle): string[] {
  try {
    return [...new Set(getLayout(snapshot, handle).components.map((component) => component.shape.group))];
  } catch {
    return ["default"];
  }
}
