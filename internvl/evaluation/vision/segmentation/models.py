"""The two models of Table 15: a linear probe, and UperNet.

    linear      encoder, frozen -> last map (N, C, ph, pw) -> BatchNorm -> 1x1 convolution
    head, full  pyramid -> transformers' UperNet head;  one map -> FCN head, in training only

Both give logits at the resolution of their head; `objective` and `slide` upsample them bilinearly.
Official: configs/intern_vit_6b_448px_v2_5/{linear_probing,head_tuning,full_tuning}/.

    # N images   K classes   C width   ph, pw  patch rows and columns   H, W pixels
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, UperNetConfig, UperNetForSemanticSegmentation
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from internvl.evaluation.vision.encoder import Encoder
from internvl.evaluation.vision.segmentation.pyramid import Pyramid
from internvl.evaluation.vision.segmentation.settings import IGNORED, Settings

DROPOUT = 0.1  # before the classifier of both heads: mmseg's configs/_base_/models/upernet_r50.py
AUXILIARY_WEIGHT = 0.4
# The official head-tuning config sets in_index=1; the full-tuning one leaves upernet_r50's 2.
AUXILIARY_MAP = {"head": 1, "full": 2}


class LinearProbe(nn.Module):
    """Batch norm and a linear layer on each patch of the last hidden state.

    The official FCNHead with num_convs=0, with_norm=True and no dropout. The norm has no effect on
    what a linear layer can express; it puts features of any scale within reach of one learning
    rate.

    Args:
        encoder: frozen; becomes a part of this module.
        num_classes: K.
    """

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.BatchNorm2d(encoder.width)
        self.classifier = nn.Conv2d(encoder.width, num_classes, kernel_size=1)
        _classifier_weights(self.classifier)

    def logits(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map normalised pixels (N, 3, H, W) to one tensor (N, K, ph, pw)."""
        (features,) = self.encoder.maps(pixel_values, [self.encoder.num_layers])
        return (self.classifier(self.norm(features)),)


