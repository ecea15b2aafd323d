"""What runs programs and exported files: one file each, registered in the order of being asked."""

from fxcompress.export.runtimes import torch as torch  # isort: skip - programs are run by torch,
from fxcompress.export.runtimes import onnxruntime as onnxruntime  # isort: skip - files by this
from fxcompress.export.runtimes import tensorrt_session as tensorrt_session  # isort: skip
from fxcompress.export.runtimes.protocol import (
    Input,
    Runtime,
    Session,
    register,
    runtime_for,
    runtimes,
)

__all__ = ["Input", "Runtime", "Session", "register", "runtime_for", "runtimes"]
