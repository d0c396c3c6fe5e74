"""What must stay, by pixels and by networks: each number is the one of its definition, and no network is needed."""

import math

import pico
import pytest
import torch
from conftest import make_recipe, picture
from patching import random_patch
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPVisionConfig

from hotfix.case import prepare
from hotfix.denoiser import Denoiser
from hotfix.describe import summary
from hotfix.errors import HotfixError
from hotfix.intervals import Mean
from hotfix.keep import kept
from hotfix.networks import Networks, kid
from hotfix.pictures import from_image, to_images
from hotfix.report import Report
from hotfix.scoring import score
from hotfix.stack import Stack

SEEN = torch.stack([from_image(picture(seed)) for seed in range(6)])
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class Between(nn.Module):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one - other).abs().mean(dim=(1, 2, 3), keepdim=True)  # as LPIPS gives it: (B, 1, 1, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network of each kind: of features, of distances, and a CLIP whose words are those of the pico pipelines."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    torch.jit.script(network).save(str(folder / "features.ts"))
    torch.jit.script(Between()).save(str(folder / "lpips.ts"))
    text = CLIPTextConfig(vocab_size=len(pico.WORDS), max_position_embeddings=4, eos_token_id=1, **SMALL)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **SMALL)
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).save_pretrained(
        folder / "clip"
    )
    side = {"height": 16, "width": 16}
    images = CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False)
    CLIPProcessor(images, pico._words()).save_pretrained(folder / "clip")
    return {"features": folder / "features.ts", "lpips": folder / "lpips.ts", "clip": folder / "clip"}


# Each number


def test_kid_is_the_unbiased_polynomial_discrepancy_and_that_of_torchmetrics():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 12, generator=draw), 0.3 + torch.randn(40, 12, generator=draw)

    def k(a, b):
        return float((a.double() @ b.double() / 12 + 1) ** 3)

    same = sum(k(a, b) for one in (x, y) for i, a in enumerate(one) for j, b in enumerate(one) if i != j)
    cross = sum(k(a, b) for a in x for b in y)
    found = kid(x, y)
    assert found.value == pytest.approx(same / (40 * 39) - 2 * cross / 40**2, abs=1e-9)
    metric = KernelInceptionDistance(nn.Identity(), subsets=1, subset_size=40)
    for rows, real in ((x, True), (y, False)):
        metric.update(rows, real=real)
    assert found.value == pytest.approx(float(metric.compute()[0]), abs=1e-4)


def test_the_interval_of_kid_holds_what_many_pictures_say():
    draw = torch.Generator().manual_seed(1)

    def sample(n, shift):
        return shift + torch.randn(n, 6, generator=draw)

    values = [kid(sample(60, 0.0), sample(60, 0.4)) for _ in range(100)]
    true = sum(one.value for one in values) / len(values)  # it is unbiased
    held = sum(low <= true <= high for low, high in (one.interval for one in values))
    assert 88 <= held <= 100


def test_the_alignment_is_clips_of_each_picture_and_its_caption_alone(files):
    captions = ["a", "b", "a b", "b a", "a", "b"]
    found = Networks.load(clip=files["clip"]).clip(SEEN, captions)
    model, processor = CLIPModel.from_pretrained(files["clip"]), CLIPProcessor.from_pretrained(files["clip"])
    for one, caption, image in zip(found, captions, to_images(SEEN), strict=True):
        logits = model(**processor(text=[caption], images=[image], return_tensors="pt")).logits_per_image
        assert float(one) == pytest.approx(float(logits / model.logit_scale.exp()), abs=1e-5)


def test_a_ratio_of_means_has_the_interval_of_its_pairs():
    one = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 1
    found = Mean.of((2 * one).tolist(), one.tolist())
    assert found.value == pytest.approx(2) and found.interval == pytest.approx((2, 2))
    assert Mean.of([3.0]).interval is None


# The whole


def looked(tmp_path, family, pipe, patches, networks=Networks()):
    denoiser = Denoiser(pipe, pico.CALLS[family])
    case = prepare(make_recipe(tmp_path, family), denoiser)
    return kept(denoiser, Stack.of(*patches), case, 0, 16, None, networks)


@pytest.mark.parametrize("retain", [{"prompts": []}, {"images": ["forget/../mine/*.png"]}])
def test_drift_is_looked_at_on_many_drawings_whatever_the_recipe_names(tmp_path, retain):
    recipe, denoiser = make_recipe(tmp_path, "sd3"), Denoiser(pico.sd3(), pico.CALLS["sd3"])
    (tmp_path / "mine").mkdir()
    for number in range(20, 24):
        picture(number).save(tmp_path / "mine" / f"{number}.png")
    recipe = recipe.model_copy(update={"retain": recipe.retain.model_copy(update=retain)})
    case = prepare(recipe, denoiser)
    found = kept(denoiser, Stack(), case, 0, 16, None, Networks())
    wanted = 2 if case.given else 16  # each caption once; or none, from as many seeds
    assert found.n == wanted and (found.before is not None) == bool(case.given)


def test_without_a_patch_nothing_has_moved_and_without_networks_nothing_else_is_said(tmp_path, family, pipe):
    found = looked(tmp_path, family, pipe, [])
    assert found.drift_rmse == 0 and found.psnr is None and found.lost == []
    assert found.neighbours.drift.value == 0
    assert found.networks == {} and found.kid is found.lpips is found.alignment is None


def test_psnr_is_that_of_the_mean_squared_error(tmp_path, family, pipe):
    found = looked(tmp_path, family, pipe, [random_patch(pipe, "random", 1)])
    assert found.psnr_interval[0] <= found.psnr <= found.psnr_interval[1]
    assert found.psnr <= -20 * math.log10(found.drift_rmse)  # Jensen: the root of a mean is no less than the mean root


def test_every_network_that_is_given_is_in_the_report_and_on_the_page(tmp_path, files):
    pipe = pico.sd3()
    stack = Stack.of(random_patch(pipe, "random", 1, size=2.0))
    networks = Networks.load(**files)
    report = score(pipe, make_recipe(tmp_path, "sd3"), stack=stack, n=2, networks=networks)
    found = report.retain
    assert set(found.networks) == {"features", "lpips", "clip"}
    assert found.networks["clip"].startswith("clip sha256:") and "/" not in str(found.networks)
    assert found.lpips.value > 0 and found.feature_drift.value > 0 and found.kid != found.kid_base
    change = found.alignment.value - found.alignment_before.value
    assert found.alignment_change.value == pytest.approx(change, abs=1e-6)
    assert Report.load(report.save(tmp_path / "report.json")) == report
    page = report.to_html(tmp_path / "report.html").read_text()
    for name in found.networks.values():
        assert name in page
    assert "LPIPS" in summary(report) and "KID" in summary(report)


@pytest.mark.parametrize("kind", ["features", "lpips", "clip"])
def test_a_file_that_is_no_such_network_ends_in_a_sentence(tmp_path, kind):
    (tmp_path / "words.txt").write_text("no network")
    for name in ("words.txt", "nothing"):
        with pytest.raises(HotfixError, match=f"--{kind} {name} cannot be loaded"):
            Networks.load(**{kind: tmp_path / name})


def test_clip_is_refused_where_there_is_nothing_to_read(tmp_path, files):
    with pytest.raises(HotfixError, match="reads no captions"):
        score(pico.ddpm(), make_recipe(tmp_path, "ddpm"), n=2, networks=Networks.load(clip=files["clip"]))
