"""The docstrings of a dataclass's fields: for `help()`, which shows the class's own alone, and for flags."""

import ast
import inspect
from dataclasses import fields
from itertools import pairwise
from textwrap import dedent, indent
from typing import Any, TypeVar

Documented = TypeVar("Documented", bound=type[Any])


def document_fields(cls: Documented) -> Documented:
    """Append the docstring of each field of a dataclass to that of the class, and return the class.

    Where Python cannot find the source, nothing changes.
    """
    try:
        docs = field_docs(cls)
    except (OSError, TypeError):
        return cls
    known = [f"{field.name}:\n{indent(docs[field.name], '    ')}" for field in fields(cls) if field.name in docs]
    if cls.__doc__ and known:
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Fields:", *(indent(each, "  ") for each in known)])
    return cls


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Return the docstring of each field of a dataclass, from its source. Raises `OSError` if that is not found."""
    [definition] = ast.parse(dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(ast.literal_eval(doc.value))
        for field, doc in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr)
    }
