import { mappedAddresses, throughNixl } from "../core/attachment.ts";
import type { Attachment } from "../core/layout.ts";
import type { MetadataPackage, PackageComponent, PackageLayout } from "../core/package.ts";
import type { NeighbourAttachment } from "./neighbour-import.ts";

/**
 * How this process reaches the components of a package: mapped, over NIXL, or with their owner's help.
 *
 * @param near - What of the package is mapped here; a sentence that says why nothing can be; null before it was tried.
 */
export function attachmentsOf(
  metadata: MetadataPackage,
  near: NeighbourAttachment | string | null,
): (layout: PackageLayout, component: PackageComponent) => Attachment {
  const agent = metadata.wireName;
  const reachable = metadata.nixlMetadata.byteLength > 0;
  // Components that only their owner can touch mostly have the reason in common: they then share what says so.
  let shared: { readonly why: string | null; readonly staged: Attachment } | undefined;
  return (layout, component) => {
    const found = near === null || typeof near === "string" ? near : near.component(layout, component);
    if (found !== null && typeof found === "object")
      return mappedAddresses(found.bases, found.storage ?? undefined, found.via ?? undefined);
    if (!layout.stagedOnly && reachable && component.storage.kind !== "disk")
      return throughNixl(agent, component.regionAddresses, found ?? undefined);
    if (shared === undefined || shared.why !== found)
      shared = {
        why: found,
        staged: { kind: "staged", agent, ...(found === null ? null : { unmapped: found }) },
      };
    return shared.staged;
  };
}
