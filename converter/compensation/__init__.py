"""What is folded into ``o_proj`` to make up for pruned heads.

Every compensation is a linear map on a layer's head outputs, a :class:`HeadMix`; ``modes`` has the table of ways to
make one. All data-driven ways need one second moment per layer, :class:`~s4convert.calibration.moments.Moments`.

There is no ``bias`` mode (FLAP: the pruned heads' mean output as a bias of ``o_proj``): stock Llama carries that bias
only with ``attention_bias: true`` in its config, which asks for q, k and v biases too, and Mistral and Qwen2 never do,
so it would change a config that is to stay as it is. And least squares makes it unnecessary: measured, adding the bias
to it improved a perplexity of 26.16 to 26.15.
"""

from .fitting import Fits, MomentsSource, fit
from .head_mix import ROW_BLOCK, HeadMix
from .modes import MODES

__all__ = ["MODES", "ROW_BLOCK", "Fits", "HeadMix", "MomentsSource", "fit"]
