"""Nothing is sent: what the packages that we use would tell their makers is off. docs/install.md lists the settings."""

import os
import sys

SETTINGS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # Hugging Face: counts of what is used
    "YOLO_OFFLINE": "true",  # ultralytics: look-ups when it is imported, events; weights are downloaded nevertheless
    "YOLO_AUTOINSTALL": "false",  # and packages that it would install by itself
    "WANDB_ERROR_REPORTING": "false",  # Weights & Biases: crash reports; it is imported by train.py --wandb alone
}


def turn_off_telemetry() -> None:
    """Call it before openvino, nncf, ultralytics, transformers or wandb are imported. What the user has set stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # openvino and nncf look a host up where they can import this; they have no setting, but do without it
    sys.modules.setdefault("openvino_telemetry", None)
    constants = sys.modules.get("huggingface_hub.constants")  # timm brings it, and it reads settings once
    if constants is not None:
        constants.HF_HUB_DISABLE_TELEMETRY = os.environ["HF_HUB_DISABLE_TELEMETRY"] != "0"
