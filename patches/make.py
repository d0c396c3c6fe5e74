"""Build every published patch again: the file, its report and its card, from the recipe beside them.

python patches/make.py [--n 300] [NAME ...]
"""

import argparse
import time
from pathlib import Path

import hotfix
from hotfix import console
from hotfix.describe import describe, summary

HERE = Path(__file__).parent

CARD = """\
# {name} {version}

{story}

## How to use

```python
import hotfix

pipe = hotfix.load_pipeline("{base}")
hotfix.Stack.of(hotfix.Patch.load("patches/{name}/{file}")).apply(pipe)
```

## What it says of itself

```text
{facts}
```

## What was measured

```text
{summary}
```

Measured on {hardware}. Intervals are Clopper–Pearson, 95%; `report.json` has every number.

## What this does and does not say

{words}

Attacks run: {run}. Not run: {not_run}.
"""


def make(name: str, n: int) -> None:
    folder = HERE / name
    recipe = hotfix.Recipe.load(folder / "recipe.toml")
    pipe = hotfix.load_pipeline(recipe)
    started = time.monotonic()
    with console.bar() as progress:
        patch = hotfix.build(recipe, pipe, progress=progress)
    seconds = time.monotonic() - started
    path = patch.save(folder)
    report = hotfix.score(pipe, recipe, stack=hotfix.Stack.of(patch), n=n)
    report.save(folder / "report.json")
    card = CARD.format(
        name=patch.name,
        version=patch.version,
        story=(folder / "recipe.toml").read_text().splitlines()[0].removeprefix("# "),
        base=patch.manifest.base.repo,
        file=path.name,
        facts=describe(patch),
        summary=summary(report),
        hardware=report.hardware,
        words="\n".join(f"- {words}" for words in report.words),
        run="; ".join(report.attacks_run),
        not_run="; ".join(report.attacks_not_run),
    )
    (folder / "README.md").write_text(card)
    print(f"{summary(report)}\n  built in {seconds:.0f} s, {path.stat().st_size} bytes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(path.parent.name for path in HERE.glob("*/recipe.toml")))
    parser.add_argument("--n", type=int, default=300, help="pictures drawn for every rate")
    args = parser.parse_args()
    console.quiet_libraries()
    for name in args.names:
        make(name, args.n)


if __name__ == "__main__":
    main()
