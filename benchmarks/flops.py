"""How many floating-point operations of matrix products a traced program executes."""

import math
from typing import Any

from jax.extend import core


def matmul_flops(closed: core.ClosedJaxpr) -> int:
    """Multiplications and additions of all `dot_general` in a program and what it calls.

    A scan counts as often as it runs. A loop of run-time length (the steps of a call) counts once,
    so that a training program's count is that of one step. Of branches the dearest counts. What the
    backward pass computes again counts again.
    """
    return _of(closed.jaxpr)


def _of(jaxpr: Any) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    inner = [_of(jaxpr) for jaxpr in core.jaxprs_in_params(equation.params)]
    if equation.primitive.name == "cond":
        return max(inner)
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    return times * sum(inner)
