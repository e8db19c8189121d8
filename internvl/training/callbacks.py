"""What watches a run: a polite end on SIGTERM, and an average of the weights."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from internvl.training.stages import chat_model

logger = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"


class StopOnSignal(TrainerCallback):
    """Writes a checkpoint and ends when the process is asked to end.

    Schedulers of clusters send SIGTERM some time before they kill. All ranks agree at the end of a
    step, so that none waits for another; a second signal ends at once.
    """

    def __init__(self, signals: tuple[int, ...] = (signal.SIGTERM,)) -> None:
        self.signals, self.asked = signals, False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to listen; signals reach only the main thread of a process."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.signals}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Save and stop if any rank was asked."""
        asked = torch.tensor(int(self.asked), device=args.device)
        if args.world_size > 1:
            dist.all_reduce(asked)
        if int(asked):
            logger.warning("asked to end: a checkpoint of step %d is written", state.global_step)
            control.should_save = control.should_training_stop = True
        return control

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(number, self._before.get(number) or signal.SIG_DFL)


class Ema(TrainerCallback):
    """Keeps a moving average of the weights that learn.

    average <- decay * average + (1 - decay) * weight after every step, with a smaller decay at the
    start, (1 + step) / (10 + step), so that the first weights do not linger.

    Args:
        decay: of the average.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema is {decay}; expected a decay within (0, 1).")
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin from the weights, or from what `load` read."""
        self.average = {
            name: self.average.get(name, weight).detach().to(weight.device, copy=True)
            for name, weight in _learning(kwargs["model"])
        }

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average towards the weights."""
        step = state.global_step
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        names, weights = zip(*_learning(kwargs["model"]), strict=True)
        averages = [self.average[name] for name in names]
        torch._foreach_lerp_(averages, [weight.detach() for weight in weights], share)

    def save(self, folder: Path) -> None:
        """Write the average beside a checkpoint."""
        save_file({name: value.cpu() for name, value in self.average.items()}, folder / EMA_FILE)

    def load(self, folder: Path) -> None:
        """Go on from the average of a checkpoint."""
        self.average = load_file(folder / EMA_FILE)

    @torch.no_grad()
    def swap(self, model: Any) -> None:
        """Exchange the average and the weights, for an evaluation or the final checkpoint."""
        for name, weight in _learning(model):
            kept = weight.detach().clone()
            weight.copy_(self.average[name])
            self.average[name] = kept


def _learning(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    inner = chat_model(model)
    return [(name, weight) for name, weight in inner.named_parameters() if weight.requires_grad]
