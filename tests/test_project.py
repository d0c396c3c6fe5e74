"""What the one-sided projection promises, over random gradients of every size and scale."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls
from torchjd.aggregation import DualProj, PCGrad, Sum, UPGrad
from torchjd.linalg import DualConeProjector

from hotfix.project import hold, orthogonal, per_tensor, project
from hotfix.surgery import Retained, combine, strictness


@st.composite
def gradient_pairs(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.integers(1, 200))
    g, r = torch.randn(2, size, generator=generator, dtype=torch.float64)
    return g * 10 ** draw(st.floats(-4, 4)), r * 10 ** draw(st.floats(-4, 4))


def assert_agrees(projected, direction, g):
    """Up to rounding, which is relative to the gradient that went in."""
    assert projected @ direction >= -1e-9 * g.norm() * direction.norm()


@given(gradient_pairs())
def test_never_opposes_retain(pair):
    g, r = pair
    assert_agrees(project(g, onto=r), r, g)


@given(gradient_pairs())
def test_identity_without_conflict(pair):
    g, r = pair
    r = r if g @ r >= 0 else -r
    assert torch.equal(project(g, onto=r), g)


@given(gradient_pairs())
def test_idempotent(pair):
    g, r = pair
    once = project(g, onto=r)
    torch.testing.assert_close(project(once, onto=r), once, rtol=1e-6, atol=1e-9 * float(g.norm()))


@given(gradient_pairs())
def test_still_descends_the_forget_loss(pair):
    g, r = pair
    assert_agrees(project(g, onto=r), g, g)


@given(gradient_pairs(), st.floats(1e-3, 1e3))
def test_indifferent_to_the_scale_of_retain(pair, scale):
    g, r = pair
    torch.testing.assert_close(project(g, onto=r), project(g, onto=scale * r))


@given(gradient_pairs())
def test_zero_retain_gradient_changes_nothing(pair):
    g, _ = pair
    assert torch.equal(project(g, onto=torch.zeros_like(g)), g)


@given(gradient_pairs())
def test_both_sides_together_are_torchjds_pcgrad(pair):
    g, r = pair
    ours = project(g, onto=r) + project(r, onto=g)
    torch.testing.assert_close(ours, PCGrad()(torch.stack([g, r])), rtol=1e-6, atol=1e-9 * float(g.norm() + r.norm()))


class ByNonNegativeLeastSquares(DualConeProjector):
    """torchjd's QP, min ‖Jᵀv‖² over v ≥ u, by scipy instead of its own solver, which is an extra and under the GPL."""

    def __call__(self, U, G):
        root = np.linalg.cholesky(G.numpy()).T  # ‖Jᵀv‖ = ‖root v‖
        return torch.from_numpy(np.stack([u + nnls(root, -root @ u)[0] for u in U.reshape(-1, len(G)).numpy()])).view(
            U.shape
        )


@st.composite
def two_directions(draw):
    """Two gradients of like size: a QP in their products knows nothing of what is sixteen digits smaller."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size, tilt = draw(st.integers(3, 200)), draw(st.floats(-1, 1))
    g, r = torch.randn(2, size, generator=generator, dtype=torch.float64)
    return g, r + tilt * g


def stepped(kind, g, r, weight, kappa=1.0):
    """What the loop steps along when this step's retain gradient is all that it has seen."""
    return combine(kind, g, r, Retained(mean=r, last=r[None]), [len(g)], weight, kappa)


ONLY_FORGET = torch.tensor([1.0, 0.0], dtype=torch.float64)


@given(two_directions())
@pytest.mark.parametrize("rule", [UPGrad, DualProj])
def test_one_sided_is_torchjds_rule_that_prefers_forgetting_alone(rule, pair):
    g, r = pair
    oracle = rule(ONLY_FORGET, projector=ByNonNegativeLeastSquares())(torch.stack([g, r]))
    torch.testing.assert_close(stepped("one-sided", g, r, 0.0), oracle)
    torch.testing.assert_close(project(g, onto=r), oracle)


