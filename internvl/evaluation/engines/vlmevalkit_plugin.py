"""What VLMEvalKit is corrected by: classes of ours, added to its own, and its run.py started.

    python vlmevalkit_plugin.py CHECKOUT/run.py --config plan.json ...
    torchrun --nproc-per-node 8 vlmevalkit_plugin.py CHECKOUT/run.py --config plan.json ...

This file runs in the environment of VLMEvalKit and needs nothing else of this package. run.py looks
classes up by name in `vlmeval.vlm` and `vlmeval.dataset`; new names are registered there, and
nothing that exists is replaced.

InternVL25Chat     InternVLChat, with prompts of the data set where its own loses the options,
                   text without pictures, any device, and tiles of the checkpoint's size
InternVLMMMUPro    MMMUProDataset and RefCOCODataset, which --config cannot build: it drops the name
InternVLRefCOCO    of the data set, because their constructors do not spell it out
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

TILE = 448  # the only size that VLMEvalKit cuts


def load_run(path: Path) -> ModuleType:
    """Execute run.py up to, and without, its call of `main`.

    It chooses the GPUs of its rank before it imports anything that uses them, so it goes first.
    """
    if (path.parent / "vlmeval").is_dir():  # a checkout; an installed package is found anyway
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("vlmevalkit_run", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file; name the run.py of VLMEvalKit.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class TileBudget(int):
    """The tiles that the pictures of a question share; without pictures nothing is shared.

    `generate_v2` divides its budget by the number of pictures, which is 0 for a text-only question.
    """

    def __floordiv__(self, images: int) -> int:
        return int(self) if images == 0 else int(self) // images


def seeing(function: Any, **names: Any) -> FunctionType:
    """A function as it is, but for some names of its module; the module keeps its own."""
    inner = inspect.unwrap(function)
    scope = {**inner.__globals__, **names}
    copy = FunctionType(
        inner.__code__, scope, inner.__name__, inner.__defaults__, inner.__closure__
    )
    copy.__kwdefaults__ = inner.__kwdefaults__
    return copy


def chat_class() -> type:
    """InternVLChat with what it lacks."""
    from vlmeval.vlm import InternVLChat

    class InternVL25Chat(InternVLChat):
        """InternVLChat, corrected; see the top of the file.

        Args:
            own_prompts: data sets, by the beginning of their names, whose own `build_prompt` is
                used.
            **settings: as for InternVLChat.
        """

        def __init__(self, own_prompts: Any = (), **settings: Any) -> None:
            super().__init__(**settings)
            self._own_prompts = tuple(own_prompts)
            if settings.get("use_lmdeploy"):
                return  # LMDeploy has its own places and tiles
            self.device = next(self.model.parameters()).device
            config = self.model.config
            side = getattr(config, "force_image_size", None) or config.vision_config.image_size
            if side != TILE:
                self.generate_v2 = MethodType(self._with_tiles_of(side), self)

        @staticmethod
        def _with_tiles_of(side: int) -> Any:
            """`generate_v2` that cuts tiles of another size, by the same rule."""
            import torch

            method = InternVLChat.generate_v2
            whole = inspect.unwrap(method).__globals__["load_image"]
            cut = functools.partial(whole, input_size=side)
            return torch.no_grad()(seeing(method, load_image=cut))

        def use_custom_prompt(self, dataset: str) -> bool:
            """False where the data set asks better than InternVLChat."""
            if dataset is not None and dataset.startswith(self._own_prompts):
                return False
            return super().use_custom_prompt(dataset)

        def set_max_num(self, dataset: str) -> None:
            """Tile limits as they are, in a form that text without pictures survives."""
            super().set_max_num(dataset)
            self.total_max_num: int = TileBudget(self.total_max_num)

    return InternVL25Chat


def named(base: type) -> type:
    """A data set class that takes the name of its data set as `--config` passes it."""

    class Named(base):
        def __init__(self, dataset: str) -> None:
            super().__init__(dataset=dataset)

    return Named


def register() -> None:
    """Add our classes to the modules in which run.py looks."""
    import vlmeval.dataset
    import vlmeval.vlm

    vlmeval.vlm.InternVL25Chat = chat_class()
    for ours, theirs in (
        ("InternVLMMMUPro", "MMMUProDataset"),
        ("InternVLRefCOCO", "RefCOCODataset"),
    ):
        if hasattr(vlmeval.dataset, theirs):
            setattr(vlmeval.dataset, ours, named(getattr(vlmeval.dataset, theirs)))


def main() -> None:
    """Start run.py with our classes."""
    path = Path(sys.argv[1]).resolve()
    sys.argv = [str(path), *sys.argv[2:]]
    # The script's own folder is first on the path; its modules are not meant to be found there.
    sys.path[:] = [each for each in sys.path if each != os.path.dirname(os.path.abspath(__file__))]
    run = load_run(path)
    register()
    run.load_env()
    run.main()


if __name__ == "__main__":
    main()
