import type { LayoutHandle } from "../core/handle.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import { getLayout } from "../core/registry-queries.ts";

/**
 * The block-id spaces of a layout; the default one when it is not registered any more.
 *
 * @param names - Only the spaces of these components.
 */
export function groupsOf(
  snapshot: RegistrySnapshot,
  handle: LayoutHandle,
  names?: readonly string[],
): string[] {
  try {
    const shapes = getLayout(snapshot, handle).components.map((component) => component.shape);
    const wanted = names === undefined ? shapes : shapes.filter((shape) => names.includes(shape.name));
    return [...new Set(wanted.map((shape) => shape.group))];
  } catch {
    return ["default"];
  }
}
