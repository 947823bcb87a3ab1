"""JAX, in numbers of 64 bits where `jax_enable_x64` is set.

Each step of a call is a primitive of JAX's, so that `jit`, `grad`, `jvp` and `vmap` see one operation whose derivatives
are steps themselves; what it is made of is traced once for each shape, and compiled as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import limits
from ..errors import BackendError, in_a_line
from ._base import Array, Backend, Unavailable

if TYPE_CHECKING:
    from ..engine.execution import Operation


class JaxBackend(Backend):
    name = "jax"
    module = "jax"
    array_class = "Array"
    install = "pip install 'portconv[jax]'"
    widening = "jax.config.update('jax_enable_x64', True)"
    mutable = False
    staged = True
    block_bytes = 64 << 20
    """Each block is code of its own, so that few large ones serve better than many small ones."""
    compiled_steps = 256
    """Up to so many blocks and taps of a product are code of their own, which runs faster than a loop over taps."""
    spare_bytes = 512 << 20

    def load(self) -> Any:
        try:
            import jax.numpy
        except (ImportError, OSError) as error:
            raise Unavailable(f"JAX is not installed ({in_a_line(error)})") from error
        return jax.numpy

    def devices(self) -> list[Any]:
        import jax

        return list(jax.devices())

    def device_of(self, array: Array) -> Any:
        import jax

        # What is traced has no device yet.
        return None if isinstance(array, jax.core.Tracer) else array.device

    def same_device(self, array: Array, other: Array) -> bool:
        one, two = self.device_of(array), self.device_of(other)
        return one is None or two is None or bool(one == two)

    def to_numpy(self, array: Array) -> Any:
        import numpy

        return numpy.asarray(array)

    def write(self, target: Array, index: tuple[Any, ...], value: Any) -> Array:
        from jax import lax

        xp = self.xp
        runs = _runs(index, target.shape)
        value = xp.broadcast_to(xp.asarray(value, dtype=target.dtype), xp.shape(target[index]))
        value = xp.reshape(value, tuple(run.cells for run in runs))
        if all(run.step == 1 for run in runs):
            whole = value.shape == target.shape
            return value if whole else lax.dynamic_update_slice(target, value, [run.start for run in runs])
        # Not a scatter, as JAX writes this: XLA may make a map of one, and aborts where such a map is then reversed.
        around = [run.around(length) for run, length in zip(runs, target.shape, strict=True)]
        there = lax.pad(xp.ones(value.shape, dtype=bool), False, around)
        return xp.where(there, lax.pad(value, xp.zeros((), dtype=value.dtype), around), target)

    def add(self, target: Array, index: tuple[Any, ...], value: Array) -> Array:
        return self.write(target, index, target[index] + value)

    def loop(self, count: int, step: Callable[[Any, Array], Array], start: Array) -> Array:
        from jax import lax

        made: Array = lax.fori_loop(0, count, step, start)
        return made

    def cut(self, array: Array, starts: tuple[Any, ...], sizes: tuple[int, ...]) -> Array:
        from jax import lax

        return lax.dynamic_slice(array, starts, sizes)

    def put(self, array: Array, starts: tuple[Any, ...], part: Array) -> Array:
        from jax import lax

        return lax.dynamic_update_slice(array, part, starts)

    def likely(self, condition: Array) -> bool:
        import jax

        if not isinstance(condition, jax.core.Tracer):
            return super().likely(condition)
        granted = _granted.get()
        if granted is None:
            return False
        granted.append(condition)
        return True

    def sure(self, condition: Array) -> bool:
        import jax

        return not isinstance(condition, jax.core.Tracer) and super().sure(condition)

    def widen(self) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)

    def synchronize(self) -> None:
        import jax

        jax.block_until_ready(jax.live_arrays())

    def details(self) -> dict[str, str]:
        import jax

        return {"device": str(jax.devices()[0].device_kind), "numbers of 64 bits": str(jax.config.jax_enable_x64)}

    def during_call(self, like: Array, precision: str) -> AbstractContextManager[Any]:
        import jax

        # What XLA takes on GPUs and TPUs otherwise may be TF32, or bfloat16.
        held: AbstractContextManager[Any] = jax.default_matmul_precision("highest")
        return nullcontext() if precision == "fast" else held

    def now(self) -> AbstractContextManager[Any]:
        import jax

        held: AbstractContextManager[Any] = jax.ensure_compile_time_eval()
        return held

    def unsized(self, array: Array) -> str | None:
        if all(isinstance(size, int) for size in array.shape):
            return None
        return f"got shape {tuple(array.shape)} with symbolic sizes, expected numbers"

    def stage(self, operation: Operation, *operands: Array) -> Array:
        import jax

        if any(_varies(jax.typeof(array)) for array in operands):
            # How results vary over devices is then part of their types, of which JAX's own primitives alone can tell.
            raise BackendError(
                "jax.shard_map: got check_vma=True around a call of portconv's, expected check_vma=False"
            )
        return _primitive(operation.purpose).bind(*operands, operation=operation, limit=limits.workspace())


def _varies(aval: Any) -> bool:
    """Whether JAX keeps track of the devices that an array's values differ on; its name for that has changed."""
    return bool(getattr(aval, "vma", None) or getattr(getattr(aval, "manual_axis_type", None), "varying", None))