@given(two_directions())
def test_two_sided_is_torchjds_pcgrad_and_twice_its_upgrad(pair):
    g, r = pair
    ours = stepped("two-sided", g, r, 1.0)
    torch.testing.assert_close(ours, PCGrad()(torch.stack([g, r])))
    torch.testing.assert_close(ours, 2 * UPGrad(projector=ByNonNegativeLeastSquares())(torch.stack([g, r])))


@given(two_directions())
def test_no_surgery_is_torchjds_sum(pair):
    torch.testing.assert_close(stepped("none", *pair, 1.0), Sum()(torch.stack(pair)))


@given(two_directions(), st.floats(0, 1))
@pytest.mark.parametrize("kind", ["one-sided", "two-sided", "per-tensor", "orthogonal"])
def test_a_rule_applied_in_part_lies_between_itself_and_the_sum(kind, pair, kappa):
    whole, nothing = stepped(kind, *pair, 0.5), stepped("none", *pair, 0.5)
    assert torch.equal(stepped(kind, *pair, 0.5, kappa=0.0), nothing)
    torch.testing.assert_close(stepped(kind, *pair, 0.5, kappa), nothing + kappa * (whole - nothing))


@given(st.floats(0, 10), st.floats(0.01, 10))
def test_a_rule_is_as_strict_as_the_multiplier_of_the_budget_and_whole_beside_a_chosen_weight(weight, rate):
    assert strictness(weight, dual_rate=0.0) == strictness(0.0, rate) == 1
    assert strictness(weight, rate) == (min(1, weight) if weight else 1)


@given(gradient_pairs())
def test_a_held_step_never_climbs_the_retain_loss(pair):
    step, r = pair
    assert hold(step, onto=r) @ r <= 1e-9 * step.norm() * r.norm()


@given(gradient_pairs(), st.data())
def test_per_tensor_is_the_flat_rule_on_every_tensor(pair, data):
    g, r = pair
    first = data.draw(st.integers(0, len(g)))
    parts = [project(g[:first], onto=r[:first]), project(g[first:], onto=r[first:])]
    assert torch.equal(per_tensor(g, r, [first, len(g) - first]), torch.cat(parts))


@given(gradient_pairs())
def test_per_tensor_never_opposes_retain_and_one_tensor_is_flat(pair):
    g, r = pair
    assert_agrees(per_tensor(g, r, [1] * len(g)), r, g)
    assert torch.equal(per_tensor(g, r, [len(g)]), project(g, onto=r))


@st.composite
def retain_gradients(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size, k = draw(st.integers(8, 100)), draw(st.integers(1, 6))
    rows = torch.randn(k, size, generator=generator, dtype=torch.float64)
    return torch.randn(size, generator=generator, dtype=torch.float64), rows * 10 ** draw(st.floats(-4, 4))


@given(retain_gradients())
def test_orthogonal_to_every_retain_gradient(drawn):
    g, rows = drawn
    inner = orthogonal(g, to=rows) @ rows.T
    assert (inner.abs() <= 1e-9 * g.norm() * rows.norm(dim=1)).all()


@given(retain_gradients())
def test_orthogonal_to_one_is_the_projection_when_they_conflict(drawn):
    g, rows = drawn
    r = rows[0] if g @ rows[0] < 0 else -rows[0]
    torch.testing.assert_close(orthogonal(g, to=r[None]), project(g, onto=r), rtol=1e-6, atol=1e-9 * float(g.norm()))


@given(retain_gradients())
def test_zero_rows_are_no_direction(drawn):
    g, rows = drawn
    padded = torch.cat([rows, torch.zeros_like(rows)])
    torch.testing.assert_close(orthogonal(g, to=padded), orthogonal(g, to=rows))
    assert torch.equal(orthogonal(g, to=torch.zeros_like(rows)), g)
