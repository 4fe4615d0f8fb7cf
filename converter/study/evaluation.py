"""What a model answers to questions, how right that is, how fast it came, and what it thinks of texts."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.inputs import open_image
from ..calibration.samples import MAX_TOKENS, Sample
from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..model.decoder import stock_code
from ..model.front_end import FrontEnd, open_front_end
from ..model.resident import ResidentModel
from ..progress import sample_bar
from .figures import Difference, Share, difference, exact_match, share, vqa_accuracy
from .prompts import Prompts
from .questions import LETTERS, Question, parse_choice

if TYPE_CHECKING:
    import torch

_TIMINGS = 3  # of answers, at the least, so that their speed has a spread


@dataclass(frozen=True)
class Task:
    """A question or a text, as the language model gets it.

    *prompt* is [1, tokens, hidden_size], None of a text. *whole* is the same with the right answer behind it, of which
    the last *tail* tokens are the answer; of a text, all but the first.
    """

    question: Question | None
    prompt: torch.Tensor | None
    whole: torch.Tensor
    tail: int
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Tasks:
    """Everything to ask, embedded once, for any number of models with the same embeddings; *shown* is one prompt."""

    questions: tuple[Task, ...]
    texts: tuple[Task, ...]
    decode: Callable[[Sequence[int]], str]
    shown: str
    conversation: str


@dataclass(frozen=True)
class Answer:
    """What was said to a question: *choice* is the letter that it names, None where it names none.

    *score* is 1 for a right answer and 0 for a wrong one, or a share by the VQA metric; *loss* the sum of the right
    answer's -log p over its *tokens*. *cut* says that the answer was cut at the largest number of new tokens.
    """

    question: Question
    text: str
    choice: str | None
    score: float
    loss: float
    tokens: int
    cut: bool

    @property
    def is_unparsable(self) -> bool:
        """Whether a letter was asked for and none was named."""
        return self.question.is_choice and self.choice is None

    def to_json(self) -> dict[str, Any]:
        """The answer as a line of a samples file."""
        return {
            "question_id": self.question.id,
            "image": self.question.image is not None,
            "answers": list(self.question.answers),
            "text": self.text,
            "choice": self.choice,
            "score": round(self.score, 6),
            "loss": float(f"{self.loss:.6g}"),
            "tokens": self.tokens,
            "cut": self.cut,
        }


@dataclass(frozen=True)
class Speed:
    """How fast answers came after a warm-up, and the peaks of memory, in bytes.

    *rates* are the answers a second of each batch that was timed, in the order of the batches; few batches are timed
    more than once.
    """

    seconds: float
    samples: int
    new_tokens: int
    rates: tuple[float, ...]
    host_peak: int
    device_peak: int | None

    def __str__(self) -> str:
        device = "" if self.device_peak is None else f", on the device {self.device_peak / 1e6:,.0f} MB"
        return (
            f"{self.samples / self.seconds:.3g} answers/s ({min(self.rates):.3g} to {max(self.rates):.3g} in "
            f"{len(self.rates)} timings), {self.new_tokens / self.seconds:.3g} tokens/s, peak memory "
            f"{self.host_peak / 1e6:,.0f} MB{device}"
        )

    def against(self, baseline: Speed) -> str:
        """How many times as fast as *baseline*, which answered the same questions, in words."""
        times = self.samples / self.seconds / (baseline.samples / baseline.seconds)
        pairs = [after / before for before, after in zip(baseline.rates, self.rates, strict=True)]
        return f"{times:.2f} times ({min(pairs):.2f} to {max(pairs):.2f})"

    def to_json(self) -> dict[str, Any]:
        """Rates a second, and peaks in bytes."""
        rates = {
            "samples_per_second": self.samples / self.seconds,
            "slowest_samples_per_second": min(self.rates),
            "fastest_samples_per_second": max(self.rates),
            "tokens_per_second": self.new_tokens / self.seconds,
        }
        peaks = {"host_peak_bytes": self.host_peak, "device_peak_bytes": self.device_peak}
        return {name: float(f"{rate:.4g}") for name, rate in rates.items()} | peaks


@dataclass(frozen=True)
class Evaluation:
    """What one model answered; *text_loss* is the sum of -log p over *text_tokens* of plain text."""

    answers: tuple[Answer, ...]
    text_loss: float
    text_tokens: int
    speed: Speed | None

    def accuracy(self, *, image: bool | None = None) -> Share | None:
        """The share of right answers: of all questions, or of those with or without an *image*."""
        return share([one.score for one in self.answers if image is None or (one.question.image is not None) == image])

    @property
    def answer_perplexity(self) -> float | None:
        """exp of the mean loss of the right answers' tokens."""
        tokens = sum(one.tokens for one in self.answers)
        return _exp(math.fsum(one.loss for one in self.answers) / tokens) if tokens else None

    @property
    def text_perplexity(self) -> float | None:
        """exp of the mean loss of the text's tokens."""
        return _exp(self.text_loss / self.text_tokens) if self.text_tokens else None

    @property
    def unparsable(self) -> tuple[Answer, ...]:
        """Answers that name no option where one was asked for; they count as wrong, as in LLaVA's own scoring."""
        return tuple(one for one in self.answers if one.is_unparsable)

    def difference(self, baseline: Evaluation, *, image: bool | None = None) -> Difference | None:
        """The paired difference to *baseline*, which answered the same questions."""
        pairs = [
            (before.score, after.score)
            for before, after in zip(baseline.answers, self.answers, strict=True)
            if image is None or (after.question.image is not None) == image
        ]
        return difference(*zip(*pairs, strict=True)) if pairs else None

    def to_json(self) -> dict[str, Any]:
        """The figures for a script to read."""
        kinds: Mapping[str, bool | None] = {"accuracy": None, "image_accuracy": True, "text_accuracy": False}
        shares = {name: self.accuracy(image=image) for name, image in kinds.items()}
        return {
            **{name: None if found is None else found.to_json() for name, found in shares.items()},
            "unparsable": len(self.unparsable),
            "cut": sum(one.cut for one in self.answers),
            "answer_perplexity": _rounded(self.answer_perplexity),
            "text_perplexity": _rounded(self.text_perplexity),
            "speed": None if self.speed is None else self.speed.to_json(),
        }


