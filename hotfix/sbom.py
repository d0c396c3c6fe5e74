"""A bill of materials of a patched pipeline: CycloneDX, with the base as ancestor and every patch in its pedigree.

The one door to cyclonedx, the extra `sbom`. It is written from the lock and the manifests: no pipeline is loaded.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Diff, PatchClassification, Pedigree
from cyclonedx.model.component import Patch as PedigreePatch
from cyclonedx.model.issue import IssueClassification, IssueType
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from hotfix import provenance
from hotfix.container import content
from hotfix.describe import SUPPRESSION
from hotfix.manifest import BaseIdentity, now
from hotfix.patch import Patch

MODEL = ComponentType.MACHINE_LEARNING_MODEL


def bom(pipeline: str, patches: Sequence[Patch]) -> str:
    """The bill as JSON. The same pipeline and patches give the same serial number.

    Args:
        pipeline: its name, NAME@COMMIT where it has one.
        patches: in stack order, as they were read from their files.
    """
    name, _, commit = pipeline.partition("@")
    bases = {one.manifest.base.repo: one.manifest.base for one in patches}
    model = Component(
        type=MODEL,
        name=name,
        version=commit or None,
        bom_ref="pipeline",
        pedigree=Pedigree(
            ancestors=[_base(one) for one in bases.values()], patches=[_pedigree(patch) for patch in patches]
        ),
    )
    parts = [_component(patch) for patch in patches]
    tool = Component(type=ComponentType.APPLICATION, name="diffusion-hotfix", version=version("diffusion-hotfix"))
    made = Bom(
        serial_number=uuid5(NAMESPACE_URL, "\n".join(["hotfix", pipeline, *(patch.id for patch in patches)])),
        metadata=BomMetaData(
            component=model, timestamp=datetime.fromisoformat(now()), tools=ToolRepository(components=[tool])
        ),
        components=parts,
    )
    made.register_dependency(model, parts)
    return JsonV1Dot6(made).output_as_string(indent=2)


def _base(base: BaseIdentity) -> Component:
    found = provenance.base(base)
    return Component(
        type=MODEL,
        name=base.repo,
        version=base.commit or None,
        bom_ref=f"base {base.repo}",
        purl=PackageURL.from_string(found["uri"]) if "uri" in found else None,
        properties=[Property(name="hotfix:sketch", value=found["digest"]["hotfixSketch"])],
    )


def _pedigree(patch: Patch) -> PedigreePatch:
    """What a pedigree can hold of a patch: its file, and the request that it answers. The library sorts them."""
    file = patch.source.name if patch.source else None
    request = patch.manifest.request or None
    issue = IssueType(
        type=IssueClassification.DEFECT, id=patch.id, name=f"{patch.name} {patch.version}", description=request
    )
    return PedigreePatch(
        type=PatchClassification.UNOFFICIAL, diff=Diff(url=XsUri(file)) if file else None, resolves=[issue]
    )


def _component(patch: Patch) -> Component:
    """The rest of it: its file's hash, its id, and what it says of itself."""
    hashes = []
    if patch.source:
        digest = hashlib.sha256(content(patch.source)).hexdigest()
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
    return Component(
        type=MODEL,
        name=patch.name,
        version=patch.version,
        bom_ref=patch.id,
        description=SUPPRESSION,
        hashes=hashes,
        properties=[
            Property(name="hotfix:id", value=patch.id),
            Property(name="hotfix:tool", value=patch.manifest.tool),
        ],
    )
