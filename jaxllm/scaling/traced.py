"""FLOPs of the matrix products of a function, as jax traces it: nothing is compiled."""

import math

import jax
from jax.extend.core import jaxprs_in_params


def product_flops(function, *arguments):
    """Returns the FLOPs of all matrix products of function(*arguments), loops counted.

    Args:
        function: that jax can trace.
        arguments: arrays, or trees of `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: products within a loop whose length only the data tells.
    """
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops(jaxpr):
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += _of_product(equation)
            continue
        inner = [_flops(part) for part in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "while" and any(inner):
            raise ValueError("a product is within a loop whose length only the data tells.")
        once = max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
        total += once * equation.params.get("length", 1)
    return total


def _of_product(equation):
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)
