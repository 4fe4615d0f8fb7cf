"""A checkpoint's language model, whole, on one device: what is swapped into it is out again afterwards, bit for bit.

It is the stock class for causal language models (``LlamaForCausalLM`` and the like), and its input are embeddings, as
a front end makes them; so every family and layout is run the same way.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint, StoredTensor
from ..checkpoint.torch_file import torch_dtype
from ..choices import DTYPES
from ..errors import CheckpointError, UsageError, VerificationError
from ..progress import byte_bar
from .batches import padded
from .decoder import (
    building,
    check_device,
    fitting,
    gradients_through,
    language_model_config,
    stock_code,
    without_initial_weights,
)
from .loading import load_tensor, row_reader

if TYPE_CHECKING:
    import torch

_LOADERS = 8  # threads, with a block each
GENERATION_CONFIG_FILE = "generation_config.json"


@dataclass(frozen=True)
class Change:
    """What becomes of the rows [*first*, *first* + *count*) of *tensor*: *transform* gets them in float32."""

    tensor: StoredTensor
    first: int
    count: int
    transform: Callable[[torch.Tensor], torch.Tensor]


class ResidentModel:
    """The language model of *checkpoint* on *device*, in *dtype* (one of :data:`~s4convert.choices.DTYPES`).

    By default it computes in float32 on a CPU, and in the dtype that the weights are stored in elsewhere. Weights
    stream from the disk to the device, a few megabytes at a time.

    Raises:
        UsageError: there is no such device or dtype.
        CheckpointError: the weights do not fit the stock class.
        StorageError: they cannot be read.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, device: str = "cpu", dtype: str | None = None, progress: bool = False
    ) -> None:
        import torch

        check_device(device)
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(f"`dtype` {dtype!r} is none of {', '.join(DTYPES)}")
        stored = torch_dtype(checkpoint.output_projection(0).dtype)
        self.dtype: torch.dtype = getattr(torch, dtype) if dtype else torch.float32 if device == "cpu" else stored
        self.device = device
        self.checkpoint = checkpoint
        self._model = _build(checkpoint, device, self.dtype).requires_grad_(False)
        self._parameters: dict[str, torch.nn.Parameter] = {}
        pairs = list(self._stored_parameters())
        with byte_bar("load", sum(tensor.entry.num_bytes for tensor, _ in pairs), shown=progress) as bar:
            read = row_reader(checkpoint, device)
            with ThreadPoolExecutor(min(_LOADERS, os.cpu_count() or 1)) as pool:
                loads = [pool.submit(load_tensor, parameter, tensor, read) for tensor, parameter in pairs]
                for (tensor, parameter), load in zip(pairs, loads, strict=True):
                    load.result()
                    self._parameters[tensor.name] = parameter
                    bar.update(tensor.entry.num_bytes)

    def _stored_parameters(self) -> Iterator[tuple[StoredTensor, torch.nn.Parameter]]:
        """Every parameter, and the stored tensor that it gets."""
        checkpoint, model = self.checkpoint, self._model
        yield from (
            (fitting(checkpoint, tensor, parameter, name), parameter)
            for name, tensor, parameter in (
                ("the token embeddings", checkpoint.embedding, model.model.embed_tokens.weight),
                ("the final norm", checkpoint.final_norm, model.model.norm.weight),
                ("lm_head", checkpoint.vocabulary_projection, model.lm_head.weight),
            )
        )
        for layer, (module, stored) in enumerate(zip(model.model.layers, checkpoint.layers, strict=True)):
            for name, parameter in module.named_parameters():
                yield fitting(checkpoint, stored.get(name), parameter, f"layer {layer}: {name}"), parameter

    @contextlib.contextmanager
    def changed(self, changes: Iterable[Change]) -> Iterator[None]:
        """Put *changes* into the weights, rounded to their stored dtype; on the way out, take them back.

        Raises:
            CheckpointError: a changed value is beyond the range of its stored dtype.
        """
        import torch

        before: list[tuple[torch.Tensor, torch.Tensor]] = []
        try:
            with torch.inference_mode():
                for change in changes:
                    rows = self._parameters[change.tensor.name].data[change.first : change.first + change.count]
                    before.append((rows, rows.clone()))
                    stored = change.transform(rows.float()).to(torch_dtype(change.tensor.dtype))
                    if not stored.isfinite().all():
                        raise CheckpointError(
                            f"{self.checkpoint.path / change.tensor.shard}: {change.tensor.name} would overflow "
                            f"{change.tensor.dtype} when compensated; use `compensation='none'`"
                        )
                    rows.copy_(stored)
            yield
        finally:
            with torch.inference_mode():
                for rows, saved in reversed(before):
                    rows.copy_(saved)

    def module(self, layer: int, name: str) -> torch.nn.Module:
        """The module *name* (``self_attn.q_proj``) of decoder layer *layer*."""
        found: torch.nn.Module = self._model.model.layers[layer].get_submodule(name)
        return found

    @contextlib.contextmanager
    def replaced(self, modules: Mapping[tuple[int, str], torch.nn.Module]) -> Iterator[None]:
        """Let *modules* stand in the place of those of their (layer, name) inside the block."""
        before = {place: self.module(*place) for place in modules}
        try:
            self._put(modules)
            yield
        finally:
            self._put(before)

    def _put(self, modules: Mapping[tuple[int, str], torch.nn.Module]) -> None:
        for (layer, name), module in modules.items():
            parent, _, own_name = name.rpartition(".")
            setattr(self.module(layer, parent), own_name, module)

    @contextlib.contextmanager
    def recomputing(self) -> Iterator[None]:
        """Inside the block, a backward pass computes each decoder layer again instead of keeping what is inside it."""
        from torch.utils.checkpoint import checkpoint

        layers = list(self._model.model.layers)
        try:
            for layer in layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            yield
        finally:
            for layer in layers:
                vars(layer).pop("forward", None)

    def states(self, samples: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the final norm makes of *samples* [1, tokens, hidden_size]: [samples, longest, hidden_size].

        A shorter sample has other numbers behind its end. Gradients flow to what is in :meth:`replaced`.
        """

        hidden = padded(sample.to(self.device, self.dtype) for sample in samples)
        with stock_code():
            found: torch.Tensor = self._model.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return found

    def silent_heads(self, layer: int) -> tuple[int, ...]:
        """The heads of *layer* whose ``o_proj`` columns are all zero as the weights are now, sorted."""
        heads = self.checkpoint.geometry.num_heads
        weight = self.output_weight(layer)
        speaks = weight.reshape(weight.shape[0], heads, -1).ne(0).any(dim=2).any(dim=0)
        return tuple(head for head, one in enumerate(speaks.tolist()) if not one)

    def check_unchanged(self) -> None:
        """Raise VerificationError where a weight is not the checkpoint's, bit for bit; all of them are read again."""
        import torch

        read = row_reader(self.checkpoint, self.device)
        for tensor, parameter in self._stored_parameters():
            again = torch.empty_like(parameter)
            load_tensor(again, tensor, read)
            if not torch.equal(again, parameter):
                raise VerificationError(f"{tensor.name}: is not as it was loaded; this is a fault in s4convert")

    def generate(self, prompts: Sequence[torch.Tensor], *, max_new_tokens: int) -> list[list[int]]:
        """The tokens that greedy ``generate`` of stock code appends to *prompts*, without the end of the answer.

        *prompts* are embeddings [1, tokens, hidden_size]; they go through the model in one batch, padded on the left.
        """
        import torch

        hidden, attention = self._batch(prompts)
        settings = self._generation
        ends = settings.eos_token_id
        stops = set(ends) if isinstance(ends, list) else {ends}
        with stock_code(), torch.inference_mode():
            output = self._model.generate(
                input_ids=attention[:, :0],  # else transformers before 4.38 begins the answer with one of its own
                inputs_embeds=hidden,
                attention_mask=attention,
                generation_config=settings,
                do_sample=False,
                max_new_tokens=max_new_tokens,
            )
        answers = []
        for row in output.tolist():
            end = next((place for place, token in enumerate(row) if token in stops), len(row))
            answers.append(row[:end])
        return answers

    def logits(self, samples: Sequence[torch.Tensor], tails: Sequence[int]) -> list[torch.Tensor]:
        """For each sample [1, tokens, hidden_size], what the model says of its last tokens, as many as *tails* has.

        The result is in float32, [tail, vocabulary]: row i is what was to come in the place of token i of the tail.
        """
        import torch

        hidden, attention = self._batch(samples)
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        with stock_code(), torch.inference_mode():
            states = self._model.model(
                inputs_embeds=hidden, attention_mask=attention, position_ids=positions, use_cache=False
            ).last_hidden_state
            return [
                self._model.lm_head(state[-tail - 1 : -1]).float() for state, tail in zip(states, tails, strict=True)
            ]

    def output_weight(self, layer: int) -> torch.Tensor:
        """The weight of *layer*'s ``o_proj`` itself, which stays what is written into it."""
        return self._parameters[self.checkpoint.output_projection(layer).name].data

    def heads(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """What goes into every layer's ``o_proj``, [samples, tokens, columns]; *hidden* is [samples, tokens, width]."""
        import torch

        heads: list[torch.Tensor] = []
        with contextlib.ExitStack() as hooks:
            for layer in self._model.model.layers:
                output = layer.self_attn.o_proj
                hooks.callback(output.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0])).remove)
            with stock_code(), torch.no_grad():
                self._model.model(inputs_embeds=hidden.to(self.device, self.dtype), use_cache=False)
        return heads

    def backward(
        self,
        hidden: torch.Tensor,
        gradient: Callable[[torch.Tensor], torch.Tensor],
        watch: Callable[[int, torch.Tensor, torch.Tensor], object],
    ) -> None:
        """Run samples [samples, tokens, hidden_size] up through the layers, and a gradient down again.

        *gradient* makes it of the residual stream behind the last layer; *watch* is called with each layer, the input
        of its ``o_proj`` [samples, tokens, columns] and the gradient there, the last layer first. Of the way up, only
        what goes into each layer is kept.
        """
        import torch

        layers, calls, last = self._model.model.layers, [], []
        with contextlib.ExitStack() as hooks:
            for layer in layers:
                handle = layer.register_forward_pre_hook(
                    lambda _, arguments, named: calls.append((arguments, named)), with_kwargs=True
                )
                hooks.callback(handle.remove)
            norm = self._model.model.norm
            hooks.callback(norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0])).remove)
            with stock_code(), torch.no_grad():
                self._model.model(inputs_embeds=hidden.to(self.device, self.dtype), use_cache=False)
        behind = gradient(last[0])
        for number in reversed(range(len(layers))):
            (before, *others), named = calls.pop()
            run = partial(_residual_stream, layers[number], others, named)
            behind, heads, at_heads = gradients_through(run, layers[number].self_attn.o_proj, before, behind)
            watch(number, heads, at_heads)

    def _batch(self, samples: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(*samples* [samples, tokens, hidden_size], padded on the left; which tokens are none [samples, tokens])."""
        import torch

        longest = max(sample.shape[1] for sample in samples)
        hidden = torch.zeros(len(samples), longest, samples[0].shape[2], dtype=self.dtype, device=self.device)
        attention = torch.zeros(len(samples), longest, dtype=torch.long, device=self.device)
        for number, sample in enumerate(samples):
            hidden[number, longest - sample.shape[1] :] = sample[0].to(self.device, self.dtype)
            attention[number, longest - sample.shape[1] :] = 1
        return hidden, attention

    @property
    def _generation(self) -> Any:
        """The checkpoint's own generation config, as stock code reads it."""
        from transformers import GenerationConfig

        with stock_code():
            if (self.checkpoint.path / GENERATION_CONFIG_FILE).is_file():
                settings = GenerationConfig.from_pretrained(self.checkpoint.path)
            else:
                settings = GenerationConfig()
        settings.max_length, settings.temperature, settings.top_p = None, None, None
        if settings.eos_token_id is None:
            stated = (self.checkpoint.text_config, self.checkpoint.config)
            ends = (one["eos_token_id"] for one in stated if one.get("eos_token_id") is not None)
            settings.eos_token_id = next(ends, self._model.config.eos_token_id)
        if settings.pad_token_id is None:
            ends = settings.eos_token_id
            settings.pad_token_id = ends[0] if isinstance(ends, list) else ends
        return settings


def _residual_stream(layer: Any, others: Sequence[Any], named: Mapping[str, Any], hidden: torch.Tensor) -> torch.Tensor:
    """What stock code's decoder *layer* makes of *hidden*; before transformers 5 it stands in a tuple."""
    output = layer(hidden, *others, **named)
    after: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return after


def _build(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> Any:
    """The stock causal language model, its weights still to be loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = language_model_config(checkpoint, num_layers=checkpoint.geometry.num_layers)
    config |= {"vocab_size": checkpoint.embedding.num_rows, "tie_word_embeddings": False}
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as from_pretrained does, for what is no parameter
    try:
        with building(checkpoint, f"the language model in {dtype}"), torch.device(device), without_initial_weights():
            stock_config = AutoConfig.for_model(**config)
            return AutoModelForCausalLM.from_config(stock_config, trust_remote_code=False).eval()
    finally:
        torch.set_default_dtype(before)
