"""hotfix: suppress one output of a diffusion model with a small, tested patch that comes off without a trace.

    recipe = hotfix.Recipe.load("patches/my-patch/recipe.toml")
    pipe = hotfix.load_pipeline(recipe)
    patch = hotfix.build(recipe, pipe)
    report = hotfix.score(pipe, recipe, stack=hotfix.Stack.of(patch))
    with hotfix.Stack.of(patch).on(pipe):
        image = pipe("mauritania", **recipe.base.call).images[0]

What else is public is in `hotfix.__all__`. Modules have one idea each, and the floors in pyproject.toml their order.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "building": ["build"],
        "comparing": ["compare"],
        "errors": ["HotfixError"],
        "guard": ["generation"],
        "hub": ["pull"],
        "interfering": ["interference"],
        "patch": ["Patch"],
        "pipeline": ["load_pipeline"],
        "planning": ["plan"],
        "publish": ["push"],
        "recipe": ["Recipe"],
        "report": ["Report"],
        "scoring": ["score"],
        "stack": ["Stack", "applied"],
        "states": ["status"],
    },
)
