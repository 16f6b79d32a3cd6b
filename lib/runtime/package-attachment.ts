import { mappedAddresses } from "../core/attachment.ts";
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
  const reachable = metadata.nixlMetadata.byteLength > 0;
  return (layout, component) => {
    const found = near === null || typeof near === "string" ? near : near.component(layout, component);
    if (found !== null && typeof found === "object")
      return mappedAddresses(found.bases, found.storage ?? undefined, found.via ?? undefined);
    const why = found === null ? undefined : { unmapped: found };
    if (layout.stagedOnly || !reachable || component.storage.kind === "disk")
      return { kind: "staged", agent: metadata.wireName, ...why };
    return { kind: "nixl", agent: metadata.wireName, bases: component.regionAddresses, ...why };
  };
}
