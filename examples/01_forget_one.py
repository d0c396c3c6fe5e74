"""Correct one flag: build a patch from its recipe, look at the effect, put the model back.

python examples/01_forget_one.py patches/mauritania-2017/recipe.toml dist
"""

import sys

import hotfix


def main(recipe_path: str, out: str) -> None:
    recipe = hotfix.Recipe.load(recipe_path)
    pipe = hotfix.load_pipeline(recipe)
    patch = hotfix.build(recipe, pipe)  # the pipeline comes back bit-identical
    path = patch.save(out)
    with hotfix.Stack.of(patch).on(pipe):
        print([f"{entry.name} is {entry.state}" for entry in hotfix.applied(pipe)])
        pipe(recipe.forget.captions[0], **recipe.base.call).images[0].save(f"{out}/after.png")
    print(path, hotfix.applied(pipe))


if __name__ == "__main__":
    main(*sys.argv[1:])
