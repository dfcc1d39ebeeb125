"""The package `gateway` under a name that no program's own folder has; all modules are the same objects.

It finds the package beside itself, whatever else is called `gateway` on the path. `import mcp_gateway.X` is
`gateway.X` itself. A program that has imported another `gateway` cannot have both.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from gateway import EmbeddedGateway as EmbeddedGateway
    from gateway import MCPProxyManager as MCPProxyManager
    from gateway import ProxyManager as ProxyManager
    from gateway import __version__ as __version__
    from gateway import open_gateway as open_gateway

_PLACE = Path(__file__).resolve().parent.parent / "gateway"


class _SameModules:
    """Imports `mcp_gateway.X` as the module `gateway.X`; a meta path finder and its loader (PEP 451)."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name == f"{__name__}.__main__":  # for `python -m mcp_gateway`, which runs it under another name still
            return spec_from_file_location(name, _PLACE / "__main__.py")
        return ModuleSpec(name, self) if name.startswith(f"{__name__}.") else None  # pyright: ignore[reportArgumentType]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(f"gateway{spec.name.removeprefix(__name__)}")
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Put back the module's own spec, which the import machinery has replaced; it has been executed before."""
        module.__spec__ = self._specs.pop(module.__spec__.name) if module.__spec__ else None


def _find() -> ModuleType:
    known = sys.modules.get("gateway")
    if known is None:
        spec = spec_from_file_location("gateway", _PLACE / "__init__.py", submodule_search_locations=[str(_PLACE)])
        if spec is None or spec.loader is None:
            text = f"no package 'gateway' in {_PLACE.parent}"
            raise ImportError(text)
        known = sys.modules["gateway"] = module_from_spec(spec)
        try:
            spec.loader.exec_module(known)
        except BaseException:  # it refuses Windows
            del sys.modules["gateway"]
            raise
    elif Path(known.__file__ or "").resolve() != _PLACE / "__init__.py":
        text = f"mcp_gateway needs its own package 'gateway', but {known.__file__} has been imported under that name"
        raise ImportError(text)
    return known


sys.meta_path.insert(0, _SameModules())
sys.modules[__name__] = _find()
