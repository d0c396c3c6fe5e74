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

for batch, micro in ((8, 0), (8, 1), (9, 3), (4 * COUNT - 1, 2)):
    mine = processes.share(batch, "train.batch", micro)
    ones, parts = torch.zeros(batch), torch.tensor([float(len(mine))])
    for part in mine:
        assert 0 < len(ones[part]) <= (micro or batch)
        ones[part] += 1
    ones, parts = processes.total(ones, parts)
    assert torch.equal(ones, torch.ones(batch))  # every row is learned from once,
    assert parts.item() == COUNT * len(mine)  # and the network asked as often by all
for batch, micro in ((COUNT - 1, 0), (COUNT + 1, 1)):
    try:
        processes.share(batch, "train.batch", micro)
    except RecipeError as error:
        assert f"train.batch = {batch}" in str(error) and f"on {COUNT} processes" in str(error)
    else:
        raise AssertionError
assert processes.agreed({"passed": MINE}) == {"passed": 0}
