"""Rows in the layouts of published data sets, written for tests: one sound row of each, under the name of its format."""

import json
from typing import Any

Row = dict[str, Any]


def rated(response: str, *ratings: str, overall: float | None = None, model: str = "gpt-4") -> Row:
    """A completion of UltraFeedback; ratings in the order of its aspects."""
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    annotations: Row = {
        aspect: {"Rating": rating, "Rationale": f"why {rating}"}
        for aspect, rating in zip(aspects, ratings, strict=True)
    }
    for aspect in aspects[2:]:
        annotations[aspect] |= {"Type": ["1", "None"], "Rationale For Rating": "so"}
    return {
        "model": model,
        "principle": "helpfulness",
        "custom_system_prompt": "As an AI assistant, be of use.",
        "response": response,
        "annotations": annotations,
        "critique": "Be brief.",
        "overall_score": overall,
        "fine-grained_score": None,
    }


def ultrafeedback(*completions: Row) -> Row:
    return {
        "source": "evol_instruct",
        "instruction": "Name a fruit.",
        "models": [each["model"] for each in completions],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
        "completions": list(completions),
    }


APPLE, STONE = "An apple.", "A stone."
HELPSTEER: Row = {
    "prompt": "Name a fruit.",
    "response": APPLE,
    "helpfulness": 4,
    "correctness": 3,
    "coherence": 4,
    "complexity": 1,
    "verbosity": 0,
}
HELPSTEER2_PREFERENCE: Row = {
    "split": "train",
    "prompt": "Hello<extra_id_1>Assistant\nHi.\n<extra_id_1>User\nName a fruit.",
    "response_1": STONE,
    "response_2": APPLE,
    "preference_strength": 2,
    "preference_statement": "Response 2 is better than response 1.",
    "preference_elaboration": "It is a fruit.",
    "three_most_similar_preferences": [{"statement": "s", "elaboration": "e", "strength": 2}],
    "all_preferences_unprocessed": [{"strength": 2}],
}
HELPSTEER3: Row = {
    "domain": "general",
    "language": "english",
    "context": [{"role": "user", "content": "Name a fruit."}],
    "response1": APPLE,
    "response2": STONE,
    "overall_preference": -3,
    "individual_preference": [{"score": -3, "reasoning": "r", "feedback1": "a", "feedback2": "b"}],
}
ALPACA: Row = {"instruction": "Name a fruit.", "input": "", "output": APPLE}
ALPACA_PAIRS: Row = {"instruction": "Name a fruit.", "input": "", "output": [APPLE, STONE]}
OPENAI_PREFERENCE: Row = {
    "input": {"messages": [{"role": "user", "content": "Name a fruit."}], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [{"role": "assistant", "content": APPLE}],
    "non_preferred_output": [{"role": "assistant", "content": STONE}],
}
# https://platform.openai.com/docs/guides/supervised-fine-tuning: each assistant turn may have a weight
OPENAI_CHAT: Row = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A tree?"},
        {"role": "assistant", "content": "An oak.", "weight": 0},
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": APPLE, "weight": 1},
    ]
}
CALL = {"name": "price", "arguments": {"of": "apple"}}
TOOLS = json.dumps([{"name": "price", "description": "What it costs", "parameters": {"of": {"type": "string"}}}])
LLAMA_FACTORY_TOOLS: Row = {
    "conversations": [
        {"from": "human", "value": "What is an apple?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": '{"price": 1}'},
        {"from": "gpt", "value": "One euro."},
    ],
    "system": "You sell fruit.",
    "tools": TOOLS,
}
LLAMA_FACTORY_PAIRS: Row = {
    "conversations": [{"from": "human", "value": "Name a fruit."}],
    "chosen": {"from": "gpt", "value": APPLE},
    "rejected": {"from": "gpt", "value": STONE},
}
MT_BENCH: Row = {
    "question_id": 81,
    "category": "writing",
    "turns": ["Write a post.", "Now begin each sentence with an A."],
    "reference": ["one", "two"],
}

LAYOUTS: list[tuple[str, Row]] = [
    ("ultrafeedback", ultrafeedback(rated(APPLE, "5", "5", "4", "5", overall=9.0), rated(STONE, "1", "2", "1", "1"))),
    ("helpsteer", HELPSTEER),
    ("helpsteer_pairs", HELPSTEER2_PREFERENCE),
    ("helpsteer_pairs", HELPSTEER3),
    ("alpaca", ALPACA),
    ("alpaca", {**ALPACA, "history": [["A tree?", "An oak."]], "system": "Be brief."}),
    ("alpaca_pairs", ALPACA_PAIRS),
    ("alpaca_pairs", {"instruction": "Name a fruit.", "chosen": APPLE, "rejected": STONE}),
    ("openai_preference", OPENAI_PREFERENCE),
    ("demonstrations", OPENAI_CHAT),
    ("demonstrations", LLAMA_FACTORY_TOOLS),
    ("conversations", LLAMA_FACTORY_PAIRS),
    ("unpaired", {"instruction": "Name a fruit.", "input": "", "output": APPLE, "kto_tag": True}),
    ("prompts", {"prompt": "Name a fruit."}),
    ("prompts", {"instruction": "Name a fruit.", "input": "A sweet one."}),
    ("prompts", {"messages": OPENAI_CHAT["messages"][:-1]}),
    ("prompts", MT_BENCH),
]
