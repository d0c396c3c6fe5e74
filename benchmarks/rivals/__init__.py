"""The published objectives that hotfix is compared with, each written anew from its formulas, one module for each.

Every module has one entry, `train(problem, *, steps, lr, <its knob>, rows)`, which trains `problem.parameters` in
place, and constants: STEPS, LR, BATCH and MODE (the way of training they belong to) as published, None where the
number is not known to us; KNOB, the argument that a sweep at equal compute varies, and SWEEP, its values. The formulas
beside `train` are pure functions. Common ground is `problem.py`.
"""
