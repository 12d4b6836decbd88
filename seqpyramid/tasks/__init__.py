"""The TASKS table: every task, under the name that recipes use."""

from seqpyramid.registry import Registry
from seqpyramid.tasks.audio_folder import AudioFolderConfig
from seqpyramid.tasks.base import TaskConfig
from seqpyramid.tasks.char_lm import CharLMConfig
from seqpyramid.tasks.copy_memory import CopyMemoryConfig
from seqpyramid.tasks.digits import DigitsConfig
from seqpyramid.tasks.handwriting import HandwritingConfig
from seqpyramid.tasks.masked_addition import MaskedAdditionConfig
from seqpyramid.tasks.pixel_mnist import PixelMnistConfig
from seqpyramid.tasks.series import SeriesConfig
from seqpyramid.tasks.signals import SignalsConfig
from seqpyramid.tasks.vctk import VctkConfig

TASKS: Registry[TaskConfig] = Registry(
    "task",
    [
        AudioFolderConfig,
        CharLMConfig,
        CopyMemoryConfig,
        DigitsConfig,
        HandwritingConfig,
        MaskedAdditionConfig,
        PixelMnistConfig,
        SeriesConfig,
        SignalsConfig,
        VctkConfig,
    ],
)
