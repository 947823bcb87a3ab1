"""What a program calls, held against an installed library: no call is made, but each is bound to its signature.

Compiled functions show no signature to `inspect`. Cython writes one into the first line of their docstrings, nanobind
and pybind11 one for each overload, and CuPy one for each ufunc; those are read instead.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import types
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

KINDS = inspect.Parameter


@dataclass(frozen=True)
class Instance:
    """An object of a class, for which the class stands; `chains` says that its methods return it."""

    of: type
    chains: bool = False


def parsed(line: str) -> inspect.Signature:
    """The signature `name(type a, b=1, *, c: type = 2) -> type`, of which the names and the kinds count."""
    inside, depth = "", 0
    for letter in line[line.index("(") :]:
        depth += (letter in "([{<") - (letter in ")]}>")
        if not depth:
            break
        inside += ";" if letter == "," and depth == 1 else letter
    parameters, kind = [], KINDS.POSITIONAL_OR_KEYWORD
    for part in filter(None, (each.strip().replace("\\", "") for each in inside[1:].split(";"))):
        if part == "/":
            parameters = [one.replace(kind=KINDS.POSITIONAL_ONLY) for one in parameters]
            continue
        if part == "*":
            kind = KINDS.KEYWORD_ONLY
            continue
        name, _, default = part.partition("=")
        name = name.partition(":")[0].split()[-1]
        if name.startswith("**"):
            parameters.append(KINDS(name[2:], KINDS.VAR_KEYWORD))
        elif name.startswith("*"):
            parameters.append(KINDS(name[1:], KINDS.VAR_POSITIONAL))
            kind = KINDS.KEYWORD_ONLY
        else:
            parameters.append(KINDS(name, kind, default=default.strip() or KINDS.empty))
    return inspect.Signature(parameters)


def signatures(function: Any) -> tuple[inspect.Signature, ...]:
    """The signatures of a function, of which a call must fit one."""
    try:
        return (inspect.signature(function),)
    except (TypeError, ValueError):
        lines = (function.__doc__ or "").strip().splitlines()
    numbered = [line for line in lines if re.match(r"\d+\. \w+\(", line)]
    written = numbered or list(takewhile(re.compile(r"[\w.]+\(").match, lines))
    assert written, f"{function} does not say what it takes"
    return tuple(map(parsed, written))


def misfit(function: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> str | None:
    """Say why a function would refuse the arguments, or None."""
    if isinstance(function, type) and "__init__" not in vars(function) and not function.__doc__:
        return None
    faults = []
    for signature in signatures(function):
        try:
            signature.bind(*args, **keywords)
        except TypeError as error:
            faults.append(str(error))
        else:
            return None
    return "; ".join(faults)


def of_file(module: str) -> types.SimpleNamespace:
    """The functions of a compiled module, from the signatures in its file: one that lacks a library is not imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    found = re.findall(rb"[\0\n](\w+)(\([^\0\n()]*\)(?: -> \w+)?)(?=[\0\n])", Path(spec.origin).read_bytes())
    functions = types.SimpleNamespace()
    for name, signature in found:
        setattr(functions, name.decode(), _Written(f"{name.decode()}{signature.decode()}"))
    return functions


class _Written:
    """A function that is known by its docstring alone."""

    def __init__(self, line: str) -> None:
        self.__doc__ = line

    def __call__(self) -> None:
        raise NotImplementedError

    __signature__ = property(lambda self: parsed(self.__doc__))


class _Faults(ast.NodeVisitor):
    """What a function asks of known objects that these do not have."""

    def __init__(self, known: dict[str, Any]) -> None:
        self.known, self.faults, self.seen = dict(known), [], set()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                if isinstance(name, ast.Name) and (found := self.value(value)) is not None:
                    self.known[name.id] = found

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.value(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.value(node)
        self.generic_visit(node)

    def fault(self, words: str) -> None:
        if words not in self.faults:
            self.faults.append(words)

    def value(self, node: ast.AST) -> Any:
        """The object that an expression is, or None where that is not known."""
        text = ast.unparse(node)
        if text in self.known:
            return self.known[text]
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "sys.modules":
            return self.module(node.slice)
        if isinstance(node, ast.Call):
            return self.call(node)
        if not isinstance(node, ast.Attribute) or (owner := self.value(node.value)) is None:
            return None
        self.seen.add(text)
        try:
            found = getattr(owner.of if isinstance(owner, Instance) else owner, node.attr)
        except AttributeError as error:
            self.fault(f"{text}: {error}")
            return None
        return None if inspect.isdatadescriptor(found) else found  # a class does not say of what class such a value is

    def module(self, name: ast.AST) -> Any:
        if not isinstance(name, ast.Constant):
            return None
        try:
            return importlib.import_module(name.value)
        except ImportError as error:
            self.fault(f"import {name.value}: {error}")
            return None

    def call(self, node: ast.Call) -> Any:
        if ast.unparse(node.func) == "importlib.import_module":
            return self.module(node.args[0])
        function = self.value(node.func)
        if function is None or not callable(function):
            return None
        owner = self.value(node.func.value) if isinstance(node.func, ast.Attribute) else None
        starred = any(isinstance(arg, ast.Starred) for arg in node.args) or any(
            each.arg is None for each in node.keywords
        )
        if not starred:
            args = (None,) * (len(node.args) + isinstance(owner, Instance))
            fault = misfit(function, args, {str(each.arg): None for each in node.keywords})
            if fault is not None:
                self.fault(f"{ast.unparse(node)}: {fault}")
        return owner if isinstance(owner, Instance) and owner.chains else None


def faults(code: str, known: dict[str, Any]) -> tuple[list[str], set[str]]:
    """What the functions of a file ask of the known objects in vain, and all that they ask; names are expressions."""
    found: list[str] = []
    seen: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef):
            visitor = _Faults(known)
            visitor.visit(node)
            found += [words for words in visitor.faults if words not in found]
            seen |= visitor.seen
    return found, seen
