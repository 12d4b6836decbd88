"""The TASKS table: every task, under the name that recipes use."""

from seqpyramid.registry import Registry
from seqpyramid.tasks.base import TaskConfig
from seqpyramid.tasks.digits import DigitsConfig
from seqpyramid.tasks.masked_addition import MaskedAdditionConfig
from seqpyramid.tasks.pixel_mnist import PixelMnistConfig

TASKS: Registry[TaskConfig] = Registry("task", [DigitsConfig, MaskedAdditionConfig, PixelMnistConfig])
