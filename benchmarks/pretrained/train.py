"""Train the tower alone, and then tower, projector and low-rank changes of the language model together, on one GPU.

1. The tower names drawings: of all things' names, the one whose embedding in the language model is most like the mean
   of what the projector makes of its patches. So the second stage begins with patches that mean something to it.
2. The whole model answers questions about drawings and about facts in a context. On plain text, it must say what the
   pretrained language model says (KL of its next-token distribution), so that its abilities stay.

Questions that are held out go around drawings that are in no step. Each stage ends with its learning rate falling to 0;
the second begins to end when both kinds of held-out questions reach GOAL, or when its steps or the time are nearly up.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from benchmarks.pretrained import conversations
from benchmarks.pretrained.conversations import IGNORED, Asked
from benchmarks.pretrained.drawings import Drawings
from benchmarks.pretrained.language_model import Gguf
from benchmarks.pretrained.model import PretrainedLlava
from benchmarks.pretrained.pictures import Pictures

TOWER_FILE, CHANGES_FILE, LOG_FILE = "tower.safetensors", "changes.safetensors", "training-log.jsonl"
SEED = 0
GOAL = 0.97
WINDOW = 256  # tokens of plain text


@dataclass(frozen=True)
class Settings:
    """How long and how much; *seconds* is when the second stage ends at the latest, from the beginning."""

    device: str = "cuda"
    tower_steps: int = 4000
    tower_batch: int = 1024
    steps: int = 1500
    conversations: int = 40_000  # of each kind
    image_batch: int = 160
    text_batch: int = 96
    windows: int = 16
    questions: int = 384  # that are held out, of each kind
    decay: int = 200  # steps
    log_every: int = 50
    seconds: float = 420.0


class Training:
    """One run over the data in *data*, which writes into *out*."""

    def __init__(self, gguf: Path, data: Path, out: Path, settings: Settings) -> None:
        self._settings, self._out = settings, out
        self._start = time.monotonic()
        torch.manual_seed(SEED)
        torch.set_float32_matmul_precision("high")
        out.mkdir(parents=True, exist_ok=True)
        (out / LOG_FILE).write_text("")
        source = Gguf(gguf)
        self._tokenizer = source.tokenizer()
        self._drawings = Drawings.load(data / "drawings.npz")
        self._conversations = {  # made by other processes, which must not inherit a GPU that is in use
            kind: conversations.make(
                self._tokenizer, self._drawings, settings.conversations, with_image=kind == "image"
            )
            for kind in ("image", "text")
        }
        self._log({"conversations": 2 * settings.conversations})
        self._device = device = torch.device(settings.device)
        self._pictures = Pictures(self._drawings, device)
        self._reduced = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._model = PretrainedLlava(source, self._reduced).to(device)
        self._image_start = conversations.image_start(self._tokenizer)
        texts = json.loads((data / "texts.json").read_text())
        self._text, self._held_out_text = (self._windows(texts[name]) for name in ("training", "held-out"))
        self._held_out = {
            kind: conversations.held_out(
                self._tokenizer, self._drawings, settings.questions, with_image=kind == "image", seed=number
            ).to(device)
            for number, kind in enumerate(("image", "text"))
        }
        self._log({"parameters": sum(p.numel() for p in self._model.parameters() if p.requires_grad)})

    def run(self) -> None:
        self._train_tower()
        self._train_all()
        for file, weights in (
            (TOWER_FILE, self._model.tower_and_projector()),
            (CHANGES_FILE, self._model.deltas()),
        ):
            save_file({name: tensor.half().contiguous().cpu() for name, tensor in weights.items()}, self._out / file)

    def _windows(self, passages: list[str]) -> torch.Tensor:
        """*passages* one after the other, in windows [windows, WINDOW]."""
        ids = [token for encoding in self._tokenizer.encode_batch(passages) for token in encoding.ids]
        return torch.tensor(ids[: len(ids) // WINDOW * WINDOW], dtype=torch.int32, device=self._device).view(-1, WINDOW)

    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _log(self, entry: dict[str, object]) -> None:
        line = json.dumps(entry | {"seconds": round(self._seconds(), 1)})
        print(line, flush=True)
        with (self._out / LOG_FILE).open("a") as file:
            file.write(line + "\n")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._reduced == torch.bfloat16)

    def _train_tower(self) -> None:
        settings, model, pictures = self._settings, self._model, self._pictures
        names, num_things = self._name_embeddings(), len(self._drawings.names)
        sharpness = nn.Parameter(torch.tensor(20.0, device=self._device))
        parts = (model.tower.parameters(), model.projector.parameters(), [sharpness])
        optimizer = _adamw([(list(part), 1e-3) for part in parts], weight_decay=0.1)

        def named(drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """(how like each name the drawings are [batch, things], the means of their patches [batch, hidden])."""
            with self._autocast():
                means = model.projector(model.features(drawn)).mean(1).float()
            likeness = functional.normalize(means, dim=-1) @ functional.normalize(names, dim=-1).T
            return sharpness * likeness, means

        steps, warm_up = settings.tower_steps, max(1, settings.tower_steps // 15)
        for step in range(1, steps + 1):
            _set_rate(optimizer, min(step / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps)))
            things = torch.randint(num_things, (settings.tower_batch,), device=self._device)
            drawn = pictures.changed(pictures.any_drawing(things))
            logits, means = named(drawn)
            distance = (means - names[things]).square().sum(-1) / names[things].square().sum(-1)
            _step(optimizer, functional.cross_entropy(logits, things, label_smoothing=0.1) + 0.1 * distance.mean())
            if step % (10 * settings.log_every) == 0 or step == steps:
                with torch.no_grad():
                    said = named(pictures.plain(pictures.held_out))[0].argmax(1)
                right = (said == pictures.things[pictures.held_out]).float().mean()
                self._log({"tower step": step, "held-out drawings": round(right.item(), 4)})

    def _name_embeddings(self) -> torch.Tensor:
        """The mean embedding of the tokens of each thing's name [things, hidden]."""
        table = self._model.language_model.model.embed_tokens.weight.detach().float()
        encoded = self._tokenizer.encode_batch([f" {name}" for name in self._drawings.names])
        return torch.stack([table[torch.tensor(one.ids, device=self._device)].mean(0) for one in encoded])

    def _train_all(self) -> None:
        settings, model, pictures, device = self._settings, self._model, self._pictures, self._device
        data = {kind: made.to(device) for kind, made in self._conversations.items()}
        optimizer = _adamw(
            [
                (list(model.tower.parameters()), 1e-4),
                (list(model.projector.parameters()), 1e-3),
                (model.change_parameters(), 5e-4),
            ],
            weight_decay=0.01,
        )
        end, step, start = settings.steps, 0, self._seconds()
        while step < end:
            step += 1
            _set_rate(optimizer, min(1.0, step / 50, (end - step + 1) / settings.decay))
            rows = {
                kind: torch.randint(settings.conversations, (count,), device=device)
                for kind, count in (("image", settings.image_batch), ("text", settings.text_batch))
            }
            ids, labels = (
                torch.cat([getattr(data[kind], part)[rows[kind]] for kind in data]).long() for part in ("ids", "labels")
            )
            drawn = pictures.changed(pictures.any_drawing(data["image"].things[rows["image"]]))
            with self._autocast():
                loss = self._answer_loss(ids, labels, drawn)
            loss.backward()
            kept = self._text[torch.randint(len(self._text), (settings.windows,), device=device)].long()
            with self._autocast():
                divergence = self._divergence(kept)
            _step(optimizer, divergence)
            at_end = step == end
            if step % settings.log_every == 0 or at_end:
                measured = self._measured()
                self._log({"step": step, "loss": round(loss.item(), 4), "kl": round(divergence.item(), 5)} | measured)
                reached = min(measured["image"], measured["text"]) >= GOAL
                per_step = (self._seconds() - start) / step
                late = self._seconds() + settings.decay * per_step > settings.seconds
                if (reached or late) and not at_end:
                    end = min(end, step + settings.decay)

    def _answer_loss(self, ids: torch.Tensor, labels: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the answers' tokens."""
        states = self._model.states(ids, drawn, self._image_start)[:, :-1]
        carries = labels[:, 1:] != IGNORED
        return functional.cross_entropy(self._model.logits(states[carries]), labels[:, 1:][carries])

    def _divergence(self, ids: torch.Tensor) -> torch.Tensor:
        """Mean KL of the pretrained model's next token to the changed model's, over *ids*."""
        with torch.no_grad():
            self._model.set_changed(False)
            wanted = functional.log_softmax(self._model.logits(self._model.states(ids)), -1)
            self._model.set_changed(True)
        said = functional.log_softmax(self._model.logits(self._model.states(ids)), -1)
        return functional.kl_div(said, wanted, log_target=True, reduction="sum") / ids.numel()

    @torch.no_grad()
    def _measured(self) -> dict[str, float]:
        """Shares of held-out questions answered right, and perplexity of held-out text over the pretrained's."""
        found = {kind: round(self._accuracy(asked), 4) for kind, asked in self._held_out.items()}
        count = max(1, self._settings.questions // 8)
        part = self._held_out_text[:: max(1, len(self._held_out_text) // count)][:count]
        losses = []
        for changed in (False, True):
            self._model.set_changed(changed)
            losses.append(sum(self._text_loss(windows) for windows in part.split(16)) / len(part))
        return found | {
            "perplexity": round(math.exp(losses[1]), 3),
            "over pretrained": round(math.exp(losses[1] - losses[0]), 4),
        }

    def _text_loss(self, windows: torch.Tensor) -> float:
        """The sum over *windows* of the mean -log p of their tokens."""
        ids = windows.long()
        with self._autocast():
            logits = self._model.logits(self._model.states(ids))
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item() * len(ids)

    def _accuracy(self, asked: Asked) -> float:
        """The share of *asked* whose letter is the likeliest of all tokens."""
        right = 0
        for first in range(0, len(asked.ids), 96):
            ids, labels, rows = (part[first : first + 96].long() for part in (asked.ids, asked.labels, asked.drawings))
            drawn = self._pictures.plain(rows) if rows[0] >= 0 else None
            carries = (labels != IGNORED).int().argmax(1)  # the letter, before the end of the answer
            every = torch.arange(len(ids), device=ids.device)
            with self._autocast():
                states = self._model.states(ids, drawn, self._image_start)
                said = self._model.logits(states[every, carries - 1]).argmax(-1)
            right += int((said == labels[every, carries]).sum())
        return right / len(asked.ids)


def _adamw(groups: list[tuple[list[nn.Parameter], float]], weight_decay: float) -> torch.optim.AdamW:
    parameters: list[dict[str, object]] = []
    for group, rate in groups:
        for is_matrix in (True, False):
            of_kind = [p for p in group if (p.ndim >= 2) == is_matrix]
            parameters.append({"params": of_kind, "lr": rate, "peak": rate, "weight_decay": weight_decay * is_matrix})
    return torch.optim.AdamW(parameters, betas=(0.9, 0.98), fused=parameters[0]["params"][0].is_cuda)  # type: ignore[index]


def _set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
