"""One operation as one primitive of JAX, with the rules for its derivatives and for `vmap`.

`jit`, `grad`, `jvp` and `vmap` see one primitive, and its derivatives are such primitives too. The code of a primitive
is traced once for each operation, and compiled as a whole.
"""

from __future__ import annotations

from functools import cache, lru_cache, partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .. import backends, limits
from ..backends import Array, Backend
from ..engine import execution
from ..engine.call import ConvCache, ConvTransposeCache, Forward
from ..errors import BackendError, in_a_line
from ..spec.operation import Kind, Operation
from ..spec.options import Options
from .vmap import mapped

NAMES = {Kind.UNFOLD: "unfold", Kind.FOLD: "fold"}
"""The names of some primitives; the name of another is that of its kind, such as "conv_forward"."""


def node(operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Make an operation one primitive, under the workspace limit of the caller."""
    if any(_varies(jax.typeof(array)) for array in operands):
        # The types of results then say how they vary over devices, and only JAX's own primitives can say that.
        raise BackendError("jax.shard_map: got check_vma=True around a call of portconv's, expected check_vma=False")
    return _bind(limits.workspace(), operation, backend, *operands)


def _bind(limit: int | None, operation: Operation, backend: Backend, *operands: Array) -> Array:
    """Add a primitive to what JAX traces, or compute it if JAX does not trace."""
    array: Array = _primitive(operation.kind).bind(*operands, operation=operation, limit=limit)
    return array


def _varies(aval: Any) -> bool:
    """Return whether JAX tracks the devices on which the values differ; its versions have two names for that."""
    return bool(getattr(aval, "vma", None) or getattr(getattr(aval, "manual_axis_type", None), "varying", None))


def _compute(*operands: Array, operation: Operation, limit: int | None) -> Array:
    """Trace an operation on finite numbers, and once more on any numbers for the case that some are not finite."""
    backend: Any = backends.get("jax")

    def run(*arrays: Array) -> Array:
        # What the user's own code may not do, what is computed here may: it broadcasts and promotes on purpose.
        with limits.within(limit), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return execution.compute(operation, backend, *arrays)

    with backend.assuming() as conditions:
        array = run(*operands)
    if not conditions:
        return array
    holds = jax.numpy.all(jax.numpy.stack([jax.numpy.all(condition) for condition in conditions]))
    return jax.lax.cond(holds, lambda array, *_: array, lambda _, *arrays: run(*arrays), array, *operands)


def _compile(operation: Operation, limit: int | None) -> Any:
    """Return the function that computes an operation; JAX compiles it at its first call."""
    return jax.jit(partial(_compute, operation=operation, limit=limit))


_compiled = lru_cache(maxsize=512)(_compile)
_compiled_reproducible = lru_cache(maxsize=64)(_compile)
"""Fewer reproducible operations are kept: on a CPU each has hundreds of memory maps, of the 65530 of a process."""


@cache
def _primitive(kind: Kind) -> Any:
    """Return the primitive of a kind of operation."""
    backend = backends.get("jax")
    primitive = Primitive(NAMES.get(kind) or f"conv_{kind}")

    def abstract(*avals: Any, operation: Operation, limit: int | None) -> Any:
        return jax.core.ShapedArray(operation.shape(operation.result), backend.dtype(operation.result_dtype))

    def run(*operands: Array, operation: Operation, limit: int | None) -> Array:
        compiled = _compiled_reproducible if operation.precision == "reproducible" else _compiled
        try:
            result: Array = compiled(operation, limit)(*operands)
        except jax.errors.JaxRuntimeError as error:
            raise BackendError(f"jax: {in_a_line(error)}") from error
        return result

    def batch(operands: Any, axes: Any, *, operation: Operation, limit: int | None) -> tuple[Array, int]:
        return mapped(operation, backend, operands, axes, partial(_bind, limit)), 0

    primitive.def_impl(run)
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = partial(_jvp, backend)
    ad.primitive_transposes[primitive] = partial(_transpose, backend)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(_compute, multiple_results=False))
    return primitive


def _jvp(
    backend: Backend, primals: Any, tangents: Any, *, operation: Operation, limit: int | None
) -> tuple[Array, Any]:
    """Compute an operation, and the change of its result for changes of its operands."""
    out = _bind(limit, operation, backend, *primals)
    change: Any = None
    for place, tangent in enumerate(tangents):
        if type(tangent) is not ad.Zero and operation.kind != Kind.ERROR_BOUND:  # a bound has no derivatives
            term_operation, *operands = operation.tangent(place, tangent, tuple(primals))
            term = _bind(limit, term_operation, backend, *operands)
            change = term if change is None else change + term
    return out, ad.Zero(jax.typeof(out).to_tangent_aval()) if change is None else change


def _transpose(backend: Backend, cotangent: Any, *operands: Any, operation: Operation, limit: int | None) -> list[Any]:
    """Compute the gradients of the operands for which JAX wants them."""
    grads: list[Any] = []
    for place, operand in enumerate(operands):
        if not ad.is_undefined_primal(operand):
            grads.append(None)
        elif type(cotangent) is ad.Zero:
            grads.append(ad.Zero(operand.aval))
        else:
            dtype = backend.dtype_name(operand.aval.dtype)
            gradient, *arrays = operation.gradient(place, dtype, cotangent, operands)
            grads.append(_bind(limit, gradient, backend, *arrays))
    return grads


def _leaves(cache: Forward) -> tuple[tuple[Array, ...], Options]:
    """Return the arrays of a forward call, and its options, which JAX hashes."""
    return (cache.x, cache.w, cache.b), Options(*map(_hashable, cache.options))


def _hashable(option: Any) -> Any:
    """Return an option with tuples in the place of lists."""
    return tuple(map(_hashable, option)) if isinstance(option, (list, tuple)) else option


def _register(kind: type[Forward]) -> None:
    """Let a function that `jit` compiles return and take the cache of a forward call."""

    def rebuilt(options: Options, arrays: Any) -> Forward:
        x, w, b = arrays
        return kind(x, w, b, options)

    jax.tree_util.register_pytree_node(kind, _leaves, rebuilt)


_register(ConvCache)
_register(ConvTransposeCache)
