"""What a callable does, boiled down to a text: has the ``pre_transform`` changed since?

``repr`` will not do: that of a function holds its address, which is another one in each process,
and that of most PyG transforms leaves their parameters out.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Mapping, Sequence, Set

import numpy as np
import torch


def describe(thing: object) -> str:
    """A text that is the same in every process, and changes with what ``thing`` is or does.

    Functions are described by name, bytecode, constants, defaults and the values that they close
    over; objects by their class, the code of its methods and their attributes. Functions that these
    call in turn are known by name only. On another version of Python the text may differ.
    """
    return _describe(thing, ())


def _describe(thing: object, above: tuple[int, ...]) -> str:
    if thing is None or isinstance(thing, str | bytes | bool | int | float | complex | np.generic):
        return repr(thing)
    if id(thing) in above:
        return "<itself>"
    inside = (*above, id(thing))

    def nested(value: object) -> str:
        return _describe(value, inside)

    name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
    if isinstance(thing, Mapping):
        return f"{{{', '.join(f'{nested(k)}: {nested(v)}' for k, v in thing.items())}}}"
    if isinstance(thing, Set):
        return f"{{{', '.join(sorted(nested(value) for value in thing))}}}"
    if isinstance(thing, Sequence):
        return f"[{', '.join(nested(value) for value in thing)}]"
    if isinstance(thing, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(torch.as_tensor(thing).detach().cpu().numpy())
        return f"array {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(thing, types.CodeType):
        return f"code {thing.co_code.hex()} {nested(thing.co_names)} {nested(thing.co_consts)}"
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        defaults = (thing.__defaults__, thing.__kwdefaults__)
        return f"{name} {nested(thing.__code__)} {nested(defaults)} {nested(cells)}"
    if isinstance(thing, types.MethodType):
        return f"{nested(thing.__func__)} of {nested(thing.__self__)}"
    if isinstance(thing, type | types.BuiltinFunctionType):
        return name
    kind = type(thing)
    methods = {
        key: value
        for base in reversed(kind.__mro__)
        for key, value in vars(base).items()
        if isinstance(value, types.FunctionType)
    }
    # functools.partial keeps what matters in members, not in __dict__.
    members = [getattr(thing, key, None) for key in ("func", "args", "keywords")]
    state = [getattr(thing, "__dict__", {}), members]
    return f"{kind.__module__}.{kind.__qualname__} {nested(methods)} {nested(state)}"
