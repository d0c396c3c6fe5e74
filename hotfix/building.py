"""Recipe → patch: the one place that knows the order of the steps."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version
from torch import Tensor

from hotfix import beside, cost, describe, lora, need, offload, pictures, processes, relations
from hotfix import checkpoint as unfinished
from hotfix.aside import aside
from hotfix.calibrate import Window
from hotfix.case import Case, prepare
from hotfix.compiled import compiled
from hotfix.denoiser import Denoiser
from hotfix.errors import RecipeError, StackError, joined
from hotfix.fold import survivals
from hotfix.manifest import BaseIdentity, Manifest, Scope, now
from hotfix.patch import A, Patch, digest, from_torch
from hotfix.recipe import Recipe
from hotfix.report import Build
from hotfix.rows import Bank
from hotfix.stack import Stack, applied
from hotfix.subspace import Directions, read_by, seed_above
from hotfix.train import Trained, train
from hotfix.weights import sketched
from hotfix.windows import windows

Progress = Callable[[int, int, Mapping[str, float]], None]
NOTHING = Stack()
FEWER = (
    "train.micro_batch = 1, train.gradient_checkpointing, base.offload, a smaller train.rank, "
    'base.dtype = "bfloat16", or base.bits = 8'
)


def build(
    recipe: Recipe,
    pipe: Any,
    *,
    stack: Stack = NOTHING,
    checkpoint: Path | None = None,
    progress: Progress = lambda step, steps, facts: None,
    stage: Callable[[str], None] = lambda words: None,
    spent: Callable[[Build], None] = lambda cost: None,
) -> Patch:
    """Train a patch on a pipeline; the pipeline comes back bit-identical.

    Where accelerate launched several processes, all of them have to call it, and share the work: each gets the patch.

    Args:
        recipe: what to forget, and how.
        pipe: the base, a diffusers pipeline without patches on it.
        stack: patches to build on top of. They are on while the new one learns, so that it keeps what they do, and it
            requires them from then on.
        checkpoint: a folder for the state of an unfinished build; one that is found there is resumed.
        progress: called with (step, steps, facts) while training.
        stage: called with a few words at the beginning of every stage, and with one line for every target on its
            surrogates: how many were taken, and why others were refused. The last line is what the build cost.
        spent: called with the same at the end, for a report. A patch does not hold it: the same recipe, the same bytes.

    Raises:
        HotfixError: more memory is needed than is free, somebody's adapters are on, or training broke down; the
            pipeline is as it was.
        RecipeError: the recipe or its pictures cannot be used; nothing was trained.
        StackError: patches are on, or the patch to be cannot be on together with `stack`; nothing was trained.
    """
    if recipe.train.orthogonal_to_stack and not stack.patches:
        raise RecipeError(
            "train.orthogonal_to_stack is true, but there is no patch beneath this one",
            hint="hotfix build RECIPE --stack LOCK, or leave the key out",
        )
    if on := applied(pipe):
        raise StackError(f"{on[0].name} is on this pipeline", hint="remove it first, or build on a fresh pipeline")
    to_be = recipe.model_copy(update={"requires": requires(recipe, stack)})
    if stack.patches and (wrong := relations.problems([*(patch.manifest for patch in stack.patches), to_be])):
        raise joined(wrong, StackError)
    denoiser = Denoiser(pipe, recipe.base.call, shared=processes.several())
    offload.refuse_pieces(denoiser.model)
    measured = cost.meter(denoiser.device)
    targets = recipe.train.targets or denoiser.targets
    with lora.attached(denoiser.model, targets, recipe.train.rank, recipe.train.seed) as adapter:
        need.of(recipe, denoiser, adapter).check()
    thrift, fits = frozen(denoiser, recipe.train.gradient_checkpointing), cost.enough("the build", FEWER)
    with fits, stack.on(pipe), thrift, compiled(denoiser.model, recipe.train.compile):
        stage("preparing surrogates and what must stay")
        case = prepare(recipe, denoiser, stage)
        stage("calibrating the timestep window")
        bank = Bank.of(denoiser, case)
        found = windows(denoiser, case, recipe.train, bank.forget)
        stage("training")
        state = None
        if checkpoint is not None:
            state = unfinished.path(checkpoint, recipe, denoiser.model, stack)
        below: Directions = {}
        seed = recipe.train.seed
        if recipe.train.orthogonal_to_stack:
            below, seed = read_by(stack, denoiser.component), seed_above(stack, seed)
        with lora.attached(denoiser.model, targets, recipe.train.rank, seed) as adapter, aside(denoiser):
            trained = train(
                denoiser,
                case,
                found,
                bank,
                adapter,
                recipe.train,
                drift_budget=recipe.budget.drift,
                below=below,
                checkpoint=state,
                progress=progress,
            )
            factors = adapter.tensors()
        stage(_summary(trained))
        if not trained.passed:
            stage("the held-out trial was not passed: measure before you ship")
        patch = _patch(recipe, denoiser, case, found, trained, factors, stack)
    if state is not None and processes.first():
        state.unlink(missing_ok=True)
    facts = Build(steps=trained.steps, processes=processes.count(), **measured())
    stage(describe.cost(facts))
    spent(facts)
    return patch


def requires(recipe: Recipe, stack: Stack) -> list[str]:
    """What a patch of this recipe needs, built on these patches."""
    return sorted({*recipe.requires, *(f"{patch.name}>={Version(patch.version).public}" for patch in stack.patches)})


def _summary(trained: Trained) -> str:
    """What the loop did, for people."""
    words = (
        f"{trained.steps} steps at strength {trained.strength:.2f}: forget and retain gradient in conflict in "
        f"{trained.conflict_rate:.0%} of them (mean cosine {trained.cosine:+.2f}), "
        f"{trained.opposed_steps} realised steps against the retain gradient"
    )
    return words if trained.readable == 1 else f"{words}; {trained.readable:.0%} of the input directions were left open"


def _patch(
    recipe: Recipe,
    denoiser: Denoiser,
    case: Case,
    windows: tuple[Window, ...],
    trained: Trained,
    factors: dict[str, Tensor],
    stack: Stack,
) -> Patch:
    entries = from_torch({f"{denoiser.component}.{name}": tensor for name, tensor in factors.items()})
    names = sorted(name.removesuffix(A) for name in factors if name.endswith(A))
    layers = {name: beside.innermost(denoiser.model, name) for name in names}
    public = recipe.public()
    manifest = Manifest(
        name=recipe.name,
        version=recipe.version,
        digest=digest(entries),
        base=BaseIdentity(
            repo=public["base"]["pipeline"],
            commit=recipe.base.revision,
            pipeline_class=denoiser.family,
            component=denoiser.component,
            component_class=type(denoiser.model).__name__,
            sketch=sketched(layers),
        ),
        recipe=public,
        requires=requires(recipe, stack),
        conflicts=recipe.conflicts,
        supersedes=recipe.supersedes,
        scope=Scope(
            t_lo=max(window.t_lo for window in windows),  # of several targets, where all of them were
            height=denoiser.size[0],
            width=denoiser.size[1],
            scheduler=type(denoiser.pipe.scheduler).__name__,
            call=dict(recipe.base.call),
        ),
        targets=[pictures.commitment(target.picture, recipe.name, recipe.version) for target in case.targets],
        strength=trained.strength,
        merge_survival=survivals(layers, factors),
        request=recipe.request,
        created=now(),
        tool=f"hotfix {version('diffusion-hotfix')}",
    )
    return Patch(manifest.text(), entries)


class frozen:
    """Evaluation mode without gradients on the base for the length of a build, and every flag back afterwards.

    With `checkpointing` the network keeps few states for a backward pass, and computes the others again.
    """

    def __init__(self, denoiser: Denoiser, checkpointing: bool = False) -> None:
        self.model = denoiser.model
        self.switches = checkpointing and not self.model.is_gradient_checkpointing
        if self.switches and not self.model._supports_gradient_checkpointing:
            raise RecipeError(
                f"a {type(self.model).__name__} cannot compute states again",
                wanted="train.gradient_checkpointing = false",
                hint="a smaller train.batch and train.retain_batch take less memory, too",
            )

    def __enter__(self) -> None:
        if self.switches:
            self.model.enable_gradient_checkpointing()
        self.training = {module: module.training for module in self.model.modules()}
        self.grad = {p: p.requires_grad for p in self.model.parameters()}
        self.model.eval().requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        if self.switches:
            self.model.disable_gradient_checkpointing()
        for module, training in self.training.items():
            module.training = training
        for p, grad in self.grad.items():
            p.requires_grad_(grad)
