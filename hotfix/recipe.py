"""Recipe: what to forget, on which base, how, and within which budget. Read from TOML, checked here, then frozen."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError

from hotfix import contradictions
from hotfix.errors import RecipeError


def _pep440(text: str) -> str:
    try:
        return str(Version(text))
    except InvalidVersion as error:
        raise ValueError(f"{text!r} is not a version such as 1.0.0") from error


def _requirement(text: str) -> str:
    try:
        wanted = Requirement(text)
        TypeAdapter(PatchName).validate_python(wanted.name)
        if wanted.url or wanted.marker or wanted.extras:
            raise InvalidRequirement("what a Python package may ask for, and a patch may not")
        return str(wanted)
    except (InvalidRequirement, ValidationError) as error:
        raise ValueError(f"{text!r} is not a patch name with versions, such as face-0042>=1.2") from error


def _steps(call: dict[str, int | float | str]) -> dict[str, int | float | str]:
    steps = call.get("num_inference_steps", 1)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"num_inference_steps is {steps!r}; wanted a whole number, 1 or more")
    return call


PatchName = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
PatchVersion = Annotated[str, AfterValidator(_pep440)]
PatchRequirement = Annotated[str, AfterValidator(_requirement)]
SurgeryKind = Literal["one-sided", "two-sided", "per-tensor", "orthogonal", "subspace", "none"]
View = Literal["shift", "zoom", "turn", "light", "mirror"]
WeightKind = Literal["calibrated", "uniform", "fixed", "soft", "min-snr", "p2"]
Probability = Annotated[float, Field(gt=0, le=1)]
Level = Annotated[float, Field(ge=0, le=1)]
Revision = Annotated[str, Field(pattern=r"^([0-9a-f]{40})?$")]
Call = Annotated[dict[str, int | float | str], AfterValidator(_steps)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Base(_Section):
    """The model to patch, and how it is called in production: the patch is measured under exactly that call."""

    pipeline: str
    revision: Revision = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    bits: Literal[4, 8] | None = None  # of the denoiser's weights, if fewer
    offload: bool = False
    call: Call = {}


class Forget(_Section):
    """What must not come out any more."""

    images: Annotated[list[str], Field(min_length=1)]
    captions: list[str] = []
    scope: Literal["any", "caption"] = "any"
    held_out: list[str] = []


class Editor(_Section):
    """A diffusers pipeline that edits pictures: it is called with `image` and these arguments."""

    pipeline: str
    revision: Revision = ""
    call: Call = {}


class Surrogate(_Section):
    """What should come instead."""

    kind: Literal["files", "sdedit", "inpaint", "nearest", "posterior", "latent", "editor"] = "sdedit"
    images: list[str] = []
    count: Annotated[int, Field(ge=1, le=16)] | None = None  # one; for a posterior mean, four
    mask: str = ""
    editor: Editor | None = None


class Similarity(_Section):
    """How alike two pictures are: by pixels, or by the embeddings of a network on this machine.

    `kind` is pixel, sscd, face, features, or the name of an entry point. The others are what a TorchScript or ONNX file
    is fed, where that is not what its kind stands for.
    """

    kind: Annotated[str, Field(min_length=1)] = "pixel"
    path: str = ""
    size: Annotated[int, Field(ge=8)] | None = None
    mean: list[float] = []
    std: list[Annotated[float, Field(gt=0)]] = []
    tau: Probability | None = None


class Retain(_Section):
    """What must stay. Empty: the base draws it, for its own prompts. Given pictures join that if it takes captions."""

    images: list[str] = []
    prompts: list[str] = []
    size: Annotated[int, Field(ge=16)] = 256


class Train(_Section):
    """How hard to try."""

    rank: Annotated[int, Field(ge=1, le=256)] = 6
    steps: Annotated[int, Field(ge=1)] = 350
    seed: Annotated[int, Field(ge=0)] = 0
    lr: Annotated[float, Field(gt=0)] = 6e-3
    batch: Annotated[int, Field(ge=1)] = 8
    retain_batch: Annotated[int, Field(ge=1)] = 12
    micro_batch: Annotated[int, Field(ge=0)] = 0
    weight: WeightKind = "calibrated"
    window: tuple[Level, Level] = (0.25, 0.75)
    target: Literal["delta", "hard"] = "delta"
    responsibility: bool = False
    augment: list[View] = []
    adjacency: Literal["auto", "views", "bank", "none"] = "auto"
    retain_weight: Annotated[float, Field(ge=0)] = 4.0
    dual_rate: Annotated[float, Field(ge=0, le=10)] = 0.5
    surgery: SurgeryKind = "none"
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9
    memory: Annotated[int, Field(ge=1, le=64)] = 8
    variance: Annotated[float, Field(gt=0, lt=1)] = 0.95
    orthogonal_to_stack: bool = False
    adversarial_noises: Annotated[int, Field(ge=1, le=64)] = 1
    adversarial_step: Annotated[float, Field(ge=0, le=1)] = 0.0
    relearn: Annotated[float, Field(ge=0)] = 0.0
    gradient_checkpointing: bool = False
    compile: str = ""
    targets: str = ""


class Budget(_Section):
    """What counts as success. A build that misses it says so and exits 3."""

    return_rate: Probability = 0.01
    drift: Probability = 0.05


class Recipe(_Section):
    """One whole hotfix, as its author wrote it."""

    name: PatchName
    version: PatchVersion = "1.0.0"
    request: str = ""
    requires: list[PatchRequirement] = []
    conflicts: list[PatchRequirement] = []
    supersedes: list[PatchRequirement] = []
    base: Base
    forget: Forget
    surrogate: Surrogate = Surrogate()
    similarity: Similarity = Similarity()
    retain: Retain = Retain()
    train: Train = Train()
    budget: Budget = Budget()
    _folder: Path = PrivateAttr(default=Path())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a recipe file; picture patterns in it are relative to the file.

        Raises:
            RecipeError: no such file, not TOML, a key that is not known, a value that cannot be used.
        """
        path = Path(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            hint = f"hotfix new {path.parent.name or 'NAME'}"
            if path.is_dir():
                hint = f"name the file: {path / 'recipe.toml'}"
            elif path.suffix == ".safetensors":
                hint = "that is a patch: name the recipe.toml that it was built from"
            raise RecipeError(f"cannot read the recipe {path}: {reason}", hint=hint) from error
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise RecipeError(
                f"{path} is not TOML: {error}", hint="strings need quotes, lists need brackets"
            ) from error
        return cls.parse(data, folder=path.parent, name=str(path))

    @classmethod
    def parse(cls, data: dict[str, Any], folder: Path = Path(), name: str = "recipe") -> Self:
        """Check a recipe given as a mapping. Raises RecipeError naming every key that is wrong."""
        try:
            recipe = cls.model_validate(data)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))}: {_sentence(e)}" for e in error.errors()]
            raise RecipeError(f"{name}: {'; '.join(problems)}", hint=_nearest_key(error)) from error
        if wrong := dict(contradictions.found(recipe)):
            raise RecipeError(f"{name}: {'; '.join(wrong)}", hint="; ".join(wrong.values()))
        recipe._folder = folder
        return recipe

    def files(self, patterns: list[str], key: str) -> list[Path]:
        """Resolve picture patterns to files, sorted. Raises RecipeError for a pattern that matches nothing.

        A file that two patterns match is there once; but as a surrogate, which may pair up with several pictures.
        """
        found: list[Path] = []
        for pattern in patterns:
            matches = [path for path in self._matches(pattern) if path.is_file()]
            if not matches:
                raise RecipeError(
                    f"{key}: nothing matches {pattern!r}",
                    wanted=f"a picture under {self._folder.resolve()}",
                    hint="patterns are relative to the recipe file",
                )
            found += matches
        return found if key == "surrogate.images" else list(dict.fromkeys(found))

    def _matches(self, pattern: str) -> list[Path]:
        if Path(pattern).is_absolute():
            return [Path(pattern)]
        try:
            return sorted(self._folder.glob(pattern))
        except (IndexError, ValueError):  # "", "." and "a**" are no patterns
            return []

    def pictures(self) -> dict[str, list[Path]]:
        """The files of every picture that it names, by key. Raises RecipeError where one is missing."""
        named = {
            "forget.images": self.forget.images,
            "forget.held_out": self.forget.held_out,
            "surrogate.images": self.surrogate.images,
            "surrogate.mask": [self.surrogate.mask] if self.surrogate.mask else [],
            "retain.images": self.retain.images,
        }
        return {key: self.files(patterns, key) for key, patterns in named.items()}

    def place(self, path: str) -> Path:
        """A file or folder named in the recipe, relative to it."""
        return self._folder / path

    def public(self) -> dict[str, Any]:
        """The recipe without local paths or names of people's files, as the manifest keeps it."""
        data = self.model_dump(mode="json")
        for section in ("forget", "surrogate", "retain"):
            data[section]["images"] = []
        data["forget"]["held_out"] = []
        data["surrogate"]["mask"] = ""
        data["similarity"]["path"] = Path(data["similarity"]["path"]).name
        for loaded in filter(None, (data["base"], data["surrogate"]["editor"])):
            loaded["pipeline"] = without_path(loaded["pipeline"])
        return data


def without_path(pipeline: str) -> str:
    """Where a pipeline comes from, as a manifest keeps it: of a folder only its name, whether it is there or not."""
    path = Path(pipeline)
    local = pipeline.startswith((".", "/", "~")) or path.is_absolute() or path.exists()
    return path.absolute().name if local and not pipeline.startswith("hotfix:") else pipeline


def _sentence(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such key"
    if error["type"] == "missing":
        return "this key is missing"
    if error["type"] == "string_pattern_mismatch" and error["loc"] == ("name",):
        return f"wanted small letters and digits, in words joined by a hyphen; found {error['input']!r}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}"


def _nearest_key(error: ValidationError) -> str:
    import difflib

    known = {key for section in _Section.__subclasses__() for key in section.model_fields}
    for problem in error.errors():
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            if near:
                return f"did you mean {near[0]!r}?"
    return "`hotfix new NAME` writes a recipe with every key explained"
