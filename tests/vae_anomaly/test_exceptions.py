"""The drawing of the tree is the tree."""

import re

import pytest

from vae_anomaly import exceptions
from vae_anomaly.exceptions import VaeAnomalyError

LINE = re.compile(r"^    (?P<indent>[| `-]*)(?P<name>\w+Error)(?: \((?P<builtins>[\w, ]+)\))?", re.MULTILINE)


def drawn() -> dict[str, tuple[str, ...]]:
    """Name -> names of its bases, as the docstring draws them."""
    tree: dict[str, tuple[str, ...]] = {}
    parents: list[str] = []
    for line in LINE.finditer(exceptions.__doc__ or ""):
        depth = len(line["indent"]) // 4
        builtins = tuple((line["builtins"] or "").split(", ")) if line["builtins"] else ()
        tree[line["name"]] = (*parents[depth - 1 : depth], *builtins)
        parents[depth:] = [line["name"]]
    return tree


DEFINED = {name: kind for name, kind in vars(exceptions).items() if isinstance(kind, type)}


def test_every_error_is_drawn_where_it_hangs() -> None:
    bases = {name: tuple(base.__name__ for base in kind.__bases__) for name, kind in DEFINED.items()}
    assert drawn() == bases | {"VaeAnomalyError": ()}
    assert VaeAnomalyError.__bases__ == (Exception,)


@pytest.mark.parametrize("name", sorted(set(DEFINED) - {"VaeAnomalyError"}))
def test_every_error_is_ours_and_refines_a_builtin(name: str) -> None:
    kind = DEFINED[name]
    assert issubclass(kind, VaeAnomalyError)
    assert any(base.__module__ == "builtins" for base in kind.__mro__[: kind.__mro__.index(Exception)])
    with pytest.raises(VaeAnomalyError, match=r"^what was wrong; what to do$"):
        raise kind("what was wrong; what to do")
