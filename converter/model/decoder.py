"""Runs a checkpoint's language model through stock transformers code, one decoder layer in memory at a time.

The stock model class (``LlamaModel``, ``MistralModel``, ``Qwen2Model``) has here one decoder layer, no vocabulary, and
the identity as its final norm. The weights of each layer are loaded in turn, and the hidden states go through the
model's own ``forward``. The result is bit-identical to ``output_hidden_states`` of the full model in float32, except
that the last of those is taken after the final norm.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..checkpoint import CONFIG_FILE, Checkpoint, StoredTensor
from ..checkpoint.torch_file import torch_dtype
from ..errors import CheckpointError, OutOfMemoryError, UsageError, enough_memory, shown
from .attention import AttentionHook, attention_watched
from .loading import RowReader, float_rows, load_tensor, row_reader

if TYPE_CHECKING:
    import torch


# Called with the input of o_proj [samples, tokens, heads * head_dim]; its result replaces that input.
HeadsHook: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"

# The entries of a language model's config that say what a decoder layer computes. No other reaches stock code, where
# it could take memory and time (num_labels), or change how the model is run (return_dict).
_COMPUTATION = (
    *("hidden_act", "intermediate_size", "rms_norm_eps", "attention_bias", "mlp_bias"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
    *("max_position_embeddings", "original_max_position_embeddings"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "tie_word_embeddings"),
)
_NUMBERS = ("rms_norm_eps", "rope_theta", "partial_rotary_factor")
_MAX_TABLE_BYTES = 2 << 30  # of tables that stock code computes: old versions have the rotary ones for every position


def check_device(device: str) -> None:
    """Raise UsageError where torch does not know the *device*, or this machine does not have it."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"`device` {device}: there is no such device; use cpu or cuda") from error
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"`device` {device}: models do not run there; use cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"`device` {device}: torch finds no CUDA GPU here; use cpu")


