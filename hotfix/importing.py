"""Import: an ordinary LoRA file as a patch. What it does was decided elsewhere; its manifest says no more than that.

Stock diffusers reads the file (or peft, where diffusers has no loader): key layouts and metadata are theirs to
understand. Only alphas are ours, which diffusers misreads where ranks differ. What cannot be kept exactly is refused.
"""

import copy
import hashlib
import json
import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from hotfix import beside, lora, patch
from hotfix.container import MAX_FILE, MAX_HEADER
from hotfix.errors import BaseMismatch, HotfixError, PatchFormatError, StackError
from hotfix.export import PEFT_CONFIG, PEFT_PREFIX, peft_config
from hotfix.fewer_bits import DENOISERS
from hotfix.fold import survivals
from hotfix.manifest import BaseIdentity, Manifest, now
from hotfix.patch import PEFT_KEY, A, Patch
from hotfix.ranks import even
from hotfix.reach import models
from hotfix.recipe import PatchName, PatchVersion, without_path
from hotfix.stack import applied
from hotfix.weights import sketched

FIRST, SECOND = re.compile(r"[._]lora[._](A|down)\.weight$"), re.compile(r"[._]lora[._](B|up)\.weight$")
ALPHA = ".alpha"
GLOBAL_ALPHAS = {"alpha", "lora_alpha", "network_alpha", "ss_network_alpha"}  # in headers, as some writers have them
SMALLER = "save the LoRA in half precision, or with a lower rank"
ENCODERS = ("text_encoder", "lora_te")


def check(file: Path, name: str, version: str) -> dict[str, Tensor]:
    """The tensors of a LoRA file that can become a patch of this name, as far as that can be told without its base.

    Raises:
        HotfixError: the name or the version is not one.
        PatchFormatError: not safetensors, a patch already, or more than LoRA factors of one denoiser.
    """
    for value, kind in ((name, PatchName), (version, PatchVersion)):
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            wanted = "a name of small letters, digits and hyphens, and a version such as 1.0.0"
            raise HotfixError(f"{value!r} cannot be used", wanted=wanted, hint=error.errors()[0]["msg"]) from error
    if file.suffix != ".safetensors":  # by this name diffusers would unpickle it
        raise PatchFormatError(f"{file.name} is not called .safetensors", hint="nothing else is ever read")
    tensors = patch.plain(file)
    if not any(map(FIRST.search, tensors)):
        raise PatchFormatError(f"{file.name} holds no LoRA factors", hint="it may be of another kind, such as LoKr")
    if bad := sorted(k for k in tensors if not (FIRST.search(k) or SECOND.search(k) or k.endswith(ALPHA))):
        dora = any(word in key for key in bad for word in ("dora_scale", "lora_magnitude"))
        raise PatchFormatError(
            f"{file.name} holds {'DoRA magnitudes' if dora else bad[0]}",
            wanted="pairs of LoRA factors and their alphas",
            hint="other changes of weights cannot be kept beside them exactly; train a plain LoRA",
        )
    if any(key.startswith(ENCODERS) for key in tensors):
        only = all(key.startswith(ENCODERS) for key in tensors)
        raise PatchFormatError(
            f"{file.name} changes {'only a text encoder' if only else 'a text encoder, too'}",
            wanted="factors of one denoiser",
            hint="a patch acts on one component; train a LoRA of the denoiser alone",
        )
    return tensors


def wrap(file: Path, pipe: Any, name: str, version: str, *, repo: str, commit: str = "", request: str = "") -> Patch:
    """Make a patch of a LoRA file for this base. The pipeline is not touched.

    Nothing was measured, and no forget picture is known: `scope` and `targets` of the manifest are empty.

    Args:
        file: .safetensors, in any layout that diffusers reads onto this pipeline, or of peft, with its
            adapter_config.json beside it.
        pipe: the base.
        name: of the new patch line.
        version: PEP 440.
        repo: where the base comes from.
        commit: 40 hex digits, if that is the Hub.
        request: the ticket that asked for it.

    Raises:
        HotfixError: as `check`.
        StackError: patches are on.
        BaseMismatch: the factors, or some of them, are not of this base.
    """
    raw = check(file, name, version)
    if on := applied(pipe):
        raise StackError(f"{on[0].name} is on this pipeline", hint="remove it first, or import onto a fresh pipeline")
    component = next((part for part in DENOISERS if part in models(pipe)), None)
    if component is None:
        raise BaseMismatch(f"the {type(pipe).__name__} has no denoiser", wanted=" or ".join(DENOISERS), hint="--base")
    model = models(pipe)[component]
    factors = _read(file, raw, pipe, component)
    reached, there = (_nonzero(state) for state in (factors, raw))
    if not factors or reached != there:
        raise BaseMismatch(
            f"{reached} of the {there} numbers in the second factors of {file.name} reach the {type(model).__name__}",
            wanted="all of them",
            hint="it was made for another base, or holds what is not a plain LoRA",
        )
    kinds = {tensor.dtype for key, tensor in raw.items() if SECOND.search(key)}
    entries = patch.from_torch({f"{component}.{key}": _small(tensor, kinds) for key, tensor in factors.items()})
    patch.check_factors(component, entries, file.name)
    patch.check_finite(entries, file.name)
    if (size := sum(entry.data.nbytes for entry in entries.values())) > MAX_FILE - MAX_HEADER:
        raise PatchFormatError(f"{file.name} would be a patch of {size} bytes", wanted="at most 1 GiB", hint=SMALLER)
    names = sorted(key.removesuffix(A) for key in factors if key.endswith(A))
    layers = {name: beside.innermost(model, name) for name in names}
    manifest = Manifest(
        name=name,
        version=version,
        digest=patch.digest(entries),
        base=BaseIdentity(
            repo=without_path(repo),
            commit=commit,
            pipeline_class=type(pipe).__name__,
            component=component,
            component_class=type(model).__name__,
            sketch=sketched(layers),
        ),
        recipe={"imported": {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}},
        scope=None,
        targets=[],
        strength=1.0,
        merge_survival=survivals(layers, factors),
        request=request,
        created=now(),
        tool=f"hotfix {installed('diffusion-hotfix')}",
    )
    return Patch(manifest.text(), entries)


