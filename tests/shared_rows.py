"""What each of several processes gets from hotfix.processes; started by test_processes.py with torchrun."""

import torch

from hotfix import processes
from hotfix.errors import RecipeError

COUNT = processes.count()
MINE = processes.state().process_index
asked = []


def rows(some):
    asked.append(len(some))
    return torch.tensor([[10.0 * row, row] for row in some])


assert processes.several() and processes.first() == (MINE == 0)
for count in (1, 2, 3, 5, 9):
    wanted = torch.tensor([[10.0 * row, row] for row in range(count)])
    assert torch.equal(processes.spread(count, rows), wanted), count
assert asked == [-(-count // COUNT) for count in (1, 2, 3, 5, 9)]  # nobody computes all of them

mine = processes.share(8, "train.batch")
ones, one = torch.zeros(8), torch.ones(1)
ones[mine] = 1
ones, one = processes.total(ones, one)
assert torch.equal(ones, torch.ones(8)) and one.tolist() == [COUNT]  # every row is learned from once
try:
    processes.share(COUNT - 1, "train.batch")
except RecipeError as error:
    assert f"train.batch = {COUNT - 1}, on {COUNT} processes" in str(error)
else:
    raise AssertionError
assert processes.agreed({"passed": MINE}) == {"passed": 0}
