"""hotfix: suppress one output of a diffusion model with a small, tested patch that comes off without a trace."""

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
