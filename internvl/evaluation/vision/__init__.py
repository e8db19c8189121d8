"""Evaluation of the vision encoder (report section 7): probes (7.1) and segmentation (7.2).

encoder         an InternViT out of any checkpoint, frozen, with a fingerprint of its weights
heads           the linear and the attention-pooling head
recipe, mixing, transforms      how a probe is trained: numbers, mixup and CutMix, crops
folders, variants               data: image folders, ImageNet, its variants
loading, processes              batches that a resumed run sees again; one process or several
training, checkpoint            the loop, its state, the trained heads
accuracy, probe                 scores; a probe from end to end
commands        `internvl eval vision probe`
segmentation/   linear, head and full tuning on pictures with masks
"""
