"""mIoU, mAcc and aAcc out of one confusion matrix, counted in int64.

Our own and not torchmetrics': the three numbers need the same matrix, the rules for classes that do
not occur have to be those of MMSegmentation, and twenty lines are no reason for a dependency.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from internvl.evaluation.vision.segmentation.settings import IGNORED


@dataclass(frozen=True)
class Scores:
    """Results, in percent; NaN for a class that cannot have a value.

    Attributes:
        miou: mean of `iou` over classes that occur in truth or prediction.
        macc: mean of `accuracy` over classes that occur in the truth.
        aacc: share of labelled pixels that are right.
        iou: by class, intersection over union over all images at once.
        accuracy: by class, share of its pixels that are right.
        pixels: by class, labelled pixels.
    """

    miou: float
    macc: float
    aacc: float
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    pixels: tuple[int, ...]


class Confusion:
    """Counts of (truth, prediction) over pixels.

    Args:
        num_classes: K.
        device: where it counts.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, predicted: torch.Tensor, truth: torch.Tensor) -> None:
        """Count the pixels of an image.

        Args:
            predicted: classes, any shape.
            truth: the same shape; 255 is not counted, whatever is predicted there.

        Raises:
            ValueError: shapes that differ, or a class that there is not.
        """
        if predicted.shape != truth.shape:
            raise ValueError(
                f"the prediction has shape {tuple(predicted.shape)} and the truth "
                f"{tuple(truth.shape)}; expected the same."
            )
        K, device = self.num_classes, self.matrix.device
        counted = truth != IGNORED
        rows = truth[counted].to(device, torch.int64)
        columns = predicted[counted].to(device, torch.int64)
        for name, values in (("truth", rows), ("prediction", columns)):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < K:
                raise ValueError(
                    f"the {name} has classes from {int(values.min())} to {int(values.max())}; "
                    f"expected 0 to {K - 1}, or {IGNORED} in the truth for pixels not to count."
                )
        self.matrix += torch.bincount(rows * K + columns, minlength=K * K).reshape(K, K)

    def scores(self) -> Scores:
        """The results.

        Raises:
            ValueError: not one labelled pixel was counted.
        """
        matrix = self.matrix.cpu().double()
        right, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        if not truth.sum():
            raise ValueError("no labelled pixel was counted: the masks hold nothing but 255.")
        iou = 100 * right / (truth + predicted - right)  # 0 / 0 = NaN, left out below
        accuracy = 100 * right / truth
        return Scores(
            miou=float(iou.nanmean()),
            macc=float(accuracy.nanmean()),
            aacc=float(100 * right.sum() / truth.sum()),
            iou=tuple(iou.tolist()),
            accuracy=tuple(accuracy.tolist()),
            pixels=tuple(int(count) for count in truth),
        )