class UperNet(UperNetForSemanticSegmentation):
    """transformers' UperNet on an InternViT; `forward` is inherited, with its own loss.

    Args:
        config: of the heads; its backbone_config is that of the encoder.
        backbone: becomes a part of this module.
        auxiliary_map: index of the map that the auxiliary head looks at.
    """

    def __init__(self, config: UperNetConfig, backbone: Pyramid, auxiliary_map: int) -> None:
        # Not UperNetForSemanticSegmentation's: it would build a backbone, and `post_init` would
        # draw new weights for the encoder that was loaded.
        PreTrainedModel.__init__(self, config)
        self.backbone = backbone
        self.decode_head = UperNetHead(config, in_channels=backbone.channels)
        self.auxiliary_head = UperNetFCNHead(
            config, in_channels=backbone.channels, in_index=auxiliary_map
        )
        for head in (self.decode_head, self.auxiliary_head):
            head.classifier = DroppingClassifier(head.channels, head.classifier.out_channels)
            head.apply(_convolution_weights)
            _classifier_weights(head.classifier)

    def logits(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map normalised pixels (N, 3, H, W) to logits of the head, and in training of the
        auxiliary head: (N, K, 4 ph, 4 pw) and (N, K, h, w) with the size of its map."""
        maps = self.backbone(pixel_values)
        heads: list[nn.Module] = [self.decode_head]
        if self.training and self.auxiliary_head is not None:
            heads.append(self.auxiliary_head)
        return tuple(head(maps) for head in heads)


class DroppingClassifier(nn.Conv2d):
    """A 1x1 convolution that in training drops whole channels of its input."""

    def __init__(self, channels: int, num_classes: int, rate: float = DROPOUT) -> None:
        super().__init__(channels, num_classes, kernel_size=1)
        self.rate = rate

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, K, H, W)."""
        return super().forward(F.dropout2d(maps, self.rate, self.training))


class Objective(nn.Module):
    """The loss as a module, so that DistributedDataParallel can wrap it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of a batch: that of the head, plus 0.4 of that of the auxiliary head.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            labels: (N, H, W), 255 where nothing is asked.
        """
        first, *others = (pixel_loss(each, labels) for each in self.model.logits(pixel_values))
        return first + AUXILIARY_WEIGHT * sum(others)


def pixel_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, the sum over labelled pixels divided by the number of all pixels:

        L = 1 / (N H W) * sum over pixels with label != 255 of -log softmax(logits)[label]

    The mean is over all pixels because MMSegmentation's is (avg_non_ignore=False); transformers'
    UperNet takes it over the labelled ones. So the loss of a batch is the mean of those of its
    parts, on however many devices they are, and a batch without any label gives 0.

    Args:
        logits: (N, K, h, w), upsampled bilinearly to the labels.
        labels: (N, H, W).
    """
    logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / labels.numel()


def build(
    encoder: Encoder, settings: Settings, class_names: tuple[str, ...], *, seed: int
) -> LinearProbe | UperNet:
    """A model with new heads.

    Args:
        encoder: as `prepared` gives it; becomes a part of the model.
        settings: mode and width of the heads.
        class_names: K names.
        seed: of the new weights.

    Raises:
        ValueError: an encoder that is frozen in full tuning, or learns in another mode; too few
            blocks for UperNet; fewer than two classes.
    """
    if len(class_names) < 2:
        raise ValueError(f"{len(class_names)} classes; expected at least two.")
    if encoder.frozen == (settings.mode == "full"):
        raise ValueError(
            f"the encoder is {'frozen' if encoder.frozen else 'not frozen'} in mode "
            f"{settings.mode!r}; load it with freeze={settings.mode != 'full'}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.mode == "linear":
            return LinearProbe(encoder, len(class_names)).to(encoder.device)
        config = UperNetConfig(
            # A copy: transformers sets the attention of the whole model in it.
            backbone_config=copy.deepcopy(encoder.model.config),
            hidden_size=settings.channels,
            auxiliary_channels=settings.channels,
            auxiliary_in_channels=encoder.width,
            auxiliary_loss_weight=AUXILIARY_WEIGHT,
            loss_ignore_index=IGNORED,
            id2label=dict(enumerate(class_names)),
            label2id={name: number for number, name in enumerate(class_names)},
        )
        model: Any = UperNet(config, Pyramid(encoder), AUXILIARY_MAP[settings.mode])
    return model.to(encoder.device)


def prepared(encoder: Encoder, *, crop: int, drop_path: float) -> Encoder:
    """An encoder like another one, for crops of another size, with stochastic depth.

    As in the official code the position embedding is resized once, bicubically, and what learns in
    full tuning is the resized one.

    Args:
        encoder: stays as it is; a frozen one shares its weights with the new one.
        crop: side of the crops in pixels.
        drop_path: of the last block; grows linearly from 0 at the first.

    Raises:
        ValueError: a crop that is no multiple of the patch size.
    """
    if crop % encoder.patch_size or crop < 2 * encoder.patch_size:
        raise ValueError(
            f"the crop is {crop} pixels, expected a multiple of the patch size "
            f"{encoder.patch_size} with at least two patches; correct --size."
        )
    old = encoder.model
    config = copy.deepcopy(old.config)
    config.drop_path_rate = drop_path
    with torch.device("meta"):
        model = type(old)(config)
    weights = old.state_dict()
    if not encoder.frozen:
        weights = {name: value.clone() for name, value in weights.items()}
    model.load_state_dict(weights, assign=True)
    if crop != config.image_size:
        model.resize_pos_embeddings(config.image_size, crop, encoder.patch_size)
    return Encoder(
        model.requires_grad_(True),
        image_size=crop,
        mean=encoder.mean,
        std=encoder.std,
        layer=encoder.layer,
        freeze=encoder.frozen,
        autocast=encoder.autocast,
    )


def _convolution_weights(module: nn.Module) -> None:
    """mmcv's ConvModule: N(0, 2 / fan_out), batch norms at 1 and 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _classifier_weights(classifier: nn.Conv2d) -> None:
    """mmseg's decode heads: N(0, 0.01), no bias."""
    nn.init.normal_(classifier.weight, std=0.01)
    if classifier.bias is not None:
        nn.init.zeros_(classifier.bias)
