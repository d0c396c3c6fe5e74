"""Build every published patch again: the file, its report and its card, from the recipe beside them.

python patches/make.py [--n 300] [NAME ...]
"""

import argparse
import time
from pathlib import Path

import hotfix
from hotfix import card, console
from hotfix.describe import summary

HERE = Path(__file__).parent


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
    story = (folder / "recipe.toml").read_text().splitlines()[0].removeprefix("# ")
    usage = card.local(patch.manifest.base.repo, f"patches/{name}/{path.name}")
    (folder / "README.md").write_text(card.body(patch, report, story, usage))
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
