"""Write the golden file of the current schema. Run once for every schema, and never again for an old one.

python tests/golden/make.py
"""

import json
from pathlib import Path

from hotfix.container import Entry
from hotfix.manifest import SCHEMA_VERSION, BaseIdentity, Commitment, Manifest, Scope
from hotfix.patch import Patch, digest

HERE = Path(__file__).parent


def main() -> None:
    entries = {
        "unet.mid_block.attentions.0.to_q.lora_A.weight": Entry("F32", (2, 4), memoryview(bytes(range(32)))),
        "unet.mid_block.attentions.0.to_q.lora_B.weight": Entry("F32", (4, 2), memoryview(bytes(range(32, 64)))),
        "unet.mid_block.resnets.0.conv1.lora_A.weight": Entry("BF16", (2, 4, 3, 3), memoryview(bytes(range(144)))),
        "unet.mid_block.resnets.0.conv1.lora_B.weight": Entry("BF16", (4, 2, 1, 1), memoryview(bytes(range(16)))),
    }
    manifest = Manifest(
        name="golden",
        version="1.0.0",
        digest=digest(entries),
        base=BaseIdentity(
            repo="acme/model",
            commit="0" * 40,
            pipeline_class="DDPMPipeline",
            component="unet",
            component_class="UNet2DModel",
            sketch={"mid_block.attentions.0.to_q": 0.25},
        ),
        recipe={"name": "golden"},
        requires=["other>=1"],
        conflicts=["third"],
        supersedes=["old"],
        scope=Scope(t_lo=0.3, height=32, width=32, scheduler="DDPMScheduler", call={"num_inference_steps": 50}),
        targets=[Commitment(salt="0" * 32, sha256="1" * 64)],
        strength=0.75,
        merge_survival={"bfloat16": 0.5, "float16": 0.9},
        request="TICKET-1, approved by “Ada”",
        created="2026-11-21T00:00:00Z",
        tool="hotfix 0.1.0",
    )
    patch = Patch(manifest.text(), entries)
    path = patch.save(HERE / f"schema-{SCHEMA_VERSION}.safetensors")
    path.with_suffix(".json").write_text(json.dumps({"id": patch.id, "digest": manifest.digest}, indent=2) + "\n")


if __name__ == "__main__":
    main()