def prepare(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    texts: Sequence[Sample],
    prompts: Prompts | None,
    *,
    device: str = "cpu",
    tower: Path | None = None,
    progress: bool = False,
) -> Tasks:
    """Put *questions*, by *prompts*, and *texts* through *checkpoint*'s front end, on *device*.

    Raises:
        CheckpointError: the front end cannot be loaded.
        CalibrationError: an image cannot be read.
    """
    with_images = any(question.image is not None for question in questions)
    front_end = open_front_end(checkpoint, with_images=with_images, tower=tower, device=device)
    asked, read = [], []
    with sample_bar("inputs", len(questions) + len(texts), shown=progress) as bar:
        for question in questions:
            assert prompts is not None
            asked.append(_task(front_end, question, prompts))
            bar.update(1)
        for sample in texts:
            ids = _token_ids(front_end, sample.text)[:MAX_TOKENS]
            whole = front_end(sample.text)[0][:, :MAX_TOKENS]
            read.append(Task(None, None, whole, len(ids) - 1, tuple(ids[1:])))
            bar.update(1)
    shown = prompts.write([(questions[0].text, None)]) if prompts is not None and questions else ""
    decode = partial(front_end.tokenizer.decode, skip_special_tokens=True)
    return Tasks(tuple(asked), tuple(read), decode, shown, "" if prompts is None else prompts.name)


def _task(front_end: FrontEnd, question: Question, prompts: Prompts) -> Task:
    image = None if question.image is None else open_image(question.image, question.where)
    prompt = prompts.write([(question.text, None)])
    whole = prompts.write([(question.text, question.answers[0])])
    before, ids = _token_ids(front_end, prompt), _token_ids(front_end, whole)
    if ids[: len(before)] != before or len(ids) == len(before):
        raise CheckpointError(
            f"{question.where}: the tokens of the prompt change when its answer follows; mend the answer, or use "
            "another `conversation`"
        )
    return Task(
        question,
        front_end(prompt, image)[0],
        front_end(whole, image)[0],
        len(ids) - len(before),
        tuple(ids[len(before) :]),
    )