class _Run(NamedTuple):
    """Which cells of an axis an index is about."""

    start: int
    step: int
    cells: int

    def around(self, length: int) -> tuple[int, int, int]:
        """How many cells are before, after and between them."""
        end = self.start + (self.cells - 1) * self.step + 1
        return self.start, length - end, self.step - 1


def _runs(index: tuple[Any, ...], shape: tuple[int, ...]) -> list[_Run]:
    """Say of each axis of an array of that shape which cells `index` is about: integers, slices and one `...`."""
    rest = index.index(...) if ... in index else len(index)
    missing = len(shape) - len(index) + (rest < len(index))
    full = (*index[:rest], *(slice(None),) * missing, *index[rest + 1 :])
    runs = []
    for own, length in zip(full, shape, strict=True):
        cells = range(length)[own] if isinstance(own, slice) else range(length)[own : own + 1 or None]
        runs.append(_Run(cells.start, cells.step if len(cells) > 1 else 1, len(cells)))
    return runs


_granted: ContextVar[list[Array] | None] = ContextVar("portconv.jax.granted", default=None)
"""Traced conditions that are taken to hold, while there is another way for where they do not."""


def _compute(*operands: Array, operation: Operation, limit: int | None) -> Array:
    """Compute a step, traced: as if all were as usual, and in another way where that then turns out not to be so."""
    import jax

    from . import get

    def run(granted: list[Array] | None, *own: Array) -> Array:
        token = _granted.set(granted)
        try:
            with nullcontext() if limit is None else limits.workspace_limit(limit):
                return operation.compute(get("jax"), *own)
        finally:
            _granted.reset(token)

    asked: list[Array] = []
    made = run(asked, *operands)
    if not asked:
        return made
    usual = jax.numpy.all(jax.numpy.stack([jax.numpy.all(condition) for condition in asked]))
    return jax.lax.cond(usual, lambda made, *_: made, lambda _, *own: run(None, *own), made, *operands)


def _compile(operation: Operation, limit: int | None) -> Any:
    import jax

    return jax.jit(partial(_compute, operation=operation, limit=limit))


_compiled = lru_cache(maxsize=512)(_compile)
_exact = lru_cache(maxsize=64)(_compile)
"""Of reproducible steps fewer are kept: on a CPU each takes hundreds of mappings of memory, of 65530 in a process."""


@cache
def _primitive(purpose: str) -> Any:
    """A step as a primitive, with the rules by which JAX transforms it."""
    import jax
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    from ..frameworks.vmap import mapped
    from . import get

    backend = get("jax")
    primitive = Primitive(purpose if purpose in ("unfold", "fold") else f"conv_{purpose}")

    def taken(limit: int | None, step: Operation, *own: Array) -> Array:
        made: Array = _primitive(step.purpose).bind(*own, operation=step, limit=limit)
        return made

    def abstract(*avals: Any, operation: Operation, limit: int | None) -> Any:
        return jax.core.ShapedArray(operation.shape(operation.result), backend.dtype(operation.made))

    def jvp(primals: Any, tangents: Any, *, operation: Operation, limit: int | None) -> tuple[Array, Any]:
        out = primitive.bind(*primals, operation=operation, limit=limit)
        changes: Any = None
        for place, tangent in enumerate(tangents):
            if type(tangent) is not ad.Zero and operation.purpose != "bound":  # which has no derivatives
                change = taken(limit, *operation.tangent(place, tangent, tuple(primals)))
                changes = change if changes is None else changes + change
        return out, ad.Zero(jax.typeof(out).to_tangent_aval()) if changes is None else changes

    def transpose(cotangent: Any, *operands: Any, operation: Operation, limit: int | None) -> list[Any]:
        found: list[Any] = []
        for place, operand in enumerate(operands):
            if not ad.is_undefined_primal(operand):
                found.append(None)
            elif type(cotangent) is ad.Zero:
                found.append(ad.Zero(operand.aval))
            else:
                made = backend.dtype_name(operand.aval.dtype)
                found.append(taken(limit, *operation.gradient(place, made, cotangent, operands)))
        return found

    def batch(operands: Any, axes: Any, *, operation: Operation, limit: int | None) -> tuple[Array, int]:
        return mapped(backend, operation, operands, axes, partial(taken, limit)), 0

    def run(*own: Array, operation: Operation, limit: int | None) -> Array:
        return (_exact if operation.precision == "reproducible" else _compiled)(operation, limit)(*own)

    primitive.def_impl(run)
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(_compute, multiple_results=False))
    return primitive
