"""Semantic segmentation with an InternViT (report section 7.2, Table 15): linear, head, full.

pyramid     InternViT -> four maps at strides 4, 8, 16, 32
models      linear probe; transformers' UperNet on the pyramid
settings    the hyper-parameters of the report, by mode
layouts     ADE20K, COCO-Stuff-164K, images/ + masks/
transforms  MMSegmentation's default augmentation, and its test-time resizing
slide       sliding-window inference
miou        confusion matrix -> mIoU, mAcc, aAcc
optim       learning rate, layer decay
state       checkpoints: what is written, what may be resumed
training    the loop
run         all of it -> results.json
commands    `internvl eval vision segment`

The reference is the authors' code, OpenGVLab/InternVL-MMDetSeg (commit 89b1e61), folder
mmsegmentation/: MMSegmentation 0.27 with configs/intern_vit_6b_448px_v2_5/. "Official" means it.
"""
