"""Put two published patches on one pipeline, take the first off again: the other stays, bit for bit.

python examples/02_stack_two.py patches/mauritania-2017/*.safetensors patches/syria-2025/*.safetensors
"""

import sys

import hotfix


def main(first: str, second: str) -> None:
    one, two = hotfix.Patch.load(first), hotfix.Patch.load(second)
    pipe = hotfix.load_pipeline(one.manifest.base.repo)
    both = hotfix.Stack.of(one, two)
    both.check(pipe)  # every problem at once, before anything is touched
    both.apply(pipe)
    hotfix.Stack.of(one).remove(pipe)
    print([f"{entry.name} {entry.version} is {entry.state}" for entry in hotfix.applied(pipe)])
    both.remove(pipe)
    print(hotfix.applied(pipe))


if __name__ == "__main__":
    main(*sys.argv[1:])
