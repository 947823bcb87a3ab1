"""From the text of a module to code in memory, by LLVM's own compiler (llvmlite)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import count
from typing import Any

from .. import forks
from .emit import Module
from .target import Target

PASSES = ("sroa", "instruction_combine", "simplify_cfg", "loop_rotate", "loop_strength_reduce")
"""What LLVM does before it makes code. Vectors and unrolled loops are ours: all its passes take twice the time and
make the same code."""
OPTIMIZED = 3
"""How hard LLVM tries when it chooses instructions and registers."""

_numbers = count()


def binding() -> Any:
    """Import LLVM, and prepare it for this machine and for others."""
    llvm = forks.imported("llvmlite.binding")
    _initialize()
    return llvm


@cache
def _initialize() -> None:
    llvm = forks.imported("llvmlite.binding")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


@cache
def machine(target: Target) -> Any:
    """Return LLVM's description of a target."""
    llvm = binding()
    kind = llvm.Target.from_triple(target.triple)
    return kind.create_target_machine(
        cpu=target.cpu, features=target.features, opt=OPTIMIZED, reloc="pic", codemodel="small"
    )


def compiled(module: Module, target: Target) -> bytes:
    """Compile a module to an object."""
    return bytes(machine(target).emit_object(_optimized(module, target)))


def assembly(module: Module, target: Target) -> str:
    """Compile a module to assembly, for people to read."""
    return str(machine(target).emit_assembly(_optimized(module, target)))


def _optimized(module: Module, target: Target) -> Any:
    llvm = binding()
    parsed = llvm.parse_assembly(module.text)
    parsed.triple = target.triple
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    manager = llvm.create_new_module_pass_manager()
    for name in PASSES:
        getattr(manager, f"add_{name}_pass")()
    manager.run(parsed, llvm.create_pass_builder(machine(target), options))
    return parsed


class Loaded:
    """An object in executable memory; the memory is freed with it."""

    def __init__(self, contents: bytes, names: Mapping[str, Any], target: Target) -> None:
        builder = binding().JITLibraryBuilder().add_object_img(contents)
        for name in names:
            builder.export_symbol(name)
        self.library = builder.link(_linker(target), f"portconv{next(_numbers)}")
        self.addresses = {name: int(self.library[name]) for name in names}


@cache
def _linker(target: Target) -> Any:
    """Return what puts objects into executable memory."""
    return binding().create_lljit_compiler(machine(target), use_jit_link=True)
