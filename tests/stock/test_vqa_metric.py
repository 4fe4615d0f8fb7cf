"""The worth of an open answer is what LLaVA's own evaluator makes of it."""

from __future__ import annotations

import itertools

import pytest
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor, TextVQAAccuracyEvaluator

from s4convert.study.figures import normalised, vqa_accuracy

ANSWERS = """Two boxes.|2 boxes|The box|box|none|0|red-blue|red blue|red, blue|1,000|1000|3.5|3.50|a.m.|am|10:30|1030
it's|its|dont|don't|what?|what|50%|50|$5|5|U.S.A|usa|left/right|left right|leftright|yes!|yes|No. 1|no 1|mr. t
hello;world|#1|1|e-mail - x|email x|x_y|n/a|n|1/2|Ten|10|(two)|couldnt|couldn't"""


def test_answers_are_the_same_where_they_are_for_llava() -> None:
    normal_form = EvalAIAnswerProcessor()
    for one, other in itertools.combinations(ANSWERS.replace("\n", "|").split("|"), 2):
        assert (normalised(one) == normalised(other)) == (normal_form(one) == normal_form(other)), (one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_worth_of_ten_peoples_answer_is_llavas() -> None:
    people = ["red", "red.", "the red", "blue", "Blue", "green", "1,000", "1000", "red-ish", "no"]
    llava = TextVQAAccuracyEvaluator()
    for said in ["red", "BLUE", "green", "1000", "reddish", ""]:
        worth = llava.eval_pred_list([{"pred_answer": said, "gt_answers": people}])
        assert vqa_accuracy(said, people) == pytest.approx(worth), said
