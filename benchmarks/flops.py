"""How many floating-point operations of matrix products a traced program executes."""

import math
from collections.abc import Callable
from typing import Any

from jax.extend import core


def matmul_flops(closed: core.ClosedJaxpr) -> int:
    """Multiplications and additions of all products in a program, see `total`."""
    return total(closed, flops)


def total(closed: core.ClosedJaxpr, measure: Callable[[Any], float]) -> Any:
    """The sum of `measure` over all `dot_general` in a program and what it calls.

    A scan counts as often as it runs. A loop of run-time length (the steps of a call) counts once,
    so that a training program's count is that of one step. Of branches the dearest counts. What the
    backward pass computes again counts again.
    """
    return _of(closed.jaxpr, measure)


def flops(product: Any) -> int:
    """Multiplications and additions of a `dot_general`."""
    (contracted, _), _ = product.params["dimension_numbers"]
    left, out = product.invars[0].aval.shape, product.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def moved_bytes(product: Any) -> int:
    """Of the operands and the result of a `dot_general`, each once."""
    arrays = [variable.aval for variable in (*product.invars, *product.outvars)]
    return sum(array.size * array.dtype.itemsize for array in arrays)


def batched(product: Any) -> bool:
    """Of many small products, as attention's are; those with parameters are one large one."""
    _, (left, _) = product.params["dimension_numbers"]
    return bool(left)


def _of(jaxpr: Any, measure: Callable[[Any], float]) -> Any:
    return sum(_equation(equation, measure) for equation in jaxpr.eqns)


def _equation(equation: Any, measure: Callable[[Any], float]) -> Any:
    if equation.primitive.name == "dot_general":
        return measure(equation)
    inner = [_of(jaxpr, measure) for jaxpr in core.jaxprs_in_params(equation.params)]
    if equation.primitive.name == "cond":
        return max(inner)
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    return times * sum(inner)