def _token_ids(front_end: FrontEnd, text: str) -> list[int]:
    with stock_code():
        return [int(token) for token in front_end.tokenizer(text)["input_ids"]]


def evaluate_model(
    model: ResidentModel,
    tasks: Tasks,
    *,
    batch_size: int,
    max_new_tokens: int,
    progress: bool = False,
) -> Evaluation:
    """Put *tasks* to *model*: greedy answers, and what it thinks of the right ones and of the texts."""
    answers: list[Answer | None] = [None] * len(tasks.questions)
    rates: list[float] = []
    seconds, new_tokens, text_loss, text_tokens = 0.0, 0, 0.0, 0
    _restart_peak(model.device)
    with sample_bar("answer", len(tasks.questions) + len(tasks.texts), shown=progress) as bar:
        batches = _batches([_length(task) for task in tasks.questions], batch_size)
        for number, batch in enumerate(batches):
            asked = [tasks.questions[place] for place in batch]
            prompts = [task.prompt for task in asked if task.prompt is not None]
            if number == 0:
                model.generate(prompts[:1], max_new_tokens=1)  # the first call of a kernel is slow
            for _ in range(-(-_TIMINGS // len(batches))):
                start = time.perf_counter()
                said = model.generate(prompts, max_new_tokens=max_new_tokens)
                took = time.perf_counter() - start
                rates.append(len(batch) / took)
            seconds += took
            new_tokens += sum(len(tokens) + (len(tokens) < max_new_tokens) for tokens in said)
            losses = _losses(model, asked)
            for place, task, tokens, loss in zip(batch, asked, said, losses, strict=True):
                assert task.question is not None
                cut = len(tokens) == max_new_tokens
                answers[place] = _judged(task.question, tasks.decode(tokens).strip(), loss, task.tail, cut=cut)
            bar.update(len(batch))
        for batch in _batches([_length(task) for task in tasks.texts], batch_size):
            read = [tasks.texts[place] for place in batch]
            text_loss += math.fsum(_losses(model, read))
            text_tokens += sum(task.tail for task in read)
            bar.update(len(batch))
    speed = Speed(seconds, len(answers), new_tokens, tuple(rates), *_peaks(model.device)) if answers else None
    return Evaluation(tuple(one for one in answers if one is not None), text_loss, text_tokens, speed)


def _judged(question: Question, text: str, loss: float, tokens: int, *, cut: bool) -> Answer:
    if question.is_choice:
        number = parse_choice(text, question.options)
        choice = None if number is None else LETTERS[number]
        return Answer(question, text, choice, float(choice == question.answers[0]), loss, tokens, cut)
    worth = vqa_accuracy if len(question.answers) > 1 else exact_match
    return Answer(question, text, None, worth(text, question.answers), loss, tokens, cut)


def _losses(model: ResidentModel, tasks: Sequence[Task]) -> list[float]:
    """The sum of -log p over the targets of each task."""
    import torch

    found = model.logits([task.whole for task in tasks], [task.tail for task in tasks])
    return [
        float(
            torch.nn.functional.cross_entropy(logits, torch.tensor(task.targets, device=logits.device), reduction="sum")
        )
        for logits, task in zip(found, tasks, strict=True)
    ]


def _length(task: Task) -> int:
    return task.whole.shape[1]


def _batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The places of *lengths*, in batches of *size* with neighbours of about the same length."""
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    return [order[first : first + size] for first in range(0, len(order), size)]


def _restart_peak(device: str) -> None:
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peaks(device: str) -> tuple[int, int | None]:
    """(the process's peak of memory so far, the device's since the restart), in bytes."""
    import torch

    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return host, torch.cuda.max_memory_allocated(device) if torch.device(device).type == "cuda" else None


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else float(f"{value:.5g}")