class LayerDecoder:
    """A decoder layer of stock code in float32 on *device*; :meth:`load` sets its weights."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        import torch

        _check_size(checkpoint)
        self._device = torch.device(device)
        self._model = _build(checkpoint, device)
        self._model.norm = torch.nn.Identity()
        self._model.requires_grad_(False)
        self._layer = self._model.layers[0]

    def load(self, checkpoint: Checkpoint, layer: int, *, only: Collection[str] | None = None) -> None:
        """Load the weights of *checkpoint*'s decoder layer *layer*, or *only* the stored tensors of these names.

        Raises:
            CheckpointError: they do not fit.
            StorageError: they cannot be read.
        """
        self._load(checkpoint, layer, partial(float_rows, checkpoint), only)

    def _load(self, checkpoint: Checkpoint, layer: int, read: RowReader, only: Collection[str] | None = None) -> None:
        _check_shapes(self._model, checkpoint, layer)
        for name, parameter in self._layer.named_parameters():
            tensor = checkpoint.layers[layer][name]
            if only is None or tensor.name in only:
                checkpoint.check_computable(tensor)
                load_tensor(parameter, tensor, read)

    def load_each(self, layers: Iterable[tuple[Checkpoint, int]]) -> Iterator[int]:
        """Load each of *layers*, of a checkpoint, in turn, and yield its number while it is loaded.

        On a GPU, a thread reads the next one meanwhile, in its stored dtype; so both must have room there. For a CPU,
        where that would take half as much memory again, the kernel reads it into the page cache.

        Raises:
            CheckpointError, StorageError: as of :meth:`load`.
        """
        if self._device.type != "cuda":
            following = iter(layers)
            coming = next(following, None)
            while coming is not None:
                (checkpoint, layer), coming = coming, next(following, None)
                self._load(checkpoint, layer, row_reader(checkpoint, self._device))
                if coming is not None:
                    coming[0].read_ahead(coming[0].layers[coming[1]].values())
                yield layer
            return
        import torch

        wanted, beside = iter(layers), torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with ThreadPoolExecutor(1) as reader:
            coming = next(wanted, None)
            ahead = None if coming is None else reader.submit(self._read, *coming, beside)
            while coming is not None and ahead is not None:
                weights, (_, layer), coming = ahead.result(), coming, next(wanted, None)
                ahead = None if coming is None else reader.submit(self._read, *coming, beside)
                self._take(weights)
                yield layer

    def _read(self, checkpoint: Checkpoint, layer: int, beside: torch.cuda.Stream) -> dict[str, torch.Tensor]:
        """The weights of *layer* in their stored dtype, on the GPU, copied there *beside* what it computes."""
        import torch

        _check_shapes(self._model, checkpoint, layer)
        weights, read = {}, row_reader(checkpoint, self._device)
        with torch.cuda.stream(beside):
            for name, _ in self._layer.named_parameters():
                tensor = checkpoint.layers[layer][name]
                checkpoint.check_computable(tensor)
                weight = torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype), device=self._device)
                load_tensor(weight, tensor, read)
                weights[name] = weight
        beside.synchronize()
        return weights

    def _take(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Let *weights*, which another stream of the GPU has put there, be the layer's."""
        import torch

        with torch.no_grad():
            for name, parameter in self._layer.named_parameters():
                parameter.copy_(weights[name])
                # Else their memory would be the other stream's again before they are copied.
                weights[name].record_stream(torch.cuda.current_stream(self._device))

    @property
    def output_weight(self) -> torch.Tensor:
        """The loaded layer's ``o_proj`` [hidden_size, num_heads * head_dim]."""
        weight: torch.Tensor = self._layer.self_attn.o_proj.weight.detach()
        return weight

    def forward(
        self, hidden: torch.Tensor, heads_hook: HeadsHook | None = None, attention_hook: AttentionHook | None = None
    ) -> torch.Tensor:
        """The residual stream [samples, tokens, hidden_size] after the loaded layer; *hidden* is the one before it.

        *attention_hook* is called for one sample after the other.

        Raises:
            UsageError: there is an *attention_hook*, but the installed stock code does not call torch's kernel.
        """
        import torch

        with contextlib.ExitStack() as hooks:
            if heads_hook is not None:
                handle = self._layer.self_attn.o_proj.register_forward_pre_hook(
                    lambda module, inputs: (heads_hook(inputs[0]),)
                )
                hooks.callback(handle.remove)
            if attention_hook is not None:
                hooks.enter_context(attention_watched(attention_hook))
            hooks.enter_context(enough_memory(f"a decoder layer on {hidden.shape[:2].numel()} tokens"))
            hooks.enter_context(torch.inference_mode())
            output: torch.Tensor = self._model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return output

    def backward(self, hidden: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(gradient before the loaded layer, input of its ``o_proj``, gradient there), all [samples, tokens, ...].

        *hidden* is the residual stream [samples, tokens, hidden_size] before the layer, *gradient* the one behind it. A
        decoder that went :meth:`forward` before may hold tables that take no part in this: use another one.
        """
        with enough_memory(f"the gradients of a decoder layer on {hidden.shape[:2].numel()} tokens"):
            return gradients_through(
                lambda before: self._model(inputs_embeds=before, use_cache=False).last_hidden_state,
                self._layer.self_attn.o_proj,
                hidden,
                gradient,
            )


def gradients_through(
    run: Callable[[torch.Tensor], torch.Tensor], output: torch.nn.Module, hidden: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(gradient at *hidden*, input of the module *output* inside *run*, gradient there), by autograd.

    Attention is computed by torch's plain kernel, whose gradients are the same at every run, also on a GPU.
    """
    import torch

    hidden, heads = hidden.detach().requires_grad_(), []
    handle = output.register_forward_pre_hook(lambda module, inputs: heads.append(inputs[0]))
    try:
        with torch.enable_grad(), _plain_kernel():
            after = run(hidden)
            before, at_heads = torch.autograd.grad(after, [hidden, heads[0]], gradient.to(after.dtype))
    finally:
        handle.remove()
    return before, heads[0].detach(), at_heads


@contextlib.contextmanager
def _plain_kernel() -> Iterator[None]:
    """Let torch compute attention on a GPU by its plain kernel: the gradients of the others vary from run to run."""
    import torch

    switches = torch.backends.cuda
    others = [name for name in ("flash", "mem_efficient", "cudnn") if hasattr(switches, f"enable_{name}_sdp")]
    before = {name: getattr(switches, f"{name}_sdp_enabled")() for name in others}
    try:
        for name in others:
            getattr(switches, f"enable_{name}_sdp")(False)
        yield
    finally:
        for name, enabled in before.items():
            getattr(switches, f"enable_{name}_sdp")(enabled)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute matrix products and convolutions in full float32, not in TF32, whatever the process has set."""
    import torch

    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def require_stock_code(
    checkpoint: Checkpoint, otherwise: str = "`check_behaviour=False` to check the bytes alone"
) -> None:
    """Check that the installed transformers can run *checkpoint*'s language model.

    Raises:
        UsageError: it is older than the model; the message offers *otherwise*, which does not run it.
        CheckpointError: it cannot build the model from the config.
    """
    import transformers

    stock_type = checkpoint.language_model.stock_type
    if stock_type not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        raise UsageError(
            f"{checkpoint.path}: transformers {transformers.__version__} has no {stock_type}, so the language "
            f"model cannot be run; use a newer transformers, or {otherwise}"
        )
    _check_size(checkpoint)


def _check_size(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where the stock model cannot be built from the config, or is not what is stored."""
    model = meta_model(checkpoint)
    _check_shapes(model, checkpoint, 0)
    tables = sum(buffer.nbytes for buffer in model.buffers())
    if tables > _MAX_TABLE_BYTES:
        raise CheckpointError(
            f"{checkpoint.path / CONFIG_FILE}: stock code makes tables of {tables:,} bytes for the "
            "positions that it states; mend max_position_embeddings"
        )


def meta_model(checkpoint: Checkpoint) -> Any:
    """The stock model with one decoder layer and without weights, which takes no memory and no time."""
    import torch

    with torch.device("meta"):
        return _build(checkpoint, "meta")


def fitting(checkpoint: Checkpoint, tensor: StoredTensor | None, parameter: torch.Tensor, what: str) -> StoredTensor:
    """*tensor*; CheckpointError where it is missing or not of *parameter*'s shape."""
    if tensor is None or tensor.shape != tuple(parameter.shape):
        state = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
        raise CheckpointError(f"{checkpoint.path}: {what} {state}; stock code wants {list(parameter.shape)}")
    return tensor


def _check_shapes(model: Any, checkpoint: Checkpoint, layer: int) -> None:
    """Raise CheckpointError where the one layer of *model* has other parameters than *checkpoint*'s *layer*."""
    for name, parameter in model.layers[0].named_parameters():
        fitting(checkpoint, checkpoint.layers[layer].get(name), parameter, f"layer {layer}: {name}")


def language_model_config(checkpoint: Checkpoint, *, num_layers: int) -> dict[str, Any]:
    """What a stock config is made of for *checkpoint*'s language model, with *num_layers* and a vocabulary of one.

    Raises:
        CheckpointError: a number in the config is none.
    """
    given = {**checkpoint.language_model.settings, **checkpoint.text_config}
    for name in _NUMBERS:  # old versions of stock code take any, and fail when they run
        if not isinstance(given.get(name), int | float | None):
            raise CheckpointError(
                f"{checkpoint.path / CONFIG_FILE}: {name} is {shown(given[name])}, not a number; mend the config"
            )
    geometry = checkpoint.geometry
    return {name: given[name] for name in _COMPUTATION if name in given} | {
        "model_type": checkpoint.language_model.stock_type,
        "num_hidden_layers": num_layers,
        "hidden_size": geometry.hidden_size,
        "num_attention_heads": geometry.num_heads,
        "num_key_value_heads": geometry.num_kv_heads,
        "head_dim": geometry.head_dim,
        "vocab_size": 1,
        "pad_token_id": None,
    }


def _build(checkpoint: Checkpoint, device: str) -> Any:
    """The stock model with one decoder layer and no vocabulary, in float32 on *device*; its weights are not set."""
    from transformers import AutoConfig, AutoModel

    config = language_model_config(checkpoint, num_layers=1)
    with building(checkpoint, "a decoder layer in float32"), without_initial_weights():
        stock_config = AutoConfig.for_model(**config)
        return AutoModel.from_config(stock_config, trust_remote_code=False).float().eval().to(device)


@contextlib.contextmanager
def building(checkpoint: Checkpoint, what: str) -> Iterator[None]:
    """While stock code builds *what* from *checkpoint*'s config.

    Raises:
        CheckpointError: it cannot.
        OutOfMemoryError: it takes too much memory.
    """
    try:
        with stock_code(), enough_memory(f"{checkpoint.path}: {what}"):
            yield
    except OutOfMemoryError:
        raise
    except Exception as error:  # stock code raises errors of any kind at a wrong config
        raise CheckpointError(
            f"{checkpoint.path / CONFIG_FILE}: stock transformers cannot build the language model from it "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}); mend the config"
        ) from error


def without_initial_weights() -> contextlib.AbstractContextManager[None]:
    """While stock code builds a model, it makes up no weights: those are loaded, and random ones take seconds.

    On the device ``meta``, they would take torch's compiler, whose import alone takes half a second.
    """
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # before transformers 5
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()  # type: ignore[no-any-return]


@contextlib.contextmanager
def stock_code() -> Iterator[None]:
    """Silence transformers' messages, warnings and progress bars."""
    from transformers.utils import logging as transformers_logging

    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:  # not inside another of these
            transformers_logging.enable_progress_bar()
