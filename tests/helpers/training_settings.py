"""The settings of very short runs, for the tests of this folder."""

MODEL = "unet-test_resnet"
SHORT = [
    "crop=64",
    "batch_size=4",
    "precision=fp32",
    "ema=0.9",
    "stages=[{name: head, epochs: 1, unfreeze: 0.0}, "
    "{name: all, epochs: 2, encoder_lr_scale: 0.5, schedule: {kind: cosine}}]",
]
