"""What options may be called, and their defaults: names alone, so that the command line can show them at once."""

from __future__ import annotations

from typing import Literal, get_args

Polarity = Literal["keep", "prune"]
Granularity = Literal["head", "group"]
Metric = Literal["cross-attention", "energy", "reconstruction", "fisher", "magnitude", "random"]
Loss = Literal["all", "answers"]
Recipe = Literal["fast", "best"]
Compensation = Literal[
    "scale", "none", "uniform-ls", "head-ls", "least-squares", "distill", "residual-transfer", "similarity"
]
Trained = Literal["qkvo", "o"]

POLARITIES: tuple[Polarity, ...] = get_args(Polarity)
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
METRICS: tuple[Metric, ...] = get_args(Metric)
LOSSES: tuple[Loss, ...] = get_args(Loss)
COMPENSATIONS: tuple[Compensation, ...] = get_args(Compensation)
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
TRAINED: tuple[Trained, ...] = get_args(Trained)
SCHEDULES = "uniform, adaptive, global or bands:0-5:0,6-31:0.3"

# The prompts of LLaVA's conversation.py, and the one that lies with a checkpoint.
CONVERSATIONS = ("vicuna_v1", "mistral_instruct", "chatml_direct")
CHAT_TEMPLATE = "chat-template"
DTYPES = ("float32", "float16", "bfloat16")
RAY_LOCAL = "local"  # a cluster of this machine alone
RAY_CPUS = 1  # of a worker without a GPU
BATCH_SIZE = 8  # questions at a time
MAX_NEW_TOKENS = 64  # of an answer
BEST_BY = ("rate", "accuracy", "perplexity")  # what makes a point of a sweep the best

REPORT_FILE = "report.html"
STEPS = 300  # of a distillation
LEARNING_RATE = 1e-3  # of its first steps
GAMMA = 0.4  # the weight of the mean in cross-attention
WINDOW = 640  # tokens of each window that plain text is packed into
HOLDOUT = 0.2  # the share of calibration samples that fits are judged by
IMAGE_WEIGHT = 0.5  # the share of the image tokens in mixed moments, however many they are