def _nonzero(factors: dict[str, Tensor]) -> int:
    """How many numbers in the second factors are not zero: readers may drop, and fill up with, zeros only."""
    return sum(int(tensor.count_nonzero()) for key, tensor in factors.items() if SECOND.search(key))


def _baked(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """The factors without alphas: alpha / rank is in the second of each pair."""
    ranks = {FIRST.sub("", key): len(tensor) for key, tensor in raw.items() if FIRST.search(key)}
    layers = {half.sub("", key) for key in raw for half in (FIRST, SECOND) if half.search(key)}
    if idle := sorted({key for key in raw if key.endswith(ALPHA)} - {layer + ALPHA for layer in layers}):
        hint = "nobody can tell the strength of its factors"
        raise PatchFormatError(f"{idle[0]} is of no layer here", wanted="alphas called LAYER.alpha", hint=hint)
    scales = {layer: float(raw[layer + ALPHA]) / rank for layer, rank in ranks.items() if layer + ALPHA in raw}
    return {
        key: tensor.float() * scales.get(SECOND.sub("", key), 1.0) if SECOND.search(key) else tensor
        for key, tensor in raw.items()
        if not key.endswith(ALPHA)
    }


def _stated(file: Path, component: str) -> dict[str, Any] | None:
    """What the header says of rank and alpha, for peft, or None where it says nothing: stock diffusers writes it."""
    header, prefix = patch.said(file), f"{component}."
    if not header.keys() & {PEFT_KEY, *GLOBAL_ALPHAS}:
        return None
    try:
        stated = json.loads(header[PEFT_KEY])
        config = {key.removeprefix(prefix): value for key, value in stated.items() if key.startswith(prefix)}
        return config | {"r": config["r"], "lora_alpha": config["lora_alpha"]}  # for peft these may be missing
    except (ValueError, KeyError, AttributeError) as error:
        raise PatchFormatError(
            f"{file.name} has an alpha in its header that cannot be read",
            wanted=f"{prefix}r and {prefix}lora_alpha in {PEFT_KEY}",
            hint="nobody can tell the strength of these factors; save it with stock diffusers, or with its alphas",
        ) from error


def _read(file: Path, raw: dict[str, Tensor], pipe: Any, component: str) -> dict[str, Tensor]:
    """The factors, in float32 and with alpha = rank, as a stock reader puts them on this model."""
    twin = _without_weights(models(pipe)[component])
    alphas = any(key.endswith(ALPHA) for key in raw)
    try:
        if all(key.startswith(PEFT_PREFIX) for key in raw):
            state = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in raw.items()}
            if not (file.parent / PEFT_CONFIG).is_file():
                hint = "without it nobody can tell the strength of these factors"
                raise PatchFormatError(f"{file.name} has peft's keys", wanted=f"{PEFT_CONFIG} beside it", hint=hint)
            lora.put_on(twin, state, file.parent)
            return lora.taken(twin)
        stated = None if alphas else _stated(file, component)  # what is unreadable, diffusers would pass over
        if not hasattr(pipe, "load_lora_weights"):
            state = {key.removeprefix(f"{component}."): tensor for key, tensor in _baked(raw).items()}
            state = state if stated else even(state)
            lora.put_on(twin, state, stated or peft_config(state))
        else:
            other = copy.copy(pipe)
            setattr(other, component, twin)
            # As a file where the strength is in its header, as tensors where it is in its alphas.
            source = _baked(raw) if alphas else str(file.parent)
            options = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
            other.load_lora_weights(source, adapter_name=lora.ADAPTER, **options)
    except HotfixError:
        raise
    except Exception as error:  # other people's readers say in many ways that a file is not for a model
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BaseMismatch(
            f"{file.name} cannot be read onto the {type(twin).__name__}: {first.strip()}",
            hint="name the base that it was trained on with --base",
        ) from error
    return lora.taken(twin)


def _small(tensor: Tensor, kinds: set[torch.dtype]) -> Tensor:
    """In the dtype of the file, where that holds every number exactly."""
    small = tensor.to(next(iter(kinds))) if len(kinds) == 1 else tensor
    return small if torch.equal(small.float(), tensor) else tensor


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model with the shapes of its weights and one number behind each: enough to put adapters on."""
    memo = {id(p): nn.Parameter(torch.zeros(()).expand(p.shape), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo)
